"""Files that are small and unpack to much: in an inbox or before `batchfile run`, they cost time and no memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.types import Defaults
from tests.helpers.lines import CHUNK_BYTES, detect, iter_lines, open_lines, parquet_lines, parse_request, zstd

MIB = 1024 * 1024
# In a process of its own, so that nothing but this is measured: MiB at the most, beyond what it had before.
READ = """
import resource, sys
from batchfile.lines.file_formats import detect, open_text
import pyarrow.parquet, msgspec
from batchfile.lines.framing import iter_lines
from batchfile.lines.parquet import parquet_lines
path = sys.argv[1]
kind = detect(path, open(path, "rb").read(4))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = parquet_lines(path) if kind == "parquet" else open_text(path, kind, None)
num = 0
for chunk in iter_lines(read):
    num += 1
    if num == int(sys.argv[2]):
        break
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def grown_mib(path: Path, num_lines: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(num_lines)], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def bomb_of_values(path: Path) -> None:
    """One value of 4 MiB, which 1,000 rows name."""
    rows = 1000
    prompts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 4 * MIB]))
    pq.write_table(pa.table({"custom_id": [str(row) for row in range(rows)], "prompt": prompts}), path)


def bomb_of_turns(path: Path) -> None:
    """100,000 turns in each row, all the same."""
    turns = [{"role": "user", "content": "x"}] * 100_000
    pq.write_table(pa.table({"custom_id": [str(row) for row in range(32)], "messages": [turns] * 32}), path)


def bomb_of_zeros(path: Path) -> None:
    """512 MiB without a line break."""
    with zstd.ZstdFile(path, "w") as file:
        for _ in range(128):
            file.write(bytes(4 * MIB))


@pytest.mark.parametrize(
    ("make", "name", "num_lines"),
    [(bomb_of_values, "a.parquet", 33), (bomb_of_turns, "a.parquet", 3), (bomb_of_zeros, "a.jsonl.zst", 1)],
)
def test_a_bomb_is_read_in_bounded_memory(tmp_path: Path, make: Any, name: str, num_lines: int) -> None:
    path = tmp_path / name
    make(path)
    assert path.stat().st_size < MIB // 4
    assert grown_mib(path, num_lines) < 500


def test_text_comes_out_of_a_bomb_in_small_pieces_and_its_nul_bytes_are_not_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    bomb_of_zeros(path)
    sizes = []

    def chunks() -> Any:
        for chunk in open_lines(str(path), detect(str(path), path.read_bytes()[:4]), None):
            sizes.append(len(chunk))
            yield chunk

    assert list(iter_lines(chunks())) == []
    assert max(sizes) <= CHUNK_BYTES


def test_a_packed_file_may_not_ask_for_a_huge_window(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    options = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.enable_long_distance_matching: 1}
    path.write_bytes(zstd.compress(b'{"custom_id": "a"}\n' * 10_000_000, options=options)[:MIB])
    with pytest.raises(InvalidFile, match="zstd"):
        list(open_lines(str(path), "zstd", None))


@pytest.mark.parametrize("messages", ["[" * 100_000, "[" * 995 + "]" * 995, '{"a":' * 50_000, "9" * 5000, "NaN"])
def test_rows_of_hostile_json_are_refused_one_by_one(tmp_path: Path, messages: str) -> None:
    path = tmp_path / "a.parquet"
    good = '[{"role": "user", "content": "x"}]'
    pq.write_table(pa.table({"custom_id": ["good", "bad"], "messages": [good, messages]}), path)
    first, second = b"".join(parquet_lines(str(path))).splitlines()
    assert parse_request(first, Defaults()).custom_id == "good"
    with pytest.raises(InvalidRequest, match="messages"):
        parse_request(second, Defaults())


def test_text_in_parquet_that_is_no_utf8_is_said_to_be_such(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"custom_id": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string()), "prompt": ["x"]}), path
    )
    with pytest.raises(InvalidFile, match="UTF-8"):
        list(parquet_lines(str(path)))
