"""Errors of the command: JSON where its answer is JSON, and never the advice to repeat what would be done twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from batchfile.engine.http.answer import what_is_odd
from batchfile.engine.tokens import fitting_max_tokens
from batchfile.errors import InvalidRequest
from batchfile.types import Sampling

ROOT = Path(__file__).parents[2]
LINE = '{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}}\n'


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    (folder / "in.jsonl").write_text(LINE)
    words = f"{sys.executable} -m batchfile {command}"
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(words, cwd=folder, shell=True, capture_output=True, text=True, check=False, env=environ)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("ls --json --store nowhere", 2, "there is no such directory"),
        ("run nothing.jsonl -o out.jsonl --engine echo --json", 4, "there is no such file"),
        ("run in.jsonl -o out.jsonl --engine ech --json", 2, "is not one of 'vllm', 'http', 'echo'"),
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
        "batchfile: stdout cannot be written (No space left on device): nothing of this run is kept; "
        "run it with -o FILE, which also resumes"
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
    assert "is made; do not submit the file again" in done.stderr
    assert "same command" not in done.stderr
    assert len(run(tmp_path, "ls --store st --json").stdout.splitlines()) == 1


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
