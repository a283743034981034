"""Ctrl-C and SIGTERM at every moment of `batchfile run`: what is said, that the process ends, and that nothing is lost.

What cannot be had with the echo engine's own options (a step that hangs, a batch so large that its assembly takes
for ever) is put into the process by a few lines that run before the command.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.lines import KIND_BYTES
from tests.warm import Warm

IN_OUT = ["run", "--engine", "echo", "in.jsonl", "-o", "out.jsonl"]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
NUM = 40
# Blocks the thread in C for minutes, without the GIL: no signal handler runs meanwhile.
HANG = "__import__('hashlib').pbkdf2_hmac('sha512', b'x', b'y', 2**31 - 1)"

HANGS_IN_A_STEP = f"""
from batchfile.engine.echo import EchoEngine
step = EchoEngine.step
def hang(self):
    done = step(self)
    if self._num_steps == 4:
        print("there", flush=True)
        {HANG}
    return done
EchoEngine.step = hang
"""
STEPS_FOR_LONG = """
import time
from batchfile.engine.echo import EchoEngine
step = EchoEngine.step
def slow(self):
    done = step(self)
    if self._num_steps == 4:
        print("there", flush=True)
        for _ in range(6):
            time.sleep(0.1)  # each ends at once after a stop
    return done
EchoEngine.step = slow
"""
NEVER_PREPARES = """
import time
from batchfile.engine.echo import EchoEngine
prepare = EchoEngine.prepare
def hang(self, request):
    if request.custom_id == "r17":
        print("there", flush=True)
        while True:
            time.sleep(0.01)
    return prepare(self, request)
EchoEngine.prepare = hang
"""
GIVES_UP_SOON = """
from batchfile.runner import runner
runner.JOIN_S_MAX = 0.1
"""
NEVER_LOADS = """
import time
from batchfile.engine.echo import EchoEngine
def load(*args, **more):
    print("there", flush=True)
    time.sleep(600)
EchoEngine.__init__ = load
"""
ASSEMBLES_FOR_EVER = """
import time
from batchfile.ledger import ending
def assemble(*args, beat, **more):
    print("there", flush=True)
    while True:
        beat()
        time.sleep(0.05)
ending.assemble = assemble
"""
WRITES_FOR_EVER = """
import time
from batchfile.local import outputs
def write(ledger, batch, file, output=None):
    file.write(b"half a li")
    print("there", flush=True)
    time.sleep(600)
