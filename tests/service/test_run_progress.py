"""What `batchfile run` shows while it works, with the echo engine: on a terminal, in a log, as JSON."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = [sys.executable, "-m", "batchfile", "run", "--engine", "echo", "in.jsonl", "-o", "out.jsonl"]
SLOW = {"BATCHFILE_ECHO_SLOTS": "16", "BATCHFILE_ECHO_SECONDS_PER_TOKEN": "0.1", "BATCHFILE_ECHO_LATENCY_S": "0.2"}
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def env(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    return {**kept, **SLOW, "TERM": "xterm", "COLUMNS": "160", **more}


def write_requests(folder: Path) -> Path:
    """48 requests of 20 tokens: 3 rounds of the 16 slots, each 2.2 s long."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "a " * 19 + "a"}]}}
        for n in range(48)
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_requests(tmp_path)


def on_a_terminal(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """The exit code, and everything that was sent to the terminal."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(RUN[0], [*RUN, *arguments], env(**variables))
    sent = b""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            data = os.read(fd, 65536)
        except OSError:  # the terminal's other side is closed
            break
        if not data:
            break
        sent += data
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sent.decode()


def test_a_terminal_shows_a_bar_the_tokens_of_unfinished_requests_and_an_estimate(folder: Path) -> None:
    code, sent = on_a_terminal(folder)
    assert code == 0, sent
    text = ANSI.sub("", sent)
    assert "━" in text
    begun = re.findall(r"\d+ %, 0/48 requests.*?([\d,]+) tokens out \(", text, re.DOTALL)
    assert begun, "no token was shown before the first request had finished"
    assert re.search(r"16 running, \d+ waiting", text)
    assert re.search(r"(about \d+|less than 5) s left", text)
    assert not re.search(r"(?<![\d.,])0(\.0)? tok/s", text)
    assert "100 %, 48/48 requests" in text


def test_every_log_line_and_note_has_a_line_of_its_own_on_a_terminal(folder: Path) -> None:
    code, sent = on_a_terminal(folder, "-v")
    assert code == 0, sent
    lines = [ANSI.sub("", line).rsplit("\r", 1)[-1] for line in sent.replace("\r\n", "\n").split("\n")]
    logged = [line for line in lines if "[info" in line]
    assert len(logged) >= 5
    for line in logged:
        assert re.match(r"\d\d:\d\d:\d\d \[info", line), line
        assert "/48 requests" not in line
    assert any(line.startswith("48 of 48 requests succeeded") for line in lines)


def test_without_a_terminal_there_is_a_line_every_ten_seconds_and_one_at_the_end(tmp_path: Path) -> None:
    """As text and as JSON, at the same time."""
    slow = env(BATCHFILE_ECHO_SECONDS_PER_TOKEN="0.2")
    processes = [
        subprocess.Popen(
            [*RUN, *more], cwd=write_requests(tmp_path / name), env=slow, stderr=subprocess.PIPE, text=True
        )
        for name, more in (("text", []), ("json", ["--json"]))
    ]
    rows = []
    for process in processes:
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, said
        assert "\r" not in said
        assert "\x1b" not in said
        rows.append(said.splitlines())
    shown = [line for line in rows[0] if "requests (" in line]
    assert len(shown) >= 2, shown  # more on a slow machine
    assert re.match(
        r"\d+/48 requests \(\d+ %\), 16 running, \d+ waiting, .* tokens out \(.* tok/s\), \d\d s.*left", shown[0]
    )
    assert shown[-1].startswith("48/48 requests (100 %), 960 tokens in, 960 tokens out")
    events = [event for event in map(json.loads, rows[1]) if event["event"] == "progress"]
    assert len(events) >= 2, events
    assert (events[0]["total"], events[0]["num_running"]) == (48, 16)
    assert events[0]["output_tokens"] > events[0]["done"] * 20
    assert events[0]["eta_s"] > 0
    assert (events[-1]["done"], events[-1]["output_tokens"]) == (48, 960)
