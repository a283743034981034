"""`batchfile run` of several inputs, as a real process with the echo engine, and `batchfile.run` of a list.

Where a test needs a certain moment (the first file is written, the second still runs), a few lines in the process hold
back the last answer of the file b until that moment. No test depends on a timing.
"""

import gzip
import json
import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchfile
from batchfile.errors import InvalidFile, OutputTaken
from tests.helpers.cli import Exit
from tests.helpers.local import lock_folder, lock_output
from tests.warm import Warm

WAIT_S = 1200.0  # only against a hang
# Each engine that is built adds a line to the file `engines`.
COUNTED = """
import os
from batchfile.engine.echo import EchoEngine
init = EchoEngine.__init__
def counted(self, **options):
    init(self, **options)
    with open("engines", "a") as file:
        file.write("built\\n")
EchoEngine.__init__ = counted
"""
# The last answer of b is held back until the results of a are written; then this happens.
HELD_UNTIL_A_IS_WRITTEN = """
add, step = EchoEngine.add, EchoEngine.step
held, given = set(), []
def noted(self, key, prepared):
    if prepared.request.custom_id == "b29":
        held.add(key)
    add(self, key, prepared)
def holding(self):
    done = given + step(self)
    given[:] = [one for one in done if one.key in held]
    if given and os.path.exists("out/a.jsonl.receipt.json"):
        {then}
    return [one for one in done if one.key not in held]
EchoEngine.add, EchoEngine.step = noted, holding
"""


MAIN = """
import sys
from batchfile.cli.group import main
sys.argv[0] = "batchfile"
main()
"""


def line(custom_id: str, **params: object) -> dict[str, object]:
    return {"custom_id": custom_id, "params": {"messages": [{"role": "user", "content": f"say {custom_id}"}], **params}}


def lines(name: str, num: int = 30) -> bytes:
    return b"".join(json.dumps(line(f"{name}{n}")).encode() + b"\n" for n in range(num))


