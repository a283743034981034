"""`batchfile.run`: it resumes, raises instead of ending the process, and works in any thread."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import batchfile
from tests.service.remote_kit import ROOT, jsonl, line

WAIT_S = 600.0  # only against a hang


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ids(path: str) -> list[str]:
    return [json.loads(row)["custom_id"] for row in Path(path).read_bytes().splitlines()]


def test_an_interrupted_call_keeps_what_had_finished_and_the_same_call_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_bytes(jsonl(*(line(f"r{number}") for number in range(400))))
    monkeypatch.setenv("BATCHFILE_ECHO_SLOTS", "1")
    monkeypatch.setenv("BATCHFILE_ECHO_LATENCY_S", "0.05")
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                batch = batchfile.connect(".batchfile").batch("out.jsonl")
            except batchfile.BatchfileError:
                continue
            if batch.last_status.counts.succeeded:
                signal.pthread_kill(main, signal.SIGINT)
                return

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as of tests in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        batchfile.run("in.jsonl", "out.jsonl", engine="echo")
    thread.join()
    said = capsys.readouterr().err
    assert "400 requests; loading echo" in said
    assert "stopping: finishing the requests in flight" in said
    assert not Path("out.jsonl").exists()

    monkeypatch.setenv("BATCHFILE_ECHO_LATENCY_S", "0")
    receipt = batchfile.run("in.jsonl", "out.jsonl", engine="echo")
    assert f"resuming {receipt.batch_id}: " in capsys.readouterr().err
    assert receipt.is_all_succeeded
    assert ids("out.jsonl") == [f"r{number}" for number in range(400)]
    assert batchfile.run("in.jsonl", Path("out.jsonl"), engine="echo", progress=False) == receipt
    assert capsys.readouterr().err == ""


def test_it_runs_in_any_thread_and_several_at_once() -> None:
    Path("in.jsonl").write_bytes(jsonl(line("a"), line("bad", max_token=5)))
    with ThreadPoolExecutor(2) as pool:
        receipts = pool.map(lambda name: batchfile.run("in.jsonl", name, engine="echo"), ("a.jsonl", "b.jsonl"))
    for receipt in receipts:
        assert (receipt.counts.succeeded, receipt.counts.errored, receipt.is_all_succeeded) == (1, 1, False)
        assert receipt.errors is not None
        assert ids(receipt.errors.path) == ["bad"]


def test_an_engine_that_does_not_return_raises_and_the_process_lives_on() -> None:
    Path("in.jsonl").write_bytes(jsonl(line("a"), line("never")))
    code = """
import batchfile
try:
    batchfile.run("in.jsonl", "out.jsonl", engine="echo", progress=False)
except batchfile.errors.EngineDead as error:
    print(error)
"""
    knobs = {"BATCHFILE_ECHO_HANG": "never", "BATCHFILE_LIMITS__ENGINE_STALL_S": "1"}
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **knobs}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert "restart this process and make the same call again" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ech"}, "engine: 'ech' is unknown; use one of vllm, http, echo"),
        ({"task": "embedding"}, "task: 'embedding' is unknown; use one of generate, embed, classify"),
        ({"dtype": "int8", "engine": "vllm"}, "dtype: 'int8' is unknown"),
        ({"limit": 0}, "limit: 0 must be at least 1"),
        ({"temperature": 3}, "temperature: 3 must be from 0 to 2"),
        ({"grace_s": float("nan")}, "grace_s: nan must be at least 0"),
        ({"max_num_seqs": 0}, "max_num_seqs: 0 must be at least 1"),
        ({"stage": "emial"}, "stage: 'emial' is unknown; use one of "),
        ({"engine": "http"}, 'engine="http" needs base_url, such as'),
        ({"engine": "http", "base_url": "http://127.0.0.1:9/v1"}, 'engine="http" needs model: the name'),
        ({"engine": "vllm", "model": "./no/model"}, "no/model"),
        ({"store": "memory"}, None),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_read(options: dict[str, Any], message: str | None) -> None:
    Path("in.jsonl").write_bytes(jsonl(line("a")))
    options = {"engine": "echo", **options}
    if message is None:
        assert batchfile.run("in.jsonl", "out.jsonl", progress=False, **options).is_all_succeeded
        return
    with pytest.raises(batchfile.SettingsError, match=message):
        batchfile.run("in.jsonl", "out.jsonl", progress=False, **options)
    assert [path.name for path in Path().iterdir()] == ["in.jsonl"]


def test_an_input_that_cannot_be_used_makes_nothing() -> None:
    Path("bad.jsonl").write_bytes(jsonl(line("a"), {"custom_id": "b"}))
    Path("empty.jsonl").write_bytes(b"")
    for name, strict in (("bad.jsonl", True), ("empty.jsonl", False), ("nowhere.jsonl", False)):
        with pytest.raises(batchfile.InvalidFile, match=name):
            batchfile.run(name, "out.jsonl", engine="echo", strict=strict, progress=False)
    with pytest.raises(batchfile.SettingsError, match="output: must be a path"):
        batchfile.run("bad.jsonl", "-", engine="echo")
    with pytest.raises(batchfile.SettingsError, match="does not exist; create it first"):
        batchfile.run("bad.jsonl", "no/out.jsonl", engine="echo")
    assert not Path("out.jsonl").exists()
