"""Input formats: whatever a file is packed in, the same requests come out; damage is said with its place."""

import gzip
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.lines.file_formats import PlainText, detect, open_lines
from batchfile.lines.formats import native
from batchfile.lines.formats.shared import without_effect
from batchfile.testing import MemoryStore
from batchfile.types import Choice, Completion, Defaults, Failure, Usage
from tests.helpers.lines import (
    COLUMNS,
    REQUEST_KEYS,
    RESULT_COLUMNS,
    encode_result,
    openai_chat,
    parse_request,
    write_results,
)
from tests.helpers.local import bring_in, first_requests, inspect

try:
    from compression import zstd
except ImportError:
    from backports import zstd

pytestmark = pytest.mark.slow

TEXT = b"".join(b'{"custom_id":"%d","params":{"messages":[]}}\n' % n for n in range(5000))


def _read(path: Path) -> bytes:
    source = inspect(str(path))
    return b"".join(open_lines(source.path, source.format, None))


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl", "a.txt"])
def test_a_packed_file_gives_the_bytes_that_were_packed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(TEXT))
    assert _read(path) == TEXT


def test_several_packed_members_are_one_file(tmp_path: Path) -> None:
    gz, zst = tmp_path / "a.gz", tmp_path / "a.zst"
    gz.write_bytes(gzip.compress(TEXT) + gzip.compress(b"more\n"))
    zst.write_bytes(zstd.compress(TEXT) + zstd.compress(b"more\n"))
    assert _read(gz) == _read(zst) == TEXT + b"more\n"


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress)])
def test_cut_off_packed_data_is_refused_with_its_place(tmp_path: Path, ending: str, pack) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(pack(TEXT)[:-9])
    with pytest.raises(InvalidFile, match=r"is truncated after [\d,]+ bytes of text|is damaged after"):
        _read(path)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress)])
def test_damaged_packed_data_is_refused_with_its_place(tmp_path: Path, ending: str, pack) -> None:
    data = bytearray(pack(TEXT))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    with pytest.raises(InvalidFile, match=r"is damaged after [\d,]+ bytes of text"):
        _read(path)


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("a.jsonl.gz", b'{"cu', "named .gz"),
        ("a.zst", b'{"cu', "named .zst"),
        ("a.parquet", b'{"cu', "named .parquet"),
        ("a.jsonl", b"\xff\xfe{\x00", "UTF-16"),
        ("a.jsonl", b'{\x00"\x00', "UTF-16"),
        ("a.jsonl", b'\x00{\x00"', "UTF-16"),
        ("a.jsonl", b"PK\x03\x04", "zip"),
    ],
)
def test_a_file_that_is_not_what_it_seems_is_refused(name: str, head: bytes, words: str) -> None:
    with pytest.raises(InvalidFile, match=words):
        detect(name, head)


def test_packed_data_is_known_by_its_bytes_whatever_its_name() -> None:
    assert detect("a.jsonl", gzip.compress(b"x")[:4]) == "gzip"
    assert detect("stdin", zstd.compress(b"x")[:4]) == "zstd"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"custom_id": "a"}'.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"PAR1 and so on", "is Parquet data"),
        (gzip.compress(TEXT, mtime=0), "is compressed twice, with gzip data inside; compress it once"),
        (zstd.compress(TEXT), "is compressed twice, with zstd data inside; compress it once"),
        (b"PK\x03\x04 and so on", "is a zip archive"),
    ],
)
def test_what_is_packed_must_be_text(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(data))
    with pytest.raises(InvalidFile, match=words):
        _read(path)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("data", [b"", b"a", b"abc", b"abcd", TEXT[:500]])
def test_text_that_arrives_in_pieces_is_the_same(data: bytes, size: int) -> None:
    for packed in (data, gzip.compress(data), zstd.compress(data)):
        text = PlainText("x", "y")
        pieces = [piece for at in range(0, len(packed), size) for piece in text.read(packed[at : at + size])]
        assert b"".join([*pieces, *text.finish()]) == data


@given(st.integers(1, 30), st.integers(1, 25), st.booleans())
def test_a_limit_takes_whole_lines_from_the_front_and_counts_no_blank_ones(size: int, num: int, ends: bool) -> None:
    lines = [b"", b'{"a":1}', b"  ", b'{"b":"' + b"x" * 40 + b'"}', b"", b"3", b"4", b"5"]
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    found = b"".join(first_requests(_pieces(data, size), num))
    assert data.startswith(found)
    kept = [line for line in found.split(b"\n") if line.strip()]
    assert kept == [line for line in lines if line.strip()][:num]


def test_a_limit_reads_no_further_than_it_must() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b'{"a":1}\n'

    assert b"".join(first_requests(endless(), 3)) == b'{"a":1}\n' * 3


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "device"])
def test_a_file_that_can_not_be_used_is_refused_before_anything_is_made_of_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jsonl"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "device":
        path = Path("/dev/null")
    with pytest.raises(InvalidFile, match=r"no such file|is a directory|is empty|not a regular file"):
        inspect(str(path))