def ids(path: str | Path) -> list[str]:
    return [json.loads(row)["custom_id"] for row in Path(path).read_bytes().splitlines()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.jsonl").write_bytes(lines(name))
    return tmp_path


def begin(*arguments: str, before: str = "", **variables: str) -> Warm:
    program = f"{COUNTED}{before}{MAIN}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    environ = {**kept, "BATCHFILE_ECHO_EXECUTIONS": "executed", **variables}
    return Warm("-c", [program, "run", "--engine", "echo", *arguments], cwd=Path.cwd(), env=environ, text=True)


def run(*arguments: str, code: int = 0, before: str = "") -> tuple[str, str]:
    """What it wrote to stdout and stderr."""
    process = begin(*arguments, before=before)
    out, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == code, said
    return out, said


def num_engines() -> int:
    return len(Path("engines").read_text().splitlines()) if Path("engines").exists() else 0


def executed() -> list[str]:
    return Path("executed").read_text().split()


def test_each_file_gets_its_results_and_its_receipt_and_one_engine_runs_all(folder: Path) -> None:
    Path("in/d.jsonl.gz").write_bytes(gzip.compress(lines("d")))
    pq.write_table(pa.table({"custom_id": ["e0"], "prompt": ["Write."]}), folder / "in" / "e.parquet")
    Path("in/README.md").write_text("not a request")
    out, said = run("in/a.jsonl", "in/[bc].jsonl", "in/", "-o", "out")
    assert out == ""
    assert num_engines() == 1
    for name in "abcd":
        assert ids(f"out/{name}.jsonl") == [f"{name}{n}" for n in range(30)]
        assert json.loads(Path(f"out/{name}.jsonl.receipt.json").read_text())["input"]["requests"] == 30
    assert pq.read_table("out/e.parquet").column("custom_id").to_pylist() == ["e0"]
    assert "in/: skipped README.md; files of requests are named " in said
    assert "121 requests in 5 files; loading echo\n" in said
    assert "121/121 requests (100 %), 5/5 files, " in said
    assert [row.partition(": ")[0] for row in said.splitlines()[-6:-1]] == [
        "in/a.jsonl",
        "in/b.jsonl",
        "in/c.jsonl",
        "in/d.jsonl.gz",
        "in/e.parquet",
    ]
    assert said.endswith("5 of 5 files done: 121 of 121 requests succeeded\n")


def test_a_run_that_is_killed_has_written_what_had_ended_and_the_same_command_finishes_the_rest() -> None:
    kill = HELD_UNTIL_A_IS_WRITTEN.format(then="os.kill(os.getpid(), 9)")
    run("in", "-o", "out/", code=-signal.SIGKILL, before=kill)
    assert ids("out/a.jsonl") == [f"a{n}" for n in range(30)]
    assert not Path("out/b.jsonl").exists()
    assert {"a29", "b29"} <= set(executed()), "b was running before the end of a was written"
    Path("executed").unlink()

    _, said = run("in", "-o", "out/")
    assert "resuming: 1 of 3 files are done\n" in said
    assert not [name for name in executed() if name.startswith("a")]
    assert "b29" in executed()
    for name in "abc":
        assert ids(f"out/{name}.jsonl") == [f"{name}{n}" for n in range(30)]
    assert num_engines() == 2

    _, said = run("in", "-o", "out/")
    assert num_engines() == 2, "nothing is left, so no engine is built"
    assert said.endswith("3 of 3 files done: 90 of 90 requests succeeded\n")


def test_ctrl_c_keeps_what_has_finished_and_names_the_command_that_resumes() -> None:
    stop = HELD_UNTIL_A_IS_WRITTEN.format(then="globals().pop('once', 0) and os.kill(os.getpid(), 2)")
    _, said = run("in", "-o", "out/", "--grace", "0", code=Exit.INTERRUPTED, before=f"once = 1\n{stop}")
    assert "gave up on 1 request in flight; finished requests are kept\n" in said
    assert "in/a.jsonl: 30 of 30 requests succeeded" in said
    assert said.endswith("interrupted; to resume:\n  batchfile run --engine echo in -o out/ --grace 0\n")
    _, said = run("in", "-o", "out/", "--grace", "0")
    assert said.endswith("3 of 3 files done: 90 of 90 requests succeeded\n")


def test_a_file_that_cannot_be_used_is_reported_and_the_others_run() -> None:
    Path("in/b.jsonl").write_bytes(b"\n\n")
    Path("in/c.jsonl").write_bytes(lines("c") + b"not JSON\n")
    _, said = run("in/a.jsonl", "in/b.jsonl", "in/c.jsonl", "in/gone.jsonl", "-o", "out/", code=Exit.INVALID_INPUT)
    assert ids("out/a.jsonl") == [f"a{n}" for n in range(30)]
    assert len(ids("out/c.jsonl")) == 31
    assert not Path("out/b.jsonl").exists()
    assert "batchfile: in/gone.jsonl: no such file\n" in said
    assert "in/c.jsonl: 1 line is rejected and does not run: line 31: " in said
    assert said.endswith("2 of 4 files done: 60 of 61 requests succeeded\n")


def test_the_exit_code_is_the_worst_of_all_files() -> None:
    Path("in/c.jsonl").write_bytes(lines("c") + b"not JSON\n")
    run("in", "-o", "out/", code=Exit.FAILED_REQUESTS)
    Path("in/a.jsonl").write_bytes(lines("other").replace(b'"max_tokens"', b'"max_tokens" '))
    Path("in/b.jsonl").write_bytes(b"")
    _, said = run("in", "-o", "out/", code=Exit.OUTPUT_TAKEN)
    assert "out/a.jsonl has 30 finished answers of a run that differs: the input has changed. None" in said
    assert "in/b.jsonl: is empty" in said
    assert said.endswith("1 of 3 files done: 30 of 31 requests succeeded\n")
    run("in/a.jsonl", "in/c.jsonl", "-o", "out/", "--restart", code=Exit.FAILED_REQUESTS)
    assert ids("out/a.jsonl")[0] == "other0"


def test_json_has_a_receipt_for_each_file_in_the_order_of_the_inputs_and_errors_on_stderr() -> None:
    out, said = run("in/b.jsonl", "in/gone.jsonl", "in/a.jsonl", "-o", "out/", "--json", code=Exit.INVALID_INPUT)
    receipts = [json.loads(row) for row in out.splitlines()]
    assert [Path(receipt["output"]["path"]).name for receipt in receipts] == ["b.jsonl", "a.jsonl"]
    told = [json.loads(row) for row in said.splitlines()]
    assert [row["error"]["exit_code"] for row in told if "error" in row] == [Exit.INVALID_INPUT]
    progress = [row for row in told if row.get("event") == "progress"]
    assert (progress[-1]["num_files"], progress[-1]["num_files_done"]) == (2, 2)


def test_lines_that_were_added_to_one_file_run_alone() -> None:
    run("in", "-o", "out/")
    Path("executed").unlink()
    Path("in/b.jsonl").write_bytes(lines("b", 33))
    run("in", "-o", "out/")
    assert sorted(executed()) == ["b30", "b31", "b32"]
    assert ids("out/b.jsonl") == [f"b{n}" for n in range(33)]


def test_a_new_file_of_the_folder_runs_alone() -> None:
    run("in", "-o", "out/")
    Path("executed").unlink()
    Path("in/0.jsonl").write_bytes(lines("new", 2))
    run("in", "-o", "out/")
    assert sorted(executed()) == ["new0", "new1"]


def test_one_file_may_go_into_a_folder_too() -> None:
    run("in/a.jsonl", "-o", "out/")
    assert ids("out/a.jsonl") == [f"a{n}" for n in range(30)]


def test_a_wrong_command_runs_nothing() -> None:
    for arguments, code, words in (
        (["in/a.jsonl", "in/*.csv", "-o", "out/"], Exit.INVALID_INPUT, "in/*.csv: no file matches this pattern"),
        (["in/a.jsonl", "in/b.jsonl", "-o", "out.jsonl"], Exit.USAGE, "several inputs need a folder as the output"),
        (["in/a.jsonl", "in/b.jsonl", "-o", "in/"], Exit.USAGE, "a.jsonl: is the input itself"),
        (["in", "-o", "out/", "--stage", "emial"], Exit.USAGE, "is unknown"),
    ):
        _, said = run(*arguments, code=code)
        assert words in said
        assert not Path("executed").exists()


def test_a_list_gives_a_list_of_receipts_in_its_order() -> None:
    paths = ["in/c.jsonl", Path("in/a.jsonl")]
    receipts = batchfile.run(paths, "out", engine="echo", progress=False)
    assert [receipt.input.path for receipt in receipts] == [str(Path(path).resolve()) for path in paths]
    assert all(receipt.is_all_succeeded for receipt in receipts)
    assert batchfile.run(iter(paths), "out", engine="echo", progress=False) == receipts
    assert len(batchfile.run(["in/*.jsonl"], "out", engine="echo", progress=False)) == 3


def test_the_error_of_a_file_in_a_list_is_raised_once_the_others_are_done() -> None:
    Path("in/b.jsonl").write_bytes(b"")
    with pytest.raises(InvalidFile, match=r"in/b\.jsonl: is empty") as raised:
        batchfile.run(["in", "in/gone.jsonl"], "out", engine="echo", progress=False)
    assert raised.value.__notes__ == ["in/gone.jsonl: no such file"]
    assert len(ids("out/a.jsonl")) == len(ids("out/c.jsonl")) == 30


def test_two_processes_never_write_the_same_results(folder: Path) -> None:
    (folder / "out").mkdir()
    with (
        lock_folder(str(folder / "out")),
        pytest.raises(OutputTaken, match=f"another batchfile process is writing {folder}/out; wait for it"),
    ):
        batchfile.run("in/a.jsonl", "out/a.jsonl", engine="echo", progress=False)
    with lock_folder(str(folder / "out")), pytest.raises(OutputTaken, match="another batchfile process is writing"):
        batchfile.run(["in"], "out", engine="echo", progress=False)
    with lock_output(str(folder / "out" / "a.jsonl")), pytest.raises(OutputTaken, match=r"is writing .*/out/a\.jsonl;"):
        batchfile.run(["in"], "out", engine="echo", progress=False)
    assert not Path("out/a.jsonl").exists()
    assert len(ids("out/b.jsonl")) == 30
    batchfile.run("in/a.jsonl", "out/a.jsonl", engine="echo", progress=False)
    assert not list(Path("out").glob(".*.lock"))


def test_a_prompt_runs_over_the_tables_and_texts_of_a_folder(folder: Path) -> None:
    (folder / "rows").mkdir()
    (folder / "rows/a.csv").write_text("prompt\nx\n")
    (folder / "rows/a.jsonl").write_text('{"prompt": "x"}\n')
    (folder / "rows/t.txt").write_text("x\n")
    (folder / "rows/notes.md").write_text("x\n")
    batchfile.run(["rows"], "out/", engine="echo", prompt="say {{ prompt }}", progress=False)
    assert Path("out/a.csv").read_text() == "prompt,answer,error\nx,say x,\n"
    assert json.loads(Path("out/a.jsonl").read_text()) == {"prompt": "x", "answer": "say x", "error": None}
    assert Path("out/t.txt").read_text() == "say x\n"
    assert not Path("out/notes.md").exists()
