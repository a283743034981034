"""Records of a file, byte for byte: what a sample and parts of it are made of."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidFile
from batchfile.lines.framing import iter_lines
from batchfile.lines.records import count, csv_pieces, drawn, ends_of_parts, picked, pieces
from batchfile.types import LINE_BYTES_MAX
from tests.helpers.lines import FileKind, read_rows

FILES = st.lists(st.sampled_from([b'{"a":1}', b"\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"\0", b"x", b"\n\n"])).map(
    b"".join
)


def chunked(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(FILES, st.integers(1, 20))
def test_pieces_are_all_bytes_and_their_records_are_the_lines_that_a_run_reads(data: bytes, size: int) -> None:
    found = list(pieces(chunked(data, size)))
    assert b"".join(piece.data for piece in found) == data
    assert count(found) == len(list(iter_lines([data])))
    assert {piece.record for piece in found} - {None} == set(range(count(found)))


def test_a_line_over_the_limit_is_one_record_that_is_never_held_whole() -> None:
    chunk = b"x" * 2**20
    num = 2 * LINE_BYTES_MAX // len(chunk)
    found = list(pieces([b"a\n", *[chunk] * num, b"\nb\n"]))
    assert count(found) == 3
    assert max(len(piece.data) for piece in found) <= LINE_BYTES_MAX + len(chunk)
    assert len(b"".join(picked(found, [1]))) == num * len(chunk) + 1


CSV_PARTS = ["a,b", '"', '""', "\n", "\r\n", ",", " ", '"x\ny"', "é", "\ufeff"]


@given(st.lists(st.sampled_from(CSV_PARTS)).map("".join), st.integers(1, 20))
def test_records_of_csv_are_all_bytes_and_the_rows_that_a_run_reads(text: str, size: int) -> None:
    data = text.encode() + b"\n"
    kind = FileKind(layout="csv", content="rows", delimiter=",")
    try:
        num = len(list(read_rows([data], kind, "in.csv")))
    except InvalidFile as error:
        if "columns named" in str(error) or "header is not valid" in str(error):
            return  # what the rows are is not known
        if "has a header and no rows" in str(error):
            assert count(csv_pieces([data], ",", "in.csv")) == 0
            return
        with pytest.raises(InvalidFile, match="is never closed"):
            list(csv_pieces([data], ",", "in.csv"))
        return
    found = list(csv_pieces(chunked(data, size), ",", "in.csv"))
    assert b"".join(piece.data for piece in found) == data
    assert count(found) == num


def test_a_record_of_csv_that_never_ends_is_not_held() -> None:
    chunks = (b'a\n"' if n == 0 else b"x" * 2**20 for n in range(2 * LINE_BYTES_MAX // 2**20))
    with pytest.raises(InvalidFile, match="begins on line 2 is longer than 16 MiB; close its quote, or shorten it"):
        list(csv_pieces(chunks, ",", "in.csv"))


def test_a_sample_is_the_same_for_a_seed_and_in_order() -> None:
    assert list(drawn(1000, 5, 1)) == list(drawn(1000, 5, 1)) == sorted(drawn(1000, 5, 1))
    assert list(drawn(1000, 5, 1)) != list(drawn(1000, 5, 2))
    assert list(drawn(3, 7, 0)) == [0, 1, 2]


def test_every_set_of_lines_is_equally_likely() -> None:
    found = Counter(tuple(drawn(5, 2, seed)) for seed in range(10_000))
    assert len(found) == 10
    assert all(850 < num < 1150 for num in found.values())  # 5 standard deviations


def test_picked_records_are_unchanged_and_blank_lines_are_left_out() -> None:
    data = b"\xef\xbb\xbfa\r\n\n b \n\n\nc"
    assert list(picked(pieces([data]), [0, 2])) == [b"\xef\xbb\xbfa\r\n", b"c"]


@pytest.mark.parametrize(
    ("total", "how", "ends"),
    [
        (10, {"lines": 4}, [4, 8, 10]),
        (8, {"lines": 4}, [4, 8]),
        (3, {"lines": 4}, [3]),
        (10, {"parts": 3}, [3, 6, 10]),
        (2, {"parts": 5}, [1, 2]),
    ],
)
def test_parts_end_where_they_should(total: int, how: dict[str, int], ends: list[int]) -> None:
    assert ends_of_parts(total, **how) == ends


@given(st.integers(1, 200), st.integers(1, 50))
def test_parts_of_equal_size_differ_by_at_most_one(total: int, parts: int) -> None:
    ends = ends_of_parts(total, parts=parts)
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert sum(sizes) == total
    assert len(sizes) == min(parts, total)
    assert max(sizes) - min(sizes) <= 1
