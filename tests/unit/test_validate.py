"""Every problem of a file, with its place."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.lines.diagnostics import locate
from batchfile.types import Defaults, RoutingTable
from tests.helpers.lines import LineProblem, Scan, validate

TABLE = RoutingTable(stages={"subject": "mistral"}, pools={"mistral": ("small",), "llama": ()})


def line(custom_id: str = "a", metadata: Any = None, **params: Any) -> str:
    inside = {"messages": [{"role": "user", "content": "hi"}], **params}
    return json.dumps({"custom_id": custom_id, "params": inside} | ({"metadata": metadata} if metadata else {}))


def check(*lines: str, scan: Scan | None = None) -> list[LineProblem]:
    data = "\n".join(lines).encode()
    return list(validate(lambda: [data], scan or Scan()))


def test_a_good_file_has_no_problem_and_a_summary() -> None:
    scan = Scan(defaults=Defaults(max_tokens=50))
    lines = [
        line("a", max_tokens=10, model="m", system="123"),
        "",
        line("b", {"model_hint": "llama"}, max_tokens=30),
        line("c"),
        line("d", max_tokens=30),
    ]
    assert check(*lines, scan=scan) == []
    summary = scan.summary
    assert (summary.num_requests, summary.num_bad, summary.num_problems, summary.format) == (4, 0, 0, "native")
    assert summary.size_bytes == len("\n".join(lines))
    assert summary.prompt_chars == 3 + 4 * 2
    assert dict(summary.max_tokens) == {10: 1, 30: 2, 50: 1}
    assert summary.max_tokens_median == 30
    assert dict(summary.hints) == {"llama": 1}
    assert dict(summary.models) == {"m": 1}


def test_every_problem_of_every_line_is_told_with_its_column() -> None:
    bad = line("é", max_tokens=0, max_token=5, messages=[{"role": "user", "content": [{"type": "video"}]}])
    found = check(line("x"), "", bad, "{oops")
    assert [(problem.line, problem.where) for problem in found] == [
        (3, "params.messages[0].content[0]"),
        (3, "params.max_tokens"),
        (3, "params.max_token"),
        (4, ""),
    ]
    for problem, text in zip(found, ['{"type": "video"}', "0", '"max_token"', "oops"], strict=False):
        source = bad if problem.line == 3 else "{oops"
        assert problem.column is not None
        assert source[problem.column - 1 :].startswith(text)
    assert [problem.custom_id for problem in found] == ["é", "é", "é", None]
    assert found[1].message == "must be at least 1, got 0"
    assert (found[2].message, found[2].fix) == (
        "unknown field; max_tokens is given already, so remove this one",
        "Remove it.",
    )
    assert all(problem.fix for problem in found)


@pytest.mark.parametrize("params", [{"qqq": 1}, {"betas": ["x"]}, {"stream": True}])
def test_what_a_message_says_is_not_said_again(params: dict[str, Any]) -> None:
    (problem,) = check(line(**params))
    assert "remove it" in problem.message
    assert problem.fix == ""


def test_columns_count_characters() -> None:
    bad = json.dumps({"custom_id": "😀é", "params": {"messages": [], "zz": 1}}, ensure_ascii=False)
    assert [problem.column for problem in check(bad)] == [bad.index("[]") + 1, bad.index('"zz"') + 1]


def test_what_is_missing_is_placed_at_what_should_hold_it() -> None:
    bad = '{"custom_id": "a", "params": {}}'
    (problem,) = check(bad)
    assert (problem.where, problem.message) == ("params.messages", "is missing")
    assert problem.column == bad.index("{}") + 1


def test_a_repeated_custom_id_is_told_with_both_lines() -> None:
    found = check(line("a"), line("b"), "", line("a"), line("a"))
    assert [(problem.line, problem.column, problem.custom_id, problem.message) for problem in found] == [
        (4, 15, "a", '"a" is already used on line 1'),
        (5, 15, "a", '"a" is already used on line 1'),
    ]
    assert found[0].fix == "Make it unique: lines 1 and 4 share it."


def test_a_line_in_the_other_format_is_told() -> None:
    other = json.dumps(
        {
            "custom_id": "b",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": "hi"}]},
        }
    )
    (problem,) = check(line("a"), other)
    assert problem.line == 2
    assert problem.message == "is in the openai format, but the file starts in the native format"
    assert check(other) == []


@pytest.mark.parametrize(
    ("stage", "request_line", "message"),
    [
        (None, line(metadata={"model_hint": "gpt"}), "metadata.model_hint: 'gpt' is not a pool"),
        (None, line(model="gpt"), "model: 'gpt' is not a pool"),
        (None, line(), "no pool given"),
        ("email", line(), "stage: 'email' is unknown"),
        ("subject", line(), None),
        ("subject", line(model="gpt"), None),
        (None, line(model="small"), None),
    ],
)
def test_routing_is_checked_against_a_table(stage: str | None, request_line: str, message: str | None) -> None:
    found = check(request_line, scan=Scan(table=TABLE, stage=stage))
    assert [problem.message.startswith(message or "?") for problem in found] == ([True] if message else [])


def test_a_bad_line_is_told_its_routing_too() -> None:
    found = check(line(max_tokens=0, model="gpt"), scan=Scan(table=TABLE))
    assert len(found) == 2


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_request_is_a_problem(data: bytes) -> None:
    scan = Scan()
    (problem,) = validate(lambda: [data], scan)
    assert problem.message == "contains no requests: it is empty, or every line is blank"
    assert scan.summary.num_problems == 1


def test_an_over_long_line_is_told() -> None:
    big = b" " * (16 * 2**20 + 1)
    (problem,) = validate(lambda: [line("a").encode() + b"\n", big, b"\n" + line("b").encode()], Scan())
    assert (problem.line, problem.column, problem.message) == (2, None, "is longer than 16 MiB")


def test_nul_bytes_at_the_end_are_told_once_and_are_not_a_request() -> None:
    scan = Scan()
    (problem,) = validate(lambda: [line("a").encode() + b"\n", b"\0" * 50], scan)
    assert problem.message == "ends in NUL bytes, which are not a request; it was probably cut off while it was written"
    assert (scan.summary.num_requests, scan.summary.num_bad) == (1, 0)


def test_bytes_that_are_no_text_are_told() -> None:
    (problem,) = validate(lambda: [b'{"custom_id":"a","params":{"x":"\xff"}}'], Scan())
    assert (problem.custom_id, problem.column) == ("a", 33)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_can_be_validated(chunks: list[bytes]) -> None:
    scan = Scan()
    found = list(validate(lambda: chunks, scan))
    assert scan.summary.num_problems == len(found)
    assert scan.summary.num_bad <= scan.summary.num_requests


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(path, value)] + [found for step, item in inside for found in paths(item, (*path, step))]


@given(json_values, st.booleans(), st.sampled_from([None, 2]))
def test_locate_finds_every_value(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    decoder = json.JSONDecoder()
    for path, wanted in paths(value):
        column = locate(text, path)
        assert column is not None
        assert decoder.raw_decode(text, column - 1)[0] == wanted
        if path and isinstance(path[-1], str):
            at_key = locate(text, path, at_key=True)
            assert at_key is not None
            assert decoder.raw_decode(text, at_key - 1)[0] == path[-1]


def test_half_a_surrogate_pair_is_shown_escaped() -> None:
    whole, inside = check('"\\ud800"', '{"custom_id":"a","params":{},"metadata":"\\udfff"}')
    assert whole.message.endswith(r'got "\ud800"')
    assert inside.message.endswith(r'got "\udfff"')
