"""Errors of the command: JSON where its answer is JSON, and never the advice to repeat what would be done twice."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from batchfile.engine.fit import fitting_max_tokens
from batchfile.engine.http.answer import what_is_odd
from batchfile.errors import InvalidRequest
from batchfile.types import Sampling
from tests.warm import WAIT_S, Warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LINE = '{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}}\n'

NOTHING_CHANGED = "the output is incomplete, and nothing was changed; redirect it to a writable file"


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """`command`: without `batchfile`; may end in ` > FILE`."""
    (folder / "in.jsonl").write_text(LINE)
    words, _, target = command.partition(" > ")
    with open(target, "wb") if target else nullcontext(subprocess.PIPE) as stdout:
        process = Warm("batchfile", words.split(), cwd=folder, env=environ(folder), stdout=stdout, text=True)
    said = process.communicate(timeout=WAIT_S)
    return subprocess.CompletedProcess(process.args, process.wait(), *said)


def environ(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("ls --json --store nowhere", 2, "no such directory"),
        ("run nothing.jsonl -o out.jsonl --engine echo --json", 4, "no such file"),
        ("run in.jsonl -o out.jsonl --engine ech --json", 2, "is not one of 'vllm', 'http', 'echo'"),
        ("validate nothing.jsonl --json", 4, "nothing.jsonl: no such file"),
        ("validate in.jsonl --max-tokens 0 --json", 2, "is not a whole number"),
        ("estimate nothing.jsonl --json", 4, "no such file"),
        ("status --json", 2, "Missing argument"),
    ],
)
def test_with_json_an_error_is_json(tmp_path: Path, command: str, code: int, message: str) -> None:
    done = run(tmp_path, command)
    assert (done.returncode, done.stdout) == (code, "")
    error = json.loads(done.stderr)["error"]
    assert error["exit_code"] == code
    assert message in error["message"]


def test_results_that_stdout_does_not_take_are_not_called_kept(tmp_path: Path) -> None:
    done = run(tmp_path, "run in.jsonl -o - --engine echo > /dev/full")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == (
        "batchfile: stdout cannot be written (No space left on device): the results are lost; "
        "run it again with -o FILE, which can also resume"
    )


def test_results_that_are_in_a_store_are_fetched_from_there(tmp_path: Path) -> None:
    done = run(tmp_path, "run in.jsonl -o - --engine echo --store st > /dev/full")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "the results are kept: `batchfile results batch_" in last
    fetch = last.partition("`batchfile ")[2].partition("`")[0].replace("FILE", "out.jsonl")
    assert run(tmp_path, fetch).returncode == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["custom_id"] == "a"


def test_a_batch_whose_id_could_not_be_printed_is_not_submitted_again(tmp_path: Path) -> None:
    (tmp_path / "st").mkdir()
    done = run(tmp_path, "submit in.jsonl --stage email --store st > /dev/full")
    assert done.returncode == 1
    assert "was created; do not submit the file again" in done.stderr
    assert "same command" not in done.stderr
    assert len(run(tmp_path, "ls --store st --json").stdout.splitlines()) == 1


def test_what_only_reads_says_that_nothing_was_changed(tmp_path: Path) -> None:
    receipt = json.loads(run(tmp_path, "run in.jsonl -o out.jsonl --engine echo --store st --json").stdout)
    batch = receipt["batch_id"]
    reading = ["ls", "ls --json", f"status {batch}", f"results {batch}", f"tail {batch}", f"watch {batch}"]
    for command in reading:
        _is_lost(run(tmp_path, f"{command} --store st > /dev/full"), NOTHING_CHANGED)


@pytest.mark.parametrize(
    "command",
    ["validate in.jsonl", "validate in.jsonl --json", "config show", "estimate in.jsonl", "completion bash", "--help"],
)
def test_what_needs_no_batch_says_that_nothing_was_changed(tmp_path: Path, command: str) -> None:
    _is_lost(run(tmp_path, f"{command} > /dev/full"), NOTHING_CHANGED)


def test_a_receipt_that_could_not_be_printed_is_in_its_file(tmp_path: Path) -> None:
    done = run(tmp_path, "run in.jsonl -o out.jsonl --engine echo --json > /dev/full")
    _is_lost(done, f"the results are in {tmp_path}/out.jsonl, and the receipt is in {tmp_path}/out.jsonl.receipt.json")
    assert (tmp_path / "out.jsonl.receipt.json").exists()


def test_what_was_changed_is_said_where_it_could_not_be_printed(tmp_path: Path) -> None:
    (tmp_path / "st").mkdir()
    batch_id = run(tmp_path, "submit in.jsonl --stage email --store st").stdout.strip()
    _is_lost(run(tmp_path, f"cancel {batch_id} --store st > /dev/full"), f"the batch {batch_id} is canceled anyway")
    _is_lost(run(tmp_path, f"delete {batch_id} --store st > /dev/full"), f"the batch {batch_id} is deleted anyway")
    assert run(tmp_path, "ls --store st --json").stdout == ""


def test_a_stdout_that_is_closed_is_no_error(tmp_path: Path) -> None:
    command = [f"{sys.executable} -m batchfile completion bash >&-"]
    done = subprocess.run(command, cwd=tmp_path, env=environ(tmp_path), shell=True, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def _is_lost(done: subprocess.CompletedProcess[str], what_now: str) -> None:
    assert done.returncode == 1
    assert f"stdout cannot be written (No space left on device): {what_now}" in done.stderr.splitlines()[-1]
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("num_prompt", [128, 200])
def test_no_advice_to_generate_nothing(num_prompt: int) -> None:
    with pytest.raises(InvalidRequest, match="leaves no room to answer") as refused:
        fitting_max_tokens(Sampling(max_tokens=29), num_prompt, 128)
    assert "at most 0" not in str(refused.value)


@pytest.mark.parametrize(
    "error", [KeyError("choices"), TypeError("'int' object is not iterable"), json.JSONDecodeError("x", "", 0)]
)
def test_what_an_endpoints_answer_lacks_is_said_in_our_own_words(error: Exception) -> None:
    words = what_is_odd(error)
    assert repr(error) not in words
    assert "object" not in words
    assert words.endswith("Check that base_url leads to an OpenAI-compatible API.")
    assert ("it has no 'choices'" in words) == isinstance(error, KeyError)
