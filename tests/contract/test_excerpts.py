"""`batchfile sample` and `batchfile split` over every kind of file that they read."""

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.helpers.cli import exit_of, root
from tests.helpers.lines import zstd
from tests.helpers.local import run

PACK: dict[str, Callable[[bytes], bytes]] = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstd.compress}
UNPACK: dict[str, Callable[[bytes], bytes]] = {"": lambda data: data, ".gz": gzip.decompress, ".zst": zstd.decompress}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def batchfile(command: str, stdin: bytes = b"") -> Result:
    done = CliRunner().invoke(root, command.split(), input=io.BytesIO(stdin))
    assert not list(Path().glob(".batchfile-*"))
    return done


def code(command: str, message: str) -> int:
    """The exit code, after checking the message."""
    done = batchfile(command)
    assert done.exception is not None
    assert message in str(done.exception) + done.output
    return done.exit_code if isinstance(done.exception, SystemExit) else int(exit_of(done.exception))


def lines(num: int) -> list[bytes]:
    params = {"messages": [{"role": "user", "content": "hi"}]}
    return [json.dumps({"custom_id": f"r{n}", "params": params}).encode() + b"\n" for n in range(num)]


@pytest.mark.parametrize("ending", PACK)
def test_a_sample_has_lines_of_the_file_in_its_order_and_is_compressed_by_its_name(ending: str) -> None:
    given = lines(1000)
    Path(f"in.jsonl{ending}").write_bytes(PACK[ending](b"".join(given)))
    done = batchfile(f"sample in.jsonl{ending} -n 20 -o s.jsonl{ending}")
    assert (done.exit_code, done.output) == (0, f"wrote 20 of 1,000 lines to s.jsonl{ending}\n")
    found = UNPACK[ending](Path(f"s.jsonl{ending}").read_bytes()).splitlines(keepends=True)
    assert [given.index(line) for line in found] == sorted({given.index(line) for line in found})
    assert len(found) == 20
    assert batchfile(f"sample in.jsonl{ending} -n 20 -o -").stdout_bytes == b"".join(found)
    assert batchfile(f"sample in.jsonl{ending} -n 20 --seed 1 -o -").stdout_bytes != b"".join(found)


def test_a_sample_of_stdin_is_that_of_the_file() -> None:
    data = b"".join(lines(100))
    Path("in.jsonl").write_bytes(data)
    of_file = batchfile("sample in.jsonl -n 5 -o -").stdout_bytes
    assert batchfile("sample - -n 5 -o -", data).stdout_bytes == of_file
    assert batchfile("sample - -n 5 -o -", gzip.compress(data)).stdout_bytes == of_file


def test_a_sample_larger_than_the_file_is_the_file_and_says_so() -> None:
    Path("in.jsonl").write_bytes(b"".join(lines(3)))
    done = batchfile("sample in.jsonl -n 7 -o s.jsonl")
    assert done.output == "wrote all 3 lines to s.jsonl: in.jsonl has no more\n"
    assert Path("s.jsonl").read_bytes() == Path("in.jsonl").read_bytes()


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("how", ["--parts 3", "--lines 334"])
def test_parts_one_after_the_other_are_the_file(ending: str, how: str) -> None:
    data = b"\xef\xbb\xbf" + b"\r\n\n".join(lines(1000)).rstrip(b"\n")
    Path(f"my.in.jsonl{ending}").write_bytes(PACK[ending](data))
    done = batchfile(f"split my.in.jsonl{ending} {how} -o parts")
    names = [f"parts/my.in-000{n}-of-0003.jsonl{ending}" for n in (1, 2, 3)]
    assert done.stdout.splitlines() == names
    assert done.stderr == "wrote 1,000 lines to 3 parts in parts\n"
    assert sorted(map(str, Path("parts").iterdir())) == names
    parts = [UNPACK[ending](Path(name).read_bytes()) for name in names]
    assert b"".join(parts) == data
    assert [part.count(b"custom_id") for part in parts] in ([333, 333, 334], [334, 334, 332])


def test_parts_of_stdin_have_its_name() -> None:
    assert (
        "parts/stdin-0002-of-0002.jsonl.gz"
        in batchfile("split - --parts 2 -o parts", gzip.compress(b"".join(lines(4)))).stdout
    )


