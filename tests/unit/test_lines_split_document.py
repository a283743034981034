"""A JSON document into request lines: the same as reading all of it, without doing so."""

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidFile, RequestRefused
from batchfile.lines import split_document
from batchfile.lines.split_document import iter_requests, read_document
from batchfile.types import LINE_BYTES_MAX

pytestmark = pytest.mark.slow

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('{}[],:"\\\n\u2028é😀'))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
REQUESTS = st.lists(VALUE) | st.lists(
    st.dictionaries(st.sampled_from(["custom_id", "params", "metadata"]) | TEXT, VALUE, max_size=4)
)
PIECES = [r"\ud83d", r"\uDE00", r"\\", r"\n", r"\"", "u", "d83d", r"\ud83d\ude00", r"\u00e9", r"\ufffd", "é"]
INDENT: list[dict[str, Any]] = [{}, {"indent": 2}, {"separators": (",", ":")}, {"indent": "\t", "ensure_ascii": False}]


def lines_of(array: bytes) -> list[Any]:
    rows = b"".join(iter_requests(memoryview(array))).split(b"\n")
    assert rows.pop() == b""
    return [json.loads(row) for row in rows]


@given(REQUESTS, st.sampled_from(INDENT), st.integers(1, 200))
def test_the_lines_are_what_a_parser_reads(requests: list[Any], style: dict[str, Any], window: int) -> None:
    body = json.dumps({"requests": requests, "stage": "email"}, **style).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_document, "WINDOW_BYTES", window)
        document = read_document(memoryview(body))
        assert (document.stage, document.model_hint) == ("email", None)
        assert lines_of(bytes(document.requests)) == requests


@given(REQUESTS, st.randoms(use_true_random=False), st.integers(1, 200))
def test_spaces_may_stand_anywhere(requests: list[Any], rng: random.Random, window: int) -> None:
    def spaces() -> str:
        return "".join(rng.choice(" \n\r\t") for _ in range(rng.choice([0, 0, 1, 300])))

    array = "[" + spaces() + ",".join(spaces() + json.dumps(item) + spaces() for item in requests) + "]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_document, "WINDOW_BYTES", window)
        assert lines_of(array.encode()) == requests


def test_what_looks_like_a_boundary_inside_a_request_is_none() -> None:
    inner = [{"custom_id": "x"}, {"custom_id": "y"}] * 40
    requests = [{"custom_id": f"r{number}", "params": {"a": inner, "b": json.dumps(inner)}} for number in range(1000)]
    assert lines_of(json.dumps(requests).encode()) == requests


def test_a_request_that_spans_many_windows_is_one_line() -> None:
    requests = [{"a": "x" * 3_000_000, "b": [{"c": 1}, {"c": 2}]}, {"a": 1}, {"a": "y" * 700_000}]
    assert lines_of(json.dumps(requests).encode()) == requests


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "%b"}' % (b"x" * LINE_BYTES_MAX),
        b'{"a": [%b1]}' % (b"1," * (LINE_BYTES_MAX // 2)),
        b'{"a":"%b"}' % (b"x" * (LINE_BYTES_MAX - 7)),
    ],
    ids=["one string", "one list", "one byte"],
)
def test_a_request_over_the_limit_is_refused_by_its_place(body: bytes) -> None:
    more = b'{"a": 1}, ' + body + b', {"a": "%b"}' % (b"z" * 1_000_000)
    with pytest.raises(RequestRefused, match=r"requests\[1\]: is longer than 16 MiB") as refused:
        for _ in iter_requests(memoryview(b"[" + more + b"]")):
            pass
    assert refused.value.index == 1


def test_a_request_of_just_the_limit_is_a_line() -> None:
    array = b'[{"a":1},{"a":"%b"},{"a":2}]' % (b"x" * (LINE_BYTES_MAX - 8))
    assert [len(row) for row in b"".join(iter_requests(memoryview(array))).split()] == [7, LINE_BYTES_MAX, 7]