outputs.write_results_to = write
"""


def env(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    return {**kept, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"say {n}"}]}} for n in range(NUM)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def executed(folder: Path) -> int:
    path = folder / "executed"
    return len(path.read_text().splitlines()) if path.exists() else 0


def start(folder: Path, *arguments: str, before: str = "", **variables: str) -> Warm:
    program = f"{before}\nimport sys\nfrom batchfile.cli.group import main\nsys.argv[0] = 'batchfile'\nmain()\n"
    variables["BATCHFILE_ECHO_EXECUTIONS"] = str(folder / "executed")
    arguments = (program, *(arguments or IN_OUT))
    return Warm("-c", arguments, cwd=folder, env=env(**variables), stdin=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def hear(process: Warm, words: str) -> str:
    """What it says on stderr until it says this: two signals at once may come as one."""
    assert process.stderr is not None
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def ended(process: Warm, code: int, heard: str = "") -> str:
    """What it said on stderr."""
    try:
        _, said = process.communicate(timeout=WAIT_S)
        said = heard + said
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said, said
    assert said.endswith("\n"), said
    return said


def completes(folder: Path, num_again: int = 0) -> None:
    """The same command completes the run, and repeats no more than `num_again` requests."""
    done = start(folder)
    ended(done, 0)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows] == [f"r{n}" for n in range(NUM)]
    assert {row["status"] for row in rows} == {"succeeded"}
    assert NUM <= executed(folder) <= NUM + num_again


def test_the_first_signal_says_how_many_how_long_and_when_it_gives_up(folder: Path) -> None:
    process = start(folder, BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.8")
    wait_for(lambda: executed(folder) >= 16)  # 12 have finished: there is an estimate
    process.send_signal(signal.SIGINT)
    said = ended(process, 130)
    assert "stopping: finishing 20 requests takes" in said
    assert "giving up after 30 s; press Ctrl-C again to stop now" in said
    assert "gave up" not in said
    completes(folder)


def test_with_json_every_line_is_json_also_at_a_stop_and_no_time_left_is_promised(folder: Path) -> None:
    process = start(folder, *IN_OUT, "--json", BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.8")
    wait_for(lambda: executed(folder) >= 16)
    process.send_signal(signal.SIGINT)
    events = [json.loads(line) for line in ended(process, 130).splitlines()]
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert notes[-1] == "interrupted; to resume:\n  batchfile run --engine echo in.jsonl -o out.jsonl --json"
    assert [event["eta_s"] for event in events if event["event"] == "progress"][-1] is None
    completes(folder)


@pytest.mark.parametrize("way", ["option", "setting"])
def test_a_run_gives_up_after_its_grace_and_keeps_what_has_finished(folder: Path, way: str) -> None:
    arguments = [*IN_OUT, "--grace", "0.5"] if way == "option" else IN_OUT
    if way == "setting":
        (folder / "batchfile.toml").write_text("[run]\ngrace_s = 0.5\n")
    slow = {"BATCHFILE_ECHO_SLOTS": "4", "BATCHFILE_ECHO_SECONDS_PER_TOKEN": "60"}
    first = start(folder, *IN_OUT, BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.1")
    wait_for(lambda: executed(folder) >= 12)
    first.send_signal(signal.SIGTERM)
    ended(first, 143)
    num_before = executed(folder)
    process = start(folder, *arguments, **slow)
    wait_for(lambda: executed(folder) == num_before + 4)
    process.send_signal(signal.SIGTERM)
    said = ended(process, 143)
    assert "0.5 s" in said
    assert "send another signal to stop now" in said
    assert "gave up on" in said
    completes(folder, num_again=4)


def test_a_second_signal_stops_at_once(folder: Path) -> None:
    process = start(folder, BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="600")
    wait_for(lambda: executed(folder) == 4)
    process.send_signal(signal.SIGINT)
    heard = hear(process, "stopping:")
    process.send_signal(signal.SIGINT)
    said = ended(process, 130, heard)
    assert "stopping now" in said
    assert "batchfile run --engine echo in.jsonl -o out.jsonl" in said
    completes(folder, num_again=4)


def test_a_second_signal_ends_a_process_whose_engine_hangs_and_what_had_finished_is_kept(folder: Path) -> None:
    process = start(folder, before=HANGS_IN_A_STEP, BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.1")
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    num_begun = executed(folder)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    said = ended(process, 130)
    assert "interrupted; to resume" in said
    assert num_begun >= 8
    completes(folder, num_again=8)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_run_whose_engine_loads(folder: Path, number: signal.Signals) -> None:
    process = start(folder, before=NEVER_LOADS)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    assert "interrupted; to resume" in ended(process, 128 + number)
    completes(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_run_that_reads_its_input(folder: Path, number: signal.Signals) -> None:
    process = start(folder, "run", "--engine", "echo", "-", "-o", "out.jsonl")
    assert process.stdin is not None
    process.stdin.write(
        (folder / "in.jsonl").read_text() + "\n" * KIND_BYTES
    )  # what it reads before it opens the store
    process.stdin.flush()
    wait_for((folder / ".batchfile").exists)
    time.sleep(0.3)
    process.send_signal(number)
    assert "with the same input on stdin" in ended(process, 128 + number)
    completes(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_run_that_assembles_and_the_next_run_does_that(folder: Path, number: signal.Signals) -> None:
    process = start(folder, before=ASSEMBLES_FOR_EVER)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    said = ended(process, 128 + number)
    assert "stopping: every request is done; the next run of this command writes the results" in said
    completes(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_run_that_writes_its_files_and_leaves_no_half_of_one(
    folder: Path, number: signal.Signals
) -> None:
    process = start(folder, before=WRITES_FOR_EVER)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    assert "interrupted; to resume" in ended(process, 128 + number)
    assert {path.name for path in folder.iterdir()} == {"in.jsonl", ".batchfile", "executed"}
    completes(folder)


HANGS = {"BATCHFILE_ECHO_HANG": "say 17", "BATCHFILE_ECHO_SLOTS": "4"}


def test_an_engine_that_does_not_return_ends_the_process_and_its_request_is_found_and_fails_alone(
    folder: Path,
) -> None:
    (folder / "batchfile.toml").write_text("[limits]\nengine_stall_s = 0.5\n")
    codes = []
    for _ in range(20):
        process = start(folder, **HANGS)
        _, said = process.communicate(timeout=WAIT_S)
        codes.append(process.returncode)
        if process.returncode != 75:
            break
        assert "the engine's step has not returned for" in said
        assert "to resume:\n  batchfile run --engine echo in.jsonl -o out.jsonl" in said
    assert codes[-1] == 3
    assert codes[:-1] == [75] * len(codes[:-1])
    assert len(codes) > 1
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows if row["status"] != "succeeded"] == ["r17"]
    assert len(rows) == NUM
    assert rows[17]["error"]["type"] == "runner_crash"


def test_a_request_that_does_not_get_prepared_ends_the_process_and_fails_alone_at_the_third_time(folder: Path) -> None:
    (folder / "batchfile.toml").write_text("[limits]\nengine_stall_s = 0.5\n")
    for _ in range(3):
        said = ended(start(folder, before=NEVER_PREPARES), 75)
        assert "the engine's prepare has not returned for 0.5 s" in said
    ended(start(folder, before=NEVER_PREPARES), 3)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert [row["custom_id"] for row in rows if row["status"] != "succeeded"] == ["r17"]
    assert len(rows) == NUM
    assert rows[17]["error"]["type"] == "runner_crash"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_while_a_request_does_not_get_prepared(folder: Path, number: signal.Signals) -> None:
    process = start(folder, before=NEVER_PREPARES + GIVES_UP_SOON)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    ended(process, 128 + number)
    completes(folder)


def test_a_process_that_was_stopped_is_not_taken_for_one_that_is_stuck(folder: Path) -> None:
    """Stopped for many times the bound while its engine is in a step."""
    (folder / "batchfile.toml").write_text("[limits]\nengine_stall_s = 4\n")
    process = start(folder, before=STEPS_FOR_LONG, BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.01")
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    process.send_signal(signal.SIGCONT)
    ended(process, 0)
    completes(folder)