def test_no_part_is_empty() -> None:
    Path("in.jsonl").write_bytes(b"".join(lines(2)))
    done = batchfile("split in.jsonl --parts 5 -o parts")
    assert done.stderr == "wrote 2 lines to 2 parts in parts, one for each line: in.jsonl has no more\n"


def test_a_table_becomes_lines_of_its_requests() -> None:
    rows = {"custom_id": [f"r{n}" for n in range(1000)], "prompt": ["hi"] * 1000}
    pq.write_table(pa.table(rows), "in.parquet", row_group_size=300)
    assert batchfile("sample in.parquet -n 20 -o s.jsonl").exit_code == 0
    ids = [json.loads(line)["custom_id"] for line in Path("s.jsonl").read_text().splitlines()]
    assert sorted(set(ids), key=rows["custom_id"].index) == ids
    assert len(ids) == 20
    names = batchfile("split in.parquet --parts 3 -o parts").stdout.splitlines()
    assert names[0] == "parts/in-0001-of-0003.jsonl"
    lines_of_parts = "".join(Path(name).read_text() for name in names).splitlines()
    assert [json.loads(line)["custom_id"] for line in lines_of_parts] == rows["custom_id"]


@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", b","), (".csv", b";"), (".tsv", b"\t")])
def test_rows_of_csv_stay_whole_under_their_header(ending: str, delimiter: bytes) -> None:
    header = b"\xef\xbb\xbf" + delimiter.join([b"id", b'"a text"']) + b"\r\n"
    rows = [delimiter.join([b"%d" % n, b'"says ""hi""\r\n\nand more"']) + b"\r\n" for n in range(100)]
    Path(f"in{ending}.gz").write_bytes(gzip.compress(header + b"\r\n".join(rows)))
    done = batchfile(f"sample in{ending}.gz -n 5 -o s{ending}")
    assert done.output == f"wrote 5 of 100 lines to s{ending}\n"
    sample = Path(f"s{ending}").read_bytes()
    assert sample.startswith(header)
    found = sample.removeprefix(header).split(b'more"\r\n')[:-1]
    assert [rows.index(row + b'more"\r\n') for row in found] == sorted(int(row.split(delimiter)[0]) for row in found)
    names = batchfile(f"split in{ending}.gz --parts 2 -o parts").stdout.splitlines()
    assert names == [f"parts/in-000{n}-of-0002{ending}.gz" for n in (1, 2)]
    parts = [gzip.decompress(Path(name).read_bytes()) for name in names]
    assert all(part.startswith(header) for part in parts)
    assert b"".join(part.removeprefix(header) for part in parts) == b"\r\n".join(rows)


def test_text_is_sampled_as_text_and_an_array_as_lines() -> None:
    Path("in.txt").write_text("Say hi.\n\nSay ho.\nSay hu.")
    assert batchfile("sample in.txt -n 9 -o s.txt").exit_code == 0
    assert Path("s.txt").read_text() == "Say hi.\nSay ho.\nSay hu."
    Path("in.json").write_text(json.dumps([json.loads(line) for line in lines(10)], indent=1))
    assert batchfile("sample in.json -n 9 -o s.jsonl").exit_code == 0
    assert len(Path("s.jsonl").read_bytes().splitlines()) == 9
    assert batchfile("split in.json --lines 4 -o parts").stdout.splitlines()[0] == "parts/in-0001-of-0003.jsonl"


@pytest.mark.parametrize("seed", [0, 7])
def test_a_sample_has_the_lines_that_a_run_of_a_sample_answers(seed: int) -> None:
    Path("in.jsonl").write_bytes(b"\n".join(lines(100)))
    Path("in.csv").write_text("id,review\n" + "".join(f'r{n},"good,\nno {n}"\n\n' for n in range(100)))
    for ending, prompt in ((".jsonl", None), (".csv", "{{ review }}")):
        assert batchfile(f"sample in{ending} -n 9 --seed {seed} -o s{ending}").exit_code == 0
        run(f"in{ending}", f"out{ending}", engine="echo", prompt=prompt, sample=9, seed=seed, progress=False)
        found = [re.findall(r"\br\d+\b", Path(name + ending).read_text()) for name in ("s", "out")]
        assert list(dict.fromkeys(found[0])) == list(dict.fromkeys(found[1]))
        assert len(set(found[0])) == 9


