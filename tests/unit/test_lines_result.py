"""The native result line: exact keys, exact bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.types import LINE_BYTES_MAX, Choice, Completion, Failure, Usage
from tests.helpers.lines import (
    NativeBlock,
    NativeChoice,
    NativeError,
    NativeMessage,
    after_id,
    decode_envelope,
    decode_result,
    encode_result,
    encoded_id,
    openai_file,
    with_id,
)

DONE = Completion(choices=(Choice("yes\n", "end_turn"),), usage=Usage(input_tokens=3, output_tokens=2, cached_tokens=1))


def test_a_success_has_exactly_these_bytes() -> None:
    assert encode_result("a", DONE, "m") == (
        b'{"custom_id":"a","status":"succeeded","message":{"content":[{"type":"text","text":"yes\\n"}]},'
        b'"stop_reason":"end_turn","model":"m",'
        b'"usage":{"input_tokens":3,"output_tokens":2,"cached_tokens":1},"error":null}'
    )


@pytest.mark.parametrize("status", ["errored", "canceled", "expired"])
def test_a_failure_has_exactly_these_bytes(status: str) -> None:
    failure = Failure(type="t", message="why", status=status)  # type: ignore[arg-type]
    assert encode_result(None, failure, "m").decode() == (
        f'{{"custom_id":null,"status":"{status}","message":null,"stop_reason":null,"model":null,"usage":null,'
        '"error":{"type":"t","message":"why"}}'
    )


def test_choices_are_written_only_where_there_are_several() -> None:
    several = Completion(choices=(Choice("a", "end_turn"), Choice("b", "max_tokens")), usage=Usage())
    read = decode_result(encode_result("a", several, "m"))
    block = [NativeMessage(content=[NativeBlock(type="text", text=text)]) for text in "ab"]
    assert read.message == block[0]
    assert read.choices == [
        NativeChoice(message=block[0], stop_reason="end_turn"),
        NativeChoice(message=block[1], stop_reason="max_tokens"),
    ]
    assert decode_result(encode_result("a", DONE, "m")).choices is None


@given(custom_id=st.text(), text=st.text(), message=st.text())
def test_text_comes_back_unchanged_and_a_result_is_one_line(custom_id: str, text: str, message: str) -> None:
    good = encode_result(custom_id, Completion(choices=(Choice(text, "end_turn"),), usage=Usage()), "m")
    bad = encode_result(custom_id, Failure(type="t", message=message), "m")
    for line in (good, bad):
        assert b"\n" not in line
        assert b"\r" not in line
        assert json.loads(line)["custom_id"] == custom_id
    read = decode_result(good)
    assert read.custom_id == custom_id
    assert read.message == NativeMessage(content=[NativeBlock(type="text", text=text)])
    failed = decode_result(bad).error
    assert failed is not None
    assert failed.message == message


def test_half_a_character_from_an_engine_is_replaced() -> None:
    broken = Completion(choices=(Choice("a\ud83d", "max_tokens"),), usage=Usage())
    assert decode_result(encode_result("a", broken, "m")).message == NativeMessage(
        content=[NativeBlock(type="text", text="a?")]
    )


def test_keys_of_a_later_version_are_ignored_when_read() -> None:
    line = encode_result("a", DONE, "m")[:-1] + b',"later":1}'
    assert decode_result(line) == decode_result(encode_result("a", DONE, "m"))


def test_a_result_may_be_longer_than_any_request() -> None:
    """As that of 2,048 texts that were embedded."""
    text = "x" * (4 * LINE_BYTES_MAX)
    completion = Completion(choices=(Choice(text=text, stop_reason="end_turn"),), usage=Usage())
    line = encode_result("r", completion, "m") + b"\n"
    chunks = (line[at : at + 2**20] for at in range(0, len(line), 2**20))
    (row,) = b"".join(openai_file(chunks, batch_id="b", created=1, is_output=True)).splitlines()
    assert len(row) > len(text)


def test_what_an_endpoint_did_not_tell_is_null_and_its_status_is_kept() -> None:
    unknown = Completion(choices=(Choice("yes", "end_turn"),), usage=Usage(unknown=1))
    assert decode_result(encode_result("a", unknown, "m")).usage is None
    failure = decode_result(encode_result("a", Failure(type="x", message="why", http_status=413), "m")).error
    assert failure == NativeError(type="x", message="why", http_status=413)


IDS = st.text(st.sampled_from('ab1 /"\\\n\x7f\x85\u2028é😀,:}'), min_size=1) | st.text(min_size=1)


@given(IDS, IDS, st.sampled_from([None, (",", ":"), (" , ", " : ")]), st.booleans(), st.booleans())
def test_a_result_is_given_another_id_as_if_it_had_been_written_with_it(
    old: str, new: str, separators: tuple[str, str] | None, is_ascii: bool, is_last: bool
) -> None:
    row = {"custom_id": new, "params": {}}
    if is_last:
        row = dict(reversed(row.items()))
    line = json.dumps(row, separators=separators, ensure_ascii=is_ascii).encode()
    assert decode_envelope(line).custom_id == new
    for name in (old, new):
        assert with_id(encoded_id(line), encode_result(name, DONE, "m")) == encode_result(new, DONE, "m")


@pytest.mark.parametrize(
    ("line", "encoded"),
    [(b'{"custom_id":17,"params":{}}', b'"17"'), (b'{"custom_id": "\\u0061", "params": {}}', b'"a"')],
)
def test_an_id_is_encoded_as_it_is_read(line: bytes, encoded: bytes) -> None:
    assert encoded_id(line) == encoded


def test_only_a_success_can_be_given_another_id() -> None:
    name = '","status":"succeeded",'
    for row in (encode_result(name, Failure(type="t", message="why"), "m"), b'{"custom_id":"a"}', b"{}", b""):
        assert after_id(row) is None
        assert with_id(encoded_id(json.dumps({"custom_id": name}).encode()), row) is None