def test_a_file_that_changes_while_it_is_copied_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(TEXT))
    source = inspect(str(path))
    path.write_bytes(gzip.compress(TEXT + TEXT))
    with pytest.raises(InvalidFile, match="was changed while it was read"):
        bring_in(MemoryStore(), source, "batches/a/input-b.jsonl")


def _table(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in _read(path).splitlines()]


def test_parquet_rows_with_prompts_become_requests(tmp_path: Path) -> None:
    path = _table(
        tmp_path / "a.parquet",
        custom_id=["a", "b", "c"],
        system=["be brief", None, "x"],
        prompt=["hi", "ho", "hu"],
        max_tokens=[1, None, 3],
        temperature=[0.5, float("nan"), None],
        company=["not", "for", "us"],
    )
    assert _rows(path) == [
        {
            "custom_id": "a",
            "params": {
                "max_tokens": 1,
                "temperature": 0.5,
                "system": "be brief",
                "messages": [{"role": "user", "content": "hi"}],
            },
        },
        {"custom_id": "b", "params": {"messages": [{"role": "user", "content": "ho"}]}},
        {"custom_id": "c", "params": {"max_tokens": 3, "system": "x", "messages": [{"role": "user", "content": "hu"}]}},
    ]


def _turns_with(kind: pa.DataType, value: object) -> pa.Array:
    fields = [("role", pa.string()), ("content", pa.string()), ("x", kind)]
    return pa.array([[{"role": "user", "content": "hi", "x": value}]], pa.list_(pa.struct(fields)))


@pytest.mark.parametrize("as_text", [True, False])
def test_parquet_messages_may_be_structs_or_json_text(tmp_path: Path, as_text: bool) -> None:
    turns = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]]
    path = _table(tmp_path / "a.parquet", custom_id=["a"], messages=[json.dumps(turns[0])] if as_text else turns)
    assert _rows(path) == [{"custom_id": "a", "params": {"messages": turns[0]}}]


def test_whole_numbers_that_a_data_frame_made_floats_are_whole_again(tmp_path: Path) -> None:
    path = _table(tmp_path / "a.parquet", custom_id=["a"], prompt=["x"], max_tokens=[7.0], stop_sequences=["END"])
    params = _rows(path)[0]["params"]
    assert repr(params["max_tokens"]) == "7"
    assert params["stop_sequences"] == ["END"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": ["x"]}, "no column custom_id"),
        ({"custom_id": ["a"]}, "messages or prompt"),
        ({"custom_id": ["a"], "prompt": ["x"], "messages": ["[]"]}, "both columns"),
        ({"custom_id": [True], "prompt": ["x"]}, "column custom_id is bool; it must be text or a whole number"),
        ({"custom_id": ["a"], "prompt": [[1]]}, "column prompt is list"),
        (
            {"custom_id": ["a"], "prompt": ["x"], "max_tokens": ["7"]},
            "column max_tokens is string",
        ),
        ({"custom_id": ["a"], "prompt": ["x"], "max_token": [7]}, "did you mean max_tokens"),
        *[
            (
                {"custom_id": ["a"], "prompt": ["x"], key: ["{}"]},
                f"column {key}: {key} is not supported in Parquet; drop it",
            )
            for key in (
                "response_format",
                "tools",
                "logprobs",
                "metadata",
                "min_tokens",
                "thinking",
                "params",
                "body",
                "model_hint",
            )
        ],
        (
            {"custom_id": ["a"], "prompt": ["x"], "stop": ["."]},
            "column stop: is not supported; rename it to stop_sequences, or",
        ),
        (
            {"custom_id": ["a"], "prompt": ["x"], "max_new_tokens": [1]},
            "column max_new_tokens: is not supported; rename it to max_tokens, or to another name if it is data",
        ),
        (
            {"custom_id": ["a"], "prompt": ["x"], "max_tokens": [1], "max_completion_tokens": [1]},
            "column max_completion_tokens: max_completion_tokens is not supported in Parquet; drop it",
        ),
        (
            {"custom_id": ["a"], "prompt": ["x"], "system_prompt": ["x"]},
            "column system_prompt: is not supported here; put it into system, or rename it if it is data",
        ),
        (
            {"custom_id": ["a"], "prompt": ["x"], "n": [2]},
            "column n: n is not supported in Parquet; drop it",
        ),
        (
            {"custom_id": ["a"], "prompt": ["x"], "json_schema": ["{}"]},
            "column json_schema: json_schema is not supported",
        ),
        (
            {"custom_id": ["a"], "messages": _turns_with(pa.timestamp("ns"), 1_700_000_000_123_456_789)},
            r"column messages.x is timestamp\[ns\]; cast it to text, or drop it",
        ),
        ({"custom_id": ["a"], "messages": _turns_with(pa.time64("ns"), 1)}, r"column messages.x is time64"),
        ({"custom_id": ["a"], "messages": _turns_with(pa.timestamp("ms"), 2**60)}, r"column messages.x is timestamp"),
        ({"custom_id": ["a"], "messages": _turns_with(pa.binary(), b"x")}, r"column messages.x is binary"),
    ],
)
def test_a_column_that_is_missing_or_wrong_is_named(tmp_path: Path, columns: dict, words: str) -> None:
    with pytest.raises(InvalidFile, match=words):
        _read(_table(tmp_path / "a.parquet", **columns))


