"""Keys that stand twice: rejected by name at the top level of a line, of `params` and of `body`; told at all depths."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidRequest
from batchfile.lines.json_scan import find_any_repeats, find_repeats, has_repeats
from batchfile.types import Defaults
from tests.helpers.lines import Scan, find_problems, parse_request

CASES = Path(__file__).parents[1] / "cases"
HI = '"messages":[{"role":"user","content":"hi"}]'
CHAT = '"method":"POST","url":"/v1/chat/completions"'


class Pairs(dict[str, Any]):
    """An object whose keys may repeat, for the encoder."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


def full(line: str) -> bytes:
    return line.replace("<HI>", HI).replace("<CHAT>", CHAT).encode()


def refusal(line: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(full(line), Defaults())
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"custom_id":"a","custom_id":"b","params":{<HI>}}', "custom_id"),
        ('{"custom_id": "a", "params": {<HI>}, "params": {<HI>}}', "params"),
        ('{"params":{<HI>},"custom_id":"a","custom_id":"a"}', "custom_id"),
        ('{"custom_id":"a","params":{},"params":{<HI>}}', "params"),
        ('{"custom_id":"a","metadata":null,"params":{<HI>},"metadata":{"x":"y"}}', "metadata"),
        ('{"custom_id":"a","custom\\u005fid":"b","params":{<HI>}}', "custom_id"),
        ('{"custom_id":"a","params":{<HI>,<HI>}}', "params.messages"),
        ('{"custom_id":"a","params":{ "max_tokens" : 5, <HI>, "max_tokens" : 5 }}', "params.max_tokens"),
        ('{"custom_id":"a","params":{"seed":1,<HI>,"s\\u0065ed":2}}', "params.seed"),
        ('{"custom_id":"a",<CHAT>,"body":{<HI>,"n":1,"n":2}}', "body.n"),
        ('{"custom_id":"a","method":"POST",<CHAT>,"body":{<HI>}}', "method"),
        ('{"custom_id":"a",<CHAT>,"body":{<HI>},"body":{<HI>}}', "body"),
    ],
)
def test_a_key_that_is_given_twice_is_rejected_by_name(line: str, place: str) -> None:
    assert refusal(line) == f"{place}: is given twice; keep one of them"


@pytest.mark.parametrize(
    "line",
    [
        '{"custom_id":"\\"params\\":\\"","params":{<HI>}}',
        '{"custom_id":"a","metadata":{"custom_id":"a","params":"\\""},"params":{<HI>}}',
        '{"params":{<HI>},"custom_id":"a"}',
        '{"custom_id":"a","params":{"messages":[{"role":"user","content":"\\"seed\\": 1, \\"n\\""}],"seed":2}}',
    ],
)
def test_quotes_in_values_are_not_keys(line: str) -> None:
    assert parse_request(full(line), Defaults()).custom_id
    assert find_problems(full(line)) == []


def test_a_run_rejects_both_lines_of_the_reported_file() -> None:
    first, second = (CASES / "json-duplicate-keys.jsonl").read_bytes().splitlines()
    assert [str(found) for found in find_problems(first)] == [
        "custom_id: is given twice; keep one of them",
        "body.messages: is given twice; keep one of them",
    ]
    assert [str(found) for found in find_problems(second)] == ["body: is given twice; keep one of them"]


def test_validate_tells_keys_at_all_depths_with_their_column() -> None:
    line = '{"custom_id":"a","params":{"messages":[{"role":"user","role":"user","content":"hi"}]}}'
    assert parse_request(line.encode(), Defaults()).custom_id == "a"
    (problem,) = Scan().problems([line.encode()])
    assert (problem.where, problem.message) == ("params.messages[0].role", "is given twice; keep one of them")
    assert problem.fix == "", "the message says it all"
    assert problem.column == line.rindex('"role"') + 1


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(st.text('a"\\é', max_size=2), inner)).map(Pairs),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.text('a"\\é', max_size=2), _json)), st.booleans(), st.sampled_from([None, 1]))
def test_keys_that_stand_twice_are_found_whatever_stands_around(
    pairs: list[tuple[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    data = json.dumps(Pairs(pairs), ensure_ascii=ascii_only, indent=indent).encode()
    top = {key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1}
    assert has_repeats(data) == bool(top)
    assert {path[0] for path in find_repeats(data, depth_max=1)} == top
    assert find_any_repeats(data) == find_repeats(data)
