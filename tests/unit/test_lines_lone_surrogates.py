"""Half of a character breaks the request that has it, and nothing beside."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidRequest
from batchfile.lines import json_scan
from batchfile.lines.json_scan import find_lone_surrogate, without_lone_surrogates
from batchfile.types import Defaults
from tests.helpers.lines import decode_envelope, find_problems, parse_request

PARTS = [r"\ud83d", r"\uDE00", r"\\", r"\n", r"\"", "u", "d83d", r"\ud83d\ude00", r"\u00e9", r"\uffff", "plain text"]


@given(st.lists(st.sampled_from(PARTS)), st.integers(20, 60))
def test_lone_surrogates_are_what_no_utf8_can_carry(parts: list[str], piece: int) -> None:
    text = '"' + "".join(parts) + '"'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "PIECE_BYTES", piece)
        at, whole = find_lone_surrogate(text.encode()), without_lone_surrogates(text.encode())
    read = json.loads(text)
    is_sound = read == read.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert (at is None) is (whole is None) is is_sound
    if at is not None and whole is not None:
        json.loads(text[:at] + '"').encode()  # it is the first
        assert len(whole) == len(text)
        assert json.loads(whole).encode()


CHAT = '{"model":"m","messages":[{"role":"user","content":"Hi \\ud83d"}],"max_tokens":5}'


@pytest.mark.parametrize(
    ("line", "root"),
    [
        ('{"custom_id":"é","params":' + CHAT + ',"metadata":{"x":"\\ud83d","model_hint":"p"}}', "params"),
        ('{"custom_id":"é","method":"POST","url":"/v1/chat/completions","body":' + CHAT + "}", "body"),
    ],
)
def test_half_of_a_character_is_that_requests_own_error(line: str, root: str) -> None:
    envelope = decode_envelope(line.encode())
    assert (envelope.custom_id, envelope.model, envelope.carried) == ("é", "m", CHAT.encode())
    with pytest.raises(InvalidRequest, match=rf"^{root}: \\ud83d is half of a character; cut strings between"):
        parse_request(line.encode(), Defaults())
    assert [diagnostic.where for diagnostic in find_problems(line.encode())] == [root]


@pytest.mark.parametrize(
    "line",
    [
        r'{"custom_id":"a\ud83d","params":{}}',
        r'{"custom_id":"a","params":{},"metadata":{"model_hint":"\ud83d"}}',
        r'{"custom_id":"a","params":{"b":"\ud83d"}',
    ],
)
def test_half_of_a_character_in_the_envelope_is_no_request(line: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_envelope(line.encode())


def test_half_of_a_character_in_metadata_changes_nothing() -> None:
    line = r'{"custom_id":"a","params":{"messages":[{"role":"user","content":"x"}]},"metadata":{"name":"\ud83d"}}'
    assert parse_request(line.encode(), Defaults()).custom_id == "a"