def test_a_column_of_a_request_key_without_values_asks_for_nothing(tmp_path: Path) -> None:
    table = _table(tmp_path / "a.parquet", custom_id=["a"], prompt=["x"], tools=pa.nulls(1), speed=pa.nulls(1))
    assert [list(row["params"]) for row in _rows(table)] == [["messages"]]


def test_every_key_of_a_request_is_a_column_or_rejected_or_has_no_effect() -> None:
    keys = native.Params.model_fields.keys() | openai_chat.Body.model_fields.keys()
    ignored = without_effect(native.Params) | without_effect(openai_chat.Body)
    assert keys - ignored <= REQUEST_KEYS | set(COLUMNS)
    assert ignored & REQUEST_KEYS == {"metadata"}  # which names a pool in the lines of a stage
    assert not REQUEST_KEYS & set(COLUMNS)


def test_two_columns_or_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["x"]], names=["custom_id", "custom_id", "prompt"]), path)
    with pytest.raises(InvalidFile, match="has 2 columns named custom_id; keep one of them"):
        _read(path)
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("content", pa.string())])
    with pytest.raises(InvalidFile, match="messages has 2 fields named content; keep one of them"):
        _read(_table(path, custom_id=["a"], messages=pa.array([None], pa.list_(turn))))


@pytest.mark.parametrize("text", ["bad json", "[" * 100_000, '[{"role":'])
def test_a_row_whose_messages_are_no_json_is_a_bad_line_and_the_others_run(tmp_path: Path, text: str) -> None:
    good = '[\n {"role": "user", "content": "hi"}\n]'
    first, second = _rows(_table(tmp_path / "a.parquet", custom_id=["a", "b"], messages=[text, good]))
    assert first == {"custom_id": "a", "params": {"messages": text}}
    assert second == {"custom_id": "b", "params": {"messages": [{"role": "user", "content": "hi"}]}}


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.json_(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_is_text_however_a_column_keeps_it(tmp_path: Path, kind: pa.DataType) -> None:
    turns = '[{"role":"user","content":"hi"}]'
    plain = pa.array([turns], getattr(kind, "storage_type", pa.string()))
    packed = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
    path = _table(tmp_path / "a.parquet", custom_id=["a"], messages=packed)
    assert _rows(path) == [{"custom_id": "a", "params": {"messages": json.loads(turns)}}]


def test_ids_that_a_data_frame_made_floats_are_whole_numbers_and_others_fail_alone(tmp_path: Path) -> None:
    path = _table(tmp_path / "a.parquet", custom_id=[17.0, 17.5, None], prompt=["x", "y", "z"])
    lines = _read(path).splitlines()
    assert parse_request(lines[0], Defaults(max_tokens=1)).custom_id == "17"
    for line, words in zip(lines[1:], ("got 17.5", "got null"), strict=True):
        with pytest.raises(InvalidRequest, match=f"custom_id: must be a string or a whole number, {words}"):
            parse_request(line, Defaults(max_tokens=1))


def test_a_decimal_is_a_number_and_an_infinite_one_is_no_default(tmp_path: Path) -> None:
    path = _table(
        tmp_path / "a.parquet",
        custom_id=["a", "b"],
        prompt=["x", "y"],
        temperature=[0.5, float("inf")],
        top_p=[Decimal("0.90"), Decimal("1.00")],
        max_tokens=[Decimal("7.0"), Decimal("8.0")],
    )
    first, second = (line["params"] for line in _rows(path))
    assert (first["temperature"], first["top_p"], repr(first["max_tokens"])) == (0.5, 0.9, "7")
    with pytest.raises(InvalidRequest, match=r'params\.temperature: must be a number, got "inf"'):
        parse_request(json.dumps({"custom_id": "b", "params": second}).encode(), Defaults())


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + b"nothing of the kind" * 10)
    with pytest.raises(InvalidFile, match="damaged"):
        _read(path)


def test_results_become_rows_with_one_column_for_each_fact(tmp_path: Path) -> None:
    usage = Usage(input_tokens=3, output_tokens=2, cached_tokens=1)
    lines = [
        encode_result("a", Completion(choices=(Choice("hi", "end_turn"),), usage=usage), "m"),
        encode_result(None, Failure(type="invalid_request_error", message="no"), ""),
    ]
    write_results(lines, str(tmp_path / "out.parquet"))
    table = pq.read_table(tmp_path / "out.parquet")
    assert tuple(table.column_names) == RESULT_COLUMNS
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("a", "succeeded", "hi", "end_turn", "m", 3, 2, 1, None, None),
        (None, "errored", None, None, None, None, None, None, "invalid_request_error", "no"),
    ]


def test_an_empty_first_piece_hides_nothing() -> None:
    text = PlainText("the body", "")
    assert list(text.read(b"")) == []
    with pytest.raises(InvalidFile, match="UTF-16"):
        list(text.read("x".encode("utf-16") * 100))