def test_a_table_without_requests_is_sampled_as_rows() -> None:
    pq.write_table(pa.table({"review": ["good", "bad"], "stars": [5, 1]}), "in.parquet")
    assert batchfile("sample in.parquet -n 9 -o s.jsonl").exit_code == 0
    assert [json.loads(line)["stars"] for line in Path("s.jsonl").read_text().splitlines()] == [5, 1]
    assert batchfile("split in.parquet --lines 1 -o parts").stdout.splitlines()[1] == "parts/in-0002-of-0002.jsonl"


@pytest.mark.parametrize(
    ("command", "message", "exit_code"),
    [
        ("sample in.jsonl -n 1 -o in.jsonl", "in.jsonl exists; choose another output", 7),
        ("sample in.jsonl -n 1 -o held", "held exists", 7),
        ("split in.jsonl --lines 1 -o held", "held already holds other.txt; choose a new or empty folder", 7),
        ("split in.jsonl --lines 1 -o in.jsonl", "in.jsonl exists; choose another folder", 7),
        ("sample in.jsonl -n 1 -o no/out.jsonl", "does not exist; create it first", 2),
        ("sample in.jsonl -n 1 -o out.xlsx", "a sample has the format of its file; use a name ending in .jsonl", 2),
        ("sample in.jsonl -n 1 -o out.parquet", "a sample has the format of its file; use a name ending in .jsonl", 2),
        ("sample in.jsonl -n 0 -o out.jsonl", "'0' is not a whole number of at least 1", 2),
        ("sample none.jsonl -n 1 -o out.jsonl", "none.jsonl: no such file", 4),
        ("sample empty.jsonl -n 1 -o out.jsonl", "empty.jsonl: is empty", 4),
        ("sample blank.jsonl -n 1 -o out.jsonl", "blank.jsonl: contains no requests", 4),
        ("split blank.jsonl --lines 1 -o out", "blank.jsonl: contains no requests", 4),
        ("split cut.jsonl.gz --lines 1 -o out", "cut.jsonl.gz: the gzip data is truncated", 4),
        ("split bad.parquet --lines 1 -o out", "bad.parquet: the Parquet data is damaged", 4),
        ("sample in.csv -n 1 -o out.jsonl", "a sample has the format of its file; use a name ending in .csv", 2),
        ("sample head.csv -n 1 -o out.csv", "head.csv: has a header and no rows", 4),
        ("split open.csv --lines 1 -o out", "open.csv: a quote in the record that begins on line 2 is never closed", 4),
        ("sample one.json -n 1 -o out.jsonl", "one.json: is a JSON object that spans several lines", 4),
        ("split in.jsonl -o out", "give either --lines N or --parts N", 2),
        ("split in.jsonl --lines 1 --parts 1 -o out", "give either --lines N or --parts N", 2),
        ("split many.jsonl --lines 1 -o out", "would be 10,001 parts; the limit is 10,000", 2),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(command: str, message: str, exit_code: int) -> None:
    Path("in.jsonl").write_bytes(b"".join(lines(2)))
    Path("many.jsonl").write_bytes(b"".join(lines(10_001)))
    Path("in.csv").write_bytes(b"a,b\n1,2\n")
    Path("head.csv").write_bytes(b"a,b\n\n")
    Path("open.csv").write_bytes(b'a,b\n1,"2\n3,4\n')
    Path("one.json").write_bytes(b'{\n"custom_id": "a"\n}')
    Path("empty.jsonl").touch()
    Path("blank.jsonl").write_bytes(b"\n \n")
    Path("cut.jsonl.gz").write_bytes(gzip.compress(b"".join(lines(2)))[:-9])
    Path("bad.parquet").write_bytes(b"PAR1, but no more")
    Path("held").mkdir()
    Path("held/other.txt").touch()
    before = sorted(Path().rglob("*"))
    assert code(command, message) == exit_code
    assert sorted(Path().rglob("*")) == before


def test_an_empty_folder_is_filled() -> None:
    Path("in.jsonl").write_bytes(b"".join(lines(2)))
    Path("parts").mkdir()
    assert batchfile("split in.jsonl --parts 2 -o parts/").exit_code == 0
    assert len(list(Path("parts").iterdir())) == 2