def test_millions_of_empty_requests_come_in_small_chunks() -> None:
    array = b"[" + b"{}," * 2_000_000 + b"{}]"
    largest = count = 0
    for chunk in iter_requests(memoryview(array)):
        largest, count = max(largest, len(chunk)), count + chunk.count(b"\n")
    assert count == 2_000_001
    assert largest <= 2 * split_document.WINDOW_BYTES


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", r"not valid JSON: unexpected end at byte 0 \(line 1, column 1\); send the whole body"),
        (b'{"stage": "a",\n "requests": [\n  {"a": 1},\n  {"a": x}]}', r"at byte 50 \(line 4, column 9\)"),
        (b'{"requests": [{}] ', "unexpected end"),
        (b'{"requests": [{"a": "b', "unexpected end at byte 22"),
        (b'{"stage": "a", "requests": [{"a": 1,}]}', "unexpected '}' at byte 36"),
        (b'{"requests": [NaN]}', "unexpected NaN at byte 14"),
        (b"\xff\xfe{\x00", r"not valid UTF-8: byte 0xff, at byte 0 \(line 1, column 1\); send UTF-8"),
        (b'{"st\xe9": 1, "requests": []}', "not valid UTF-8: byte 0xe9, at byte 4"),
        (b'{"requests": ["\xff" x]}', "not valid UTF-8: byte 0xff, at byte 15"),
        (b'{"requests": [x "\xff"]}', "unexpected 'x' at byte 14"),
        (b'{"requests": []} x', "unexpected text after the object at byte 17"),
        (b'{"requests": [{"a": "b\\ud83d"}, {"a": "long enough"}]}', r"\\ud83d is half of a character.*at byte 22"),
        (b'{"requests": ["\\ud83d"]}', r"\\ud83d is half of a character.*at byte 15"),
        (b'{"requests": ["\\ude00 and more"]}', r"\\ude00 is half of a character.*at byte 15"),
        (b'{"requests": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}", "nested too deeply"),
        (b'{"stage": "\xff", "requests": []}', "not valid UTF-8: byte 0xff, at byte 11"),
        (b"[]", "must be an object such as"),
        (b'"text"', "must be an object such as"),
        (b'{"stage": "a"}', "requests: is missing"),
        (b'{"requests": {}}', "requests: must be a list of requests, got an object"),
        (b'{"requests": 5}', "requests: must be a list of requests, got a number"),
        (b'{"stage": 5, "requests": []}', "stage: must be a string, got a number"),
        (b'{"model_hint": [], "requests": []}', "model_hint: must be a string, got a list"),
        (b'{"request": []}', "request: unknown field; did you mean requests?"),
        (b'{"requests": [{"a": "]"}], "requests": [{}]}', "requests: is given twice; keep one of them"),
        (b'{"requests":[], "requests" : [%s]}' % (b"{}," * 50_000 + b"{}"), "requests: is given twice"),
        (b' {"requests": [%s], "requests": []}' % (b"{}," * 10_000 + b"{}"), "requests: is given twice"),
        (b'{"stage":"a","requests":[%s],"st\\u0061ge":"b"}' % (b"{}," * 50_000 + b"{}"), "stage: is given twice"),
        (b'{"x-y": []}', "x-y: unknown field; use one of stage, model_hint, requests"),
    ],
)
def test_a_wrong_document_is_refused_with_its_place(body: bytes, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        read_document(memoryview(body))


MARKS = st.sampled_from(
    [b"", b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\\ud83d", b"\x00", b'"', b"}", b",", b" x", b"[" * 3_000]
)
PLACE = r"at byte \d+ \(line \d+, column \d+\)"
REFUSED = re.compile(
    rf"the body is not valid (JSON: .* {PLACE}(; send the whole body)?|UTF-8: byte 0x\w\w, {PLACE}; send UTF-8)"
    r"|the body is nested too deeply; .*|the body must be an object such as .*"
    r"|.*: (unknown field|is missing|must be)\b.*",
    re.DOTALL,
)


@given(REQUESTS, st.sampled_from(INDENT), st.data(), MARKS, st.integers(1, 200))
def test_a_damaged_document_is_read_as_a_parser_reads_it_or_refused_in_our_words(
    requests: list[Any], style: dict[str, Any], data: st.DataObject, mark: bytes, window: int
) -> None:
    """Cut at any place, or with bytes that do not belong there. What no UTF-8 can carry stays in its request."""
    body = json.dumps({"stage": "email", "requests": requests, "model_hint": "a"}, **style).encode()
    at = data.draw(st.integers(0, len(body)))
    body = body[:at] + mark + body[at if mark else len(body) :]
    refused = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_document, "WINDOW_BYTES", window)
        try:
            document = read_document(memoryview(body), memoryview(bytearray(body)))
            rows = b"".join(iter_requests(document.requests)).split(b"\n")[:-1]
        except InvalidFile as error:
            refused = str(error)
    if refused:
        assert REFUSED.fullmatch(refused), refused
        return
    expected = json.loads(body.decode(errors="surrogateescape"))
    assert [json.loads(row.decode(errors="surrogateescape")) for row in rows] == expected["requests"]
    # A half of a character stays in a request; in a name, which then names nothing, it is the replacement character.
    names = tuple(re.sub("[\ud800-\udfff]", "\ufffd", expected[name]) for name in ("stage", "model_hint"))
    assert (document.stage, document.model_hint) == names


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6), min_size=1), st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_half_of_a_character_leaves_every_request_as_it_was(contents: list[list[str]], mark: bytes) -> None:
    """And the document is read around it."""
    rows = [f'{{"custom_id":"{n}","params":{{"a":"{"".join(some)}"}}}}'.encode() for n, some in enumerate(contents)]
    body = mark + b'{"requests": [' + b" ,\n".join(rows) + b'], "stage": "email"}'
    document = read_document(memoryview(body), memoryview(bytearray(body)))
    assert document.stage == "email"
    lines = b"".join(iter_requests(document.requests)).splitlines()
    assert [line.rstrip() for line in lines] == rows


def test_more_pieces_than_the_limit_refuse_the_document() -> None:
    body = b'{"requests": ["%b"]}' % (b"\\ud83d" * (split_document.LONE_SURROGATES_MAX + 1))
    with pytest.raises(InvalidFile, match="half of a character"):
        read_document(memoryview(body), memoryview(bytearray(body)))


def test_a_byte_order_mark_is_skipped() -> None:
    assert read_document(memoryview(b'\xef\xbb\xbf{"requests": [{}]}')).requests == b"[{}]"


def test_the_place_of_a_fault_is_looked_for_in_the_first_part_of_a_body_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile body of any size costs no more than that."""
    monkeypatch.setattr(split_document, "LOOKED_AT_MAX", 1024)
    body = b'{"requests": [' + b"{}," * 1000 + b"x]}"
    with pytest.raises(InvalidFile, match="the error is after the first"):
        read_document(memoryview(body))
    with pytest.raises(InvalidFile, match="unexpected 'x' at byte 14"):
        read_document(memoryview(b'{"requests": [x' + body[15:]))


def test_json_that_is_no_object_is_refused_without_a_search_for_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_document, "find_fault", lambda *_: pytest.fail("it is valid JSON"))
    with pytest.raises(InvalidFile, match="must be an object"):
        read_document(memoryview(b"[" + b"1," * 1000 + b"1]"))
