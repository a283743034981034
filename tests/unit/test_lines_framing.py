"""Bytes into lines: whatever the chunks, the same lines at the same places."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.lines import framing
from batchfile.lines.framing import BOM, Line, data_of, iter_lines

LIMIT = 12


def naive(data: bytes, start: int = 0, limit: int = LIMIT) -> list[Line]:
    found, at = [], start
    for row, raw in enumerate(data.split(b"\n"), 1):
        end = min(at + len(raw) + 1, start + len(data))
        text = None if len(raw) > limit else raw.removeprefix(BOM)
        if text is None:
            found.append(Line(at, end, row, None, raw.removeprefix(BOM)))
        elif text.strip():
            found.append(Line(at, end, row, text.removesuffix(b"\r")))
        at += len(raw) + 1
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


pieces = st.lists(st.sampled_from([b"a", b"{}", b"\n", b"\r\n", b" ", b"\t", BOM, b"0123456789"]), max_size=30)


@given(data=pieces.map(b"".join), places=st.lists(st.integers(0, 400)), start=st.sampled_from([0, 7]))
def test_lines_are_those_of_a_plain_split_whatever_the_chunks(data: bytes, places: list[int], start: int) -> None:
    chunks = cut(data, places)
    assert list(iter_lines(chunks, start, line_bytes_max=LIMIT)) == naive(data, start)


@given(data=pieces.map(b"".join))
def test_reading_again_from_any_line_gives_the_rest(data: bytes) -> None:
    lines = list(iter_lines([data], line_bytes_max=LIMIT))
    for n, line in enumerate(lines):
        assert list(iter_lines([data[line.start :]], line.start, line.row, line_bytes_max=LIMIT)) == lines[n:]


def test_a_byte_order_mark_is_skipped_at_the_start_of_each_file_that_was_joined() -> None:
    assert [line.data for line in iter_lines([BOM + b"a\n" + BOM + b"b" + BOM])] == [b"a", b"b" + BOM]
    assert [line.data for line in iter_lines([BOM + b"a"], start=5)] == [b"a"]


def test_nul_bytes_after_the_last_line_are_not_a_line() -> None:
    for tail in ([b"\0" * 5], [b"\0" * 8, b"\0" * 9], [b"\0" * 100]):
        assert [line.data for line in iter_lines([b"a\n", *tail], line_bytes_max=12)] == [b"a"]
    assert [line.data for line in iter_lines([b"a\nb\0\0", b"\0"])] == [b"a", b"b"]
    assert [line.data for line in iter_lines([b"a\n\0\0\nb"])] == [b"a", b"\0\0", b"b"]


def test_blank_lines_are_skipped_and_counted() -> None:
    assert [(line.row, line.start, line.data) for line in iter_lines([b"\n \r\na\r\n\n\tb"])] == [
        (3, 4, b"a"),
        (5, 8, b"\tb"),
    ]


def test_an_over_long_line_is_told_without_its_data_and_the_next_one_is_read() -> None:
    chunks = [b"ok\n", *[b"x" * 5] * 10, b"\nok\n", b"y" * 13]
    assert list(iter_lines(chunks, line_bytes_max=12)) == [
        Line(0, 3, 1, b"ok"),
        Line(3, 54, 2, None, b"x" * 50),
        Line(54, 57, 3, b"ok"),
        Line(57, 70, 4, None, b"y" * 13),
    ]


def test_a_line_of_exactly_the_limit_is_legal() -> None:
    assert [line.data for line in iter_lines([b"x" * 6, b"x" * 6 + b"\n"], line_bytes_max=12)] == [b"x" * 12]


def test_nothing_gives_no_line() -> None:
    assert list(iter_lines([])) == []
    assert list(iter_lines([b"", b""])) == []
    assert list(iter_lines([BOM])) == []


@given(
    st.lists(st.sampled_from([b"{}", b'{"a":1}', b"\n", b"\n", b"\r\n", b" ", BOM, b"\0", b"0123456789"]), max_size=12),
    st.lists(st.integers(0, 400)),
    st.sampled_from([LIMIT, 10**6]),
)
def test_the_data_of_a_range_is_that_of_its_lines(found: list[bytes], places: list[int], limit: int) -> None:
    data = b"".join(found)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(framing, "LINE_BYTES_MAX", limit)
        expected = [line.data for line in iter_lines([data])]
        assert list(data_of(cut(data, places), len(data), len(expected))) == expected
