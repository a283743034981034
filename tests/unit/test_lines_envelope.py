"""The outside of a request line: what is read, and what a bad one is told."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidRequest
from tests.helpers.lines import Unreadable, custom_id_of, decode_envelope


def native(**more: object) -> bytes:
    return json.dumps({"custom_id": "a", "params": {"max_tokens": 1}, **more}).encode()


def test_a_params_line_is_native_and_carried_raw() -> None:
    envelope = decode_envelope(b'{"custom_id": "a", "params":  {"model" : "m", "x":[1, 2]} }')
    assert (envelope.custom_id, envelope.format) == ("a", "native")
    assert envelope.carried == b'{"model" : "m", "x":[1, 2]}'
    assert envelope.model == "m"
    assert envelope.hint is None


def test_a_whole_number_is_read_as_text() -> None:
    for number in (0, 17, -3, 2**70):
        line = b'{"custom_id":%d,"params":{}}' % number
        assert decode_envelope(line).custom_id == custom_id_of(line) == str(number)


@pytest.mark.parametrize(
    ("number", "text"), [("17.0", "17"), ("-3.00", "-3"), ("1e3", "1000"), ("9007199254740991.0", "9007199254740991")]
)
def test_a_whole_number_with_a_point_is_one_too(number: str, text: str) -> None:
    line = f'{{"custom_id":{number},"params":{{}}}}'.encode()
    assert decode_envelope(line).custom_id == custom_id_of(line) == text


@pytest.mark.parametrize("number", ["17.5", "1e300", "9007199254740993.0", "true"])
def test_other_numbers_are_not_ids(number: str) -> None:
    line = f'{{"custom_id":{number},"params":{{}}}}'.encode()
    with pytest.raises(InvalidRequest, match="custom_id: must be a string or a whole number, got"):
        decode_envelope(line)
    assert custom_id_of(line) is None


@pytest.mark.parametrize(
    ("written", "text"), [("17", "17"), ("17.0", "17"), ('"a b"', "a b"), ("1.2.3", None), ("17.5", None)]
)
def test_the_id_of_a_line_that_breaks_off_is_read_from_its_start(written: str, text: str | None) -> None:
    assert custom_id_of(f'{{"custom_id": {written}, "params": {{'.encode()) == text
    assert custom_id_of(f'{{"custom_id": {written}'.encode()) == (text if written[0] == '"' else None)


def test_a_body_line_is_openai() -> None:
    envelope = decode_envelope(b'{"custom_id":"a","method":"POST","url":"/v1/x","body":{}}')
    assert (envelope.format, envelope.method, envelope.url, envelope.model) == ("openai", "POST", "/v1/x", None)


def test_metadata_is_free_and_only_its_hint_is_read() -> None:
    envelope = decode_envelope(native(metadata={"model_hint": "mistral", "leadId": {"deep": [1]}, "n": None}))
    assert envelope.hint == "mistral"
    assert decode_envelope(native(metadata=None)).hint is None
    assert decode_envelope(native(metadata={"model_hint": None})).hint is None


def test_a_model_of_a_wrong_type_is_left_to_the_parser() -> None:
    assert decode_envelope(b'{"custom_id":"a","params":{"model":5}}').model is None


@given(st.text(min_size=1))
def test_a_custom_id_is_carried_unchanged(custom_id: str) -> None:
    for ascii_only in (True, False):
        line = json.dumps({"custom_id": custom_id, "params": {}}, ensure_ascii=ascii_only).encode()
        assert decode_envelope(line).custom_id == custom_id
        assert custom_id_of(line) == custom_id


@pytest.mark.parametrize("custom_id", ['"\\', "\n\r\t\0", "😀𝄞", "\u2028", "x" * 10_000, " ", "ключ"])
def test_awkward_custom_ids_are_carried_unchanged(custom_id: str) -> None:
    assert decode_envelope(json.dumps({"custom_id": custom_id, "params": {}}).encode()).custom_id == custom_id


DEEP = "[" * 100_000 + "]" * 100_000
DEEP_PARAMS = f'{{"custom_id":"a","params":{{"x":{DEEP}}}}}'
DEEP_METADATA = f'{{"custom_id":"a","metadata":{{"x":{DEEP}}}}}'

BAD = [
    ("", None, "is not valid JSON: unexpected end of the line at column 1"),
    ("hello", None, "is not valid JSON: unexpected 'h' at column 1"),
    ('{"custom_id":"a","params":{', "a", "is not valid JSON: unexpected end of the line at column 28"),
    ('{"custom_id":"a","params":{"x":"y', "a", "is not valid JSON: unterminated string starting at column 32"),
    ("{'custom_id':'a'}", None, "is not valid JSON: unexpected single quote at column 2"),
    ('{"custom_id":"a","params":{},}', "a", "is not valid JSON: unexpected '}' at column 30"),
    ('{"custom_id":"a","params":{}} {}', "a", "is not valid JSON: unexpected text after the object at column 31"),
    ('{"custom_id":"a","params":{"x":True}}', "a", "is not valid JSON: unexpected Python literal at column 32"),
    ('{"custom_id":"a","params":{"x":NaN}}', "a", "is not valid JSON: unexpected NaN at column 32"),
    ('{"x":-Infinity,"custom_id":"a"}', "a", "is not valid JSON: unexpected -Infinity at column 6"),
    ('{"custom_id":"é\t"}', None, "is not valid JSON: unescaped control character at column 16"),
    (r'{"custom_id":"\udc00","params":{}}', None, r"is not valid JSON: \udc00 is half of a character at column 15"),
    ("[1]", None, 'must be an object such as {"custom_id": "a", "params": {...}}, got a list'),
    ("null", None, 'must be an object such as {"custom_id": "a", "params": {...}}, got null'),
    ("{}", None, "custom_id: is missing; give every request a unique one"),
    ('{"custom_id":"","params":{}}', None, "custom_id: is empty; give every request a unique one"),
    ('{"custom_id":7.5,"params":{}}', None, "custom_id: must be a string or a whole number, got 7.5"),
    ('{"custom_id":true,"params":{}}', None, "custom_id: must be a string or a whole number, got true"),
    ('{"custom_id":17}', "17", "params: is missing; put messages and max_tokens there"),
    ('{"custom_id":"a"}', "a", "params: is missing; put messages and max_tokens there"),
    (
        '{"custom_id":"a","method":"POST","url":"/v1/chat/completions"}',
        "a",
        "body: is missing; put model and messages there",
    ),
    ('{"custom_id":"a","params":[]}', "a", "params: must be an object, got a list"),
    ('{"custom_id":"a","body":"x"}', "a", 'body: must be an object, got "x"'),
    ('{"custom_id":"a","params":null}', "a", "params: must be an object, got null"),
    ('{"custom_id":"a","parms":{}}', "a", "parms: unknown field; did you mean params?"),
    ('{"customID":"a","params":{}}', None, "customID: unknown field; did you mean custom_id?"),
    ('{"custom_id":"a","params":{},"zz":1}', "a", "zz: unknown field; put your own fields under metadata"),
    ('{"custom_id":"a","params":{},"body":{}}', "a", "body: does not belong on a line with params"),
    ('{"custom_id":"a","body":{},"metadata":{}}', "a", "metadata: does not belong on a line with body"),
    ('{"custom_id":"a","body":{},"url":5}', "a", "url: must be a string, got 5"),
    ('{"custom_id":"a","params":{},"metadata":3}', "a", "metadata: must be an object, got 3"),
    (
        '{"custom_id":"a","params":{},"metadata":{"model_hint":true}}',
        "a",
        "metadata.model_hint: must be a string, got true",
    ),
    (DEEP_PARAMS, "a", "is nested too deeply"),
    (DEEP_METADATA, "a", "is nested too deeply"),
]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5", 'must be an object such as {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body":'),
        ('{"custom_id": "a"}', "body: is missing; put model and messages there"),
        ('{"custom_id": "a", "name": 1}', "name: unknown field; put your own fields under body.metadata"),
    ],
)
def test_whose_file_is_openais_is_told_of_openais_format(line: str, message: str) -> None:
    with pytest.raises(Unreadable) as refused:
        decode_envelope(line.encode(), "openai")
    assert message in str(refused.value)


@pytest.mark.parametrize(("line", "custom_id", "message"), BAD, ids=[row[2][:60] for row in BAD])
def test_a_bad_line_is_told_what_is_wrong(line: str, custom_id: str | None, message: str) -> None:
    with pytest.raises(Unreadable) as caught:
        decode_envelope(line.encode())
    assert str(caught.value) == message
    assert caught.value.custom_id == custom_id
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("line", "custom_id", "message"),
    [
        (b'{"custom_id":"a","params":{"x":"\xff"}}', "a", "is not valid UTF-8: byte 0xff at column 33"),
        (b'{"custom_id":"a\xc3","params":{}}', None, "is not valid UTF-8: byte 0xc3 at column 16"),
        ('{"custom_id"'.encode("utf-16"), None, "is not UTF-8; it looks like UTF-16"),
    ],
)
def test_bytes_that_are_no_utf8_are_told_so(line: bytes, custom_id: str | None, message: str) -> None:
    with pytest.raises(Unreadable) as caught:
        decode_envelope(line)
    assert str(caught.value) == message
    assert caught.value.custom_id == custom_id


def test_all_that_is_wrong_outside_is_found_at_once() -> None:
    with pytest.raises(Unreadable) as caught:
        decode_envelope(b'{"custom_id":"","params":[],"metdata":{}}')
    assert [diagnostic.where for diagnostic in caught.value.diagnostics] == ["metdata", "custom_id", "params"]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
lines = st.binary(max_size=60) | json_like.map(lambda value: json.dumps(value).encode())


@given(lines)
def test_any_bytes_raise_nothing_but_an_invalid_request(line: bytes) -> None:
    with suppress(InvalidRequest):
        decode_envelope(line)
    assert custom_id_of(line) != ""
