"""`batchfile run` as a real process with the echo engine: what it writes, says and answers."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import warm
from tests.helpers.cli import Exit
from tests.warm import Warm

try:
    from compression import zstd
except ImportError:
    from backports import zstd

RUN = ["run", "--engine", "echo", "in.jsonl", "-o", "out.jsonl"]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed


def env(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    return {**kept, **more}


def batchfile(
    folder: Path, *arguments: str, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    return warm.run("batchfile", arguments, cwd=folder, env=env(**variables), stdin=stdin)


def run(folder: Path, *arguments: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    return batchfile(folder, "run", "--engine", "echo", *arguments, stdin=stdin, **variables)


def request(custom_id: str, text: str = "hello there", **params: object) -> dict[str, object]:
    return {"custom_id": custom_id, "params": {"messages": [{"role": "user", "content": text}], **params}}


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def requests(num: int) -> bytes:
    return jsonl(*(request(f"r{n}", f"words number {n} of many") for n in range(num)))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def num_executed(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_bytes(requests(100))
    return tmp_path


def test_every_request_gets_one_line_in_input_order_and_a_receipt(folder: Path) -> None:
    done = run(folder, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0, done.stderr
    results = read(folder / "out.jsonl")
    assert [line["custom_id"] for line in results] == [f"r{n}" for n in range(100)]
    assert {line["status"] for line in results} == {"succeeded"}
    assert results[7]["message"] == {"content": [{"type": "text", "text": "words number 7 of many"}]}
    receipt = json.loads((folder / "out.jsonl.receipt.json").read_text())
    assert receipt["input"]["sha256"] == hashlib.sha256((folder / "in.jsonl").read_bytes()).hexdigest()
    assert receipt["output"]["sha256"] == hashlib.sha256((folder / "out.jsonl").read_bytes()).hexdigest()
    assert receipt["input"]["requests"] == receipt["output"]["lines"] == 100
    assert receipt["counts"] == {"succeeded": 100, "errored": 0, "canceled": 0, "expired": 0, "rejected": 0}
    assert receipt["usage"] == {"input_tokens": 500, "output_tokens": 500, "cached_tokens": 0, "unknown": 0}
    assert receipt["engine"] == {"kind": "echo", "model": "echo", "version": "1", "commits": {}, "chosen": {}}
    assert not (folder / "out.jsonl.errors.jsonl").exists()
    assert b"100 of 100 requests succeeded" in done.stderr
    assert done.stdout == b""


def test_the_input_is_referenced_not_copied(folder: Path) -> None:
    run(folder, "in.jsonl", "-o", "out.jsonl")
    (stored,) = (folder / ".batchfile" / "batches").glob("*/input-*.jsonl")
    assert stored.is_symlink()


def test_the_same_command_again_runs_nothing_and_answers_the_same(folder: Path) -> None:
    log = folder / "executed"
    for _ in range(2):
        done = run(folder, "in.jsonl", "-o", "out.jsonl", BATCHFILE_ECHO_EXECUTIONS=str(log))
        assert done.returncode == 0
    assert num_executed(log) == 100


def test_an_output_that_was_removed_or_damaged_is_written_again(folder: Path) -> None:
    run(folder, "in.jsonl", "-o", "out.jsonl")
    want = (folder / "out.jsonl").read_bytes()
    for damage in (b"", b"something else"):
        (folder / "out.jsonl").write_bytes(damage)
        done = run(folder, "in.jsonl", "-o", "out.jsonl")
        assert done.returncode == 0
        assert (folder / "out.jsonl").read_bytes() == want
    assert b"out.jsonl was changed since it was written; the changed file is kept as out.jsonl.edited" in done.stderr
    assert (folder / "out.jsonl.edited").read_bytes() == b"something else"
    (folder / "out.jsonl").unlink()
    assert run(folder, "in.jsonl", "-o", "out.jsonl").returncode == 0
    assert (folder / "out.jsonl").read_bytes() == want


def test_failed_requests_are_errored_lines_exit_3_and_are_ready_to_run_again(folder: Path) -> None:
    good, bad = request("good"), request("bad", max_tokens=0)
    (folder / "in.jsonl").write_bytes(jsonl(good, bad))
    done = run(folder, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 3
    assert [line["status"] for line in read(folder / "out.jsonl")] == ["succeeded", "errored"]
    assert read(folder / "out.jsonl.errors.jsonl") == [bad]
    assert b"1 of 2 requests succeeded" in done.stderr
    assert b"out.jsonl.errors.jsonl" in done.stderr
    assert run(folder, "in.jsonl", "-o", "out.jsonl").returncode == 3


def test_a_stale_errors_file_goes_when_nothing_failed(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(jsonl(request("a", max_tokens=0)))
    run(folder, "in.jsonl", "-o", "out.jsonl")
    (folder / "in.jsonl").write_bytes(jsonl(request("a")))
    assert run(folder, "in.jsonl", "-o", "out.jsonl", "--restart").returncode == 0
    assert not (folder / "out.jsonl.errors.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_finishes_what_is_in_flight_and_the_same_command_continues(
    folder: Path, number: signal.Signals
) -> None:
    log = folder / "executed"
    slow = env(BATCHFILE_ECHO_EXECUTIONS=str(log), BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.15")
    command = [*RUN, "--restart"]
    process = Warm("batchfile", command, cwd=folder, env=slow)
    wait_for(lambda: num_executed(log) >= 8)
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + number
    assert b"stopping: finishing " in said
    assert b"batchfile run --engine echo in.jsonl -o out.jsonl\n" in said, said
    assert b"Traceback" not in said
    executed = num_executed(log)
    assert executed < 100
    done = run(folder, "in.jsonl", "-o", "out.jsonl", BATCHFILE_ECHO_EXECUTIONS=str(log))
    assert done.returncode == 0, done.stderr
    assert b"resuming batch_" in done.stderr
    assert num_executed(log) == 100, "a request that was finished ran again"
    assert [line["custom_id"] for line in read(folder / "out.jsonl")] == [f"r{n}" for n in range(100)]


def test_two_signals_stop_at_once_and_the_same_command_continues(folder: Path) -> None:
    log = folder / "executed"
    slow = env(BATCHFILE_ECHO_EXECUTIONS=str(log), BATCHFILE_ECHO_SLOTS="1", BATCHFILE_ECHO_LATENCY_S="0.5")
    process = Warm("batchfile", RUN, cwd=folder, env=slow)
    wait_for(lambda: num_executed(log) >= 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    done = run(folder, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0
    assert len(read(folder / "out.jsonl")) == 100


def test_an_input_of_other_requests_is_refused_with_what_changed_until_restart(folder: Path) -> None:
    run(folder, "in.jsonl", "-o", "out.jsonl")
    before = (folder / "out.jsonl").read_bytes()
    (folder / "in.jsonl").write_bytes(requests(3).replace(b"words", b"others"))
    done = run(folder, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 7
    assert b"the input has changed" in done.stderr
    assert b"--restart" in done.stderr
    assert (folder / "out.jsonl").read_bytes() == before
    assert run(folder, "in.jsonl", "-o", "out.jsonl", "--restart").returncode == 0
    assert len(read(folder / "out.jsonl")) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "other"], b"the model was 'echo' and is 'other' now"),
        (["--stage", "email"], b"the stage was not given and is 'email' now"),
        (["--temperature", "0.5"], b"the default temperature was not given and is 0.5 now"),
        (["--max-tokens", "9"], b"the default max_tokens was 2048 and is 9 now"),
    ],
)
def test_other_answers_asked_for_are_another_run(folder: Path, more: list[str], words: bytes) -> None:
    run(folder, "in.jsonl", "-o", "out.jsonl")
    done = run(folder, "in.jsonl", "-o", "out.jsonl", *more)
    assert done.returncode == 7
    assert words in done.stderr


@pytest.mark.parametrize("move", ["touched", "copied"])
def test_the_same_bytes_in_another_file_continue_the_run(folder: Path, move: str) -> None:
    log = folder / "executed"
    slow = env(BATCHFILE_ECHO_EXECUTIONS=str(log), BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.15")
    process = Warm("batchfile", RUN, cwd=folder, env=slow)
    wait_for(lambda: num_executed(log) >= 8)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    name = "in.jsonl"
    if move == "touched":
        os.utime(folder / name, (1, 1))
    else:
        name = "other.jsonl"
        (folder / name).write_bytes((folder / "in.jsonl").read_bytes())
        (folder / "in.jsonl").unlink()
    done = run(folder, name, "-o", "out.jsonl", BATCHFILE_ECHO_EXECUTIONS=str(log))
    assert done.returncode == 0, done.stderr
    assert num_executed(log) == 100
    assert {line["status"] for line in read(folder / "out.jsonl")} == {"succeeded"}


def test_a_file_that_is_not_ours_is_not_overwritten(folder: Path) -> None:
    (folder / "out.jsonl").write_text("my thesis\n")
    assert run(folder, "in.jsonl", "-o", "out.jsonl").returncode == 7
    assert (folder / "out.jsonl").read_text() == "my thesis\n"
    assert run(folder, "in.jsonl", "-o", "out.jsonl", "--restart").returncode == 0


def test_two_processes_on_one_output_are_refused(folder: Path) -> None:
    log = folder / "executed"
    slow = env(BATCHFILE_ECHO_EXECUTIONS=str(log), BATCHFILE_ECHO_SLOTS="1", BATCHFILE_ECHO_LATENCY_S="0.3")
    process = Warm("batchfile", RUN, cwd=folder, env=slow)
    try:
        wait_for(lambda: num_executed(log) >= 1)
        done = run(folder, "in.jsonl", "-o", "out.jsonl")
        assert done.returncode == 7
        assert b"another batchfile process is writing" in done.stderr
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def test_stdin_and_stdout_need_no_file(tmp_path: Path) -> None:
    done = run(tmp_path, "-", "-o", "-", "--quiet", stdin=requests(5))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["custom_id"] for line in done.stdout.splitlines()] == [f"r{n}" for n in range(5)]
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []


def test_the_same_stdin_continues_and_another_runs_what_is_new(tmp_path: Path) -> None:
    log = tmp_path / "executed"
    for _ in range(2):
        done = run(tmp_path, "-", "-o", "out.jsonl", stdin=requests(5), BATCHFILE_ECHO_EXECUTIONS=str(log))
        assert done.returncode == 0, done.stderr
    assert num_executed(log) == 5
    done = run(tmp_path, "-", "-o", "out.jsonl", stdin=requests(6), BATCHFILE_ECHO_EXECUTIONS=str(log))
    assert (done.returncode, num_executed(log), len(read(tmp_path / "out.jsonl"))) == (0, 6, 6)
    assert not list((tmp_path / ".batchfile").rglob("input-again-*")), "nothing is left of what was read to compare"
    assert run(tmp_path, "-", "-o", "out.jsonl", stdin=requests(6).replace(b"words", b"others")).returncode == 7


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstd.compress)])
def test_packed_input_runs_from_a_file_and_from_stdin(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"in.jsonl.{ending}"
    path.write_bytes(pack(requests(50)))
    assert run(tmp_path, path.name, "-o", "a.jsonl").returncode == 0
    assert run(tmp_path, "-", "-o", "b.jsonl", stdin=path.read_bytes()).returncode == 0
    assert len(read(tmp_path / "a.jsonl")) == 50
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    receipt = json.loads((tmp_path / "a.jsonl.receipt.json").read_text())
    assert receipt["input"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert receipt["input"]["jsonl_sha256"] == hashlib.sha256(requests(50)).hexdigest()


def test_parquet_goes_in_and_comes_out(tmp_path: Path) -> None:
    table = pa.table({"custom_id": ["a", "b"], "prompt": ["one two", "three"], "max_tokens": [1, 0]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert run(tmp_path, "in.parquet", "-o", "out.parquet").returncode == 3
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["custom_id"], row["status"], row["text"]) for row in rows] == [
        ("a", "succeeded", "one"),
        ("b", "errored", None),
    ]
    assert "max_tokens" in rows[1]["error_message"]
    assert [line["custom_id"] for line in read(tmp_path / "out.parquet.errors.jsonl")] == ["b"]


def test_openai_lines_are_answered_in_openais_shape(tmp_path: Path) -> None:
    def line(custom_id: str, **body: object) -> dict[str, object]:
        turns = [{"role": "user", "content": "hello you"}]
        body = {"model": "m", "messages": turns, **body}
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}

    (tmp_path / "in.jsonl").write_bytes(jsonl(line("a"), line("b", max_tokens=-1)))
    assert run(tmp_path, "in.jsonl", "-o", "out.jsonl").returncode == 3
    good, bad = read(tmp_path / "out.jsonl")
    assert good["response"]["status_code"] == 200
    assert good["response"]["body"]["choices"][0]["message"]["content"] == "hello you"
    assert good["error"] is None
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("b", 400)


def test_a_limit_runs_the_first_requests_alone(folder: Path) -> None:
    assert run(folder, "in.jsonl", "-o", "out.jsonl", "--limit", "3").returncode == 0
    assert [line["custom_id"] for line in read(folder / "out.jsonl")] == ["r0", "r1", "r2"]


def test_json_gives_the_receipt_on_stdout_and_events_on_stderr(folder: Path) -> None:
    done = run(folder, "in.jsonl", "-o", "out.jsonl", "--json")
    assert json.loads(done.stdout) == json.loads((folder / "out.jsonl.receipt.json").read_text())
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} == {"note", "progress"}
    assert [event for event in events if event["event"] == "progress"][-1]["done"] == 100


def test_quiet_says_nothing(folder: Path) -> None:
    done = run(folder, "in.jsonl", "-o", "out.jsonl", "--quiet")
    assert (done.stdout, done.stderr) == (b"", b"")


def test_routing_hints_are_ignored_and_said_once(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(
        jsonl(*({**request(f"r{n}"), "metadata": {"model_hint": "nobody"}} for n in range(3)))
    )
    done = run(folder, "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0
    assert done.stderr.count(b"model_hint") == 1


def test_a_run_that_is_canceled_ends_with_what_was_finished(folder: Path) -> None:
    log = folder / "executed"
    slow = env(BATCHFILE_ECHO_EXECUTIONS=str(log), BATCHFILE_ECHO_SLOTS="2", BATCHFILE_ECHO_LATENCY_S="0.3")
    process = Warm("batchfile", RUN, cwd=folder, env=slow)
    wait_for(lambda: num_executed(log) >= 4)
    assert batchfile(folder, "cancel", "out.jsonl").returncode == 0
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3, said
    assert {line["status"] for line in read(folder / "out.jsonl")} >= {"canceled"}
    assert len(read(folder / "out.jsonl")) == 100


def test_a_batch_is_seen_by_its_output_and_by_its_id(folder: Path) -> None:
    run(folder, "in.jsonl", "-o", "out.jsonl")
    (listed,) = [json.loads(line) for line in batchfile(folder, "ls", "--json").stdout.splitlines()]
    by_output = json.loads(batchfile(folder, "status", "out.jsonl", "--json").stdout)
    by_id = json.loads(batchfile(folder, "status", listed["batch_id"], "--json", "--store", ".batchfile").stdout)
    assert listed == by_output == by_id
    assert (by_id["state"], by_id["succeeded"], by_id["pending"]) == ("ended", 100, 0)
    results = batchfile(folder, "results", listed["batch_id"])
    assert results.returncode == 0
    assert results.stdout == (folder / "out.jsonl").read_bytes()
    missing = batchfile(folder, "status", "batch_000000000000")
    assert missing.returncode == 2
    assert b"no such batch" in missing.stderr


def test_no_lock_outlives_its_process(folder: Path) -> None:
    run(folder, "in.jsonl", "-o", "out.jsonl")
    assert list(folder.glob(".*.lock")) == []


def test_a_run_in_another_store_does_not_overwrite_what_was_written_meanwhile(folder: Path) -> None:
    log = folder / "executed"
    slow = env(BATCHFILE_ECHO_EXECUTIONS=str(log), BATCHFILE_ECHO_SLOTS="4", BATCHFILE_ECHO_LATENCY_S="0.15")
    command = [*RUN, "--store", "first"]
    process = Warm("batchfile", command, cwd=folder, env=slow)
    wait_for(lambda: num_executed(log) >= 8)
    process.send_signal(signal.SIGSTOP)  # so that it does not end while the others start
    at_once = run(folder, "in.jsonl", "-o", "out.jsonl", "--store", "second")
    assert (at_once.returncode, b"another batchfile process" in at_once.stderr) == (Exit.OUTPUT_TAKEN, True)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=WAIT_S)
    assert run(folder, "in.jsonl", "-o", "out.jsonl", "--store", "second").returncode == 0
    written = (folder / "out.jsonl.receipt.json").read_bytes()
    late = run(folder, "in.jsonl", "-o", "out.jsonl", "--store", "first")
    assert late.returncode == Exit.OUTPUT_TAKEN
    assert b"was written by another run" in late.stderr
    assert (folder / "out.jsonl.receipt.json").read_bytes() == written
    assert run(folder, "in.jsonl", "-o", "out.jsonl", "--store", "first", "--restart").returncode == 0
