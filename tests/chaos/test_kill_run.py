"""`kill -9` of a real `batchfile run` at random moments; the same command again finishes the work.

After it: one result per request, the same bytes as an unbroken run, and no request that a checkpoint held ran again.
"""

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.store import DirectoryStore
from tests.warm import Warm

NUM_REQUESTS = 400
NUM_KILLS = 20
SHORT_FORM = 5  # each of so many kills is one of the short form
SECONDS_PER_TOKEN = 0.004  # an unbroken run then generates for about two seconds
RUN = ("run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo", "--quiet")
RUN_TIMEOUT_S = 1200.0  # only against a hang: no test depends on a machine's speed


def write_requests(path: Path) -> None:
    rng = random.Random(1)
    with path.open("w") as file:
        for number in range(NUM_REQUESTS):
            text = " ".join(f"word{number}-{place}" for place in range(rng.randint(5, 60)))
            params = {"messages": [{"role": "user", "content": text}], "max_tokens": rng.randint(5, 60)}
            file.write(json.dumps({"custom_id": f"lead_{number}", "params": params}) + "\n")


@dataclass
class Echo:
    """A folder with an input, and the command that runs it; `executions` names a file of started requests."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    def start(self, executions: Path, seconds_per_token: float = SECONDS_PER_TOKEN) -> Warm:
        echo = {
            "BATCHFILE_ECHO_SLOTS": "16",
            "BATCHFILE_ECHO_SECONDS_PER_TOKEN": str(seconds_per_token),
            "BATCHFILE_ECHO_EXECUTIONS": str(executions),
        }
        return Warm("batchfile", RUN, cwd=self.folder, env={**os.environ, **echo})

    def finish(self, executions: Path, seconds_per_token: float = SECONDS_PER_TOKEN) -> None:
        process = self.start(executions, seconds_per_token)
        _, stderr = process.communicate(timeout=RUN_TIMEOUT_S)
        assert process.returncode == 0, stderr.decode()

    def committed(self) -> set[str]:
        """The requests whose results a shard record names at this moment."""
        if not (self.folder / ".batchfile").is_dir():
            return set()
        store, found = DirectoryStore(self.folder / ".batchfile"), set()
        for entry in store.list("batches/"):
            if "/shards/" not in entry.key:
                continue
            record = json.loads(store.get(entry.key).data)  # type: ignore[union-attr]
            for part in record["parts"]:
                part_object = store.get(part["key"])
                if part_object is not None:
                    found |= {json.loads(row)[2]["custom_id"] for row in part_object.data.splitlines()}
        return found


def executed(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The bytes of a run that nobody disturbed, and how long it took."""
    echo = Echo(tmp_path_factory.mktemp("unbroken"))
    write_requests(echo.folder / "in.jsonl")
    started_at = time.monotonic()
    echo.finish(echo.folder / "executions")
    assert len(executed(echo.folder / "executions")) == NUM_REQUESTS
    return echo.output.read_bytes(), time.monotonic() - started_at


@pytest.mark.parametrize(
    "moment",
    [pytest.param(n, marks=() if n % SHORT_FORM == 2 else pytest.mark.long) for n in range(NUM_KILLS)],
)
def test_a_killed_run_continues_without_loss_or_repetition(
    moment: int, unbroken: tuple[bytes, float], tmp_path: Path
) -> None:
    expected, duration_s = unbroken
    echo = Echo(tmp_path)
    write_requests(tmp_path / "in.jsonl")
    process = echo.start(tmp_path / "first")
    # Spread over the run; the seed makes a failure repeat roughly, the machine decides the rest.
    time.sleep(random.Random(moment).uniform(moment, moment + 1) / NUM_KILLS * duration_s)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=RUN_TIMEOUT_S)
    committed = echo.committed()
    had_ended = echo.output.exists()
    echo.finish(tmp_path / "second")
    assert echo.output.read_bytes() == expected
    repeated = committed & set(executed(tmp_path / "second"))
    assert not repeated, f"{len(repeated)} requests ran again although a checkpoint held them"
    if had_ended:
        assert not executed(tmp_path / "second")


def test_killed_again_and_again_it_still_ends(unbroken: tuple[bytes, float], tmp_path: Path) -> None:
    expected, duration_s = unbroken
    echo, rng = Echo(tmp_path), random.Random(5)
    write_requests(tmp_path / "in.jsonl")
    for number in range(4):
        process = echo.start(tmp_path / f"run{number}")
        time.sleep(rng.uniform(0.4, 0.8) * duration_s)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=RUN_TIMEOUT_S)
    echo.finish(tmp_path / "last")
    assert echo.output.read_bytes() == expected


@pytest.mark.parametrize("poison", [{23}, {5, 45}])
def test_a_line_that_kills_its_process_is_found_and_errored_and_the_rest_succeeds(
    poison: set[int], tmp_path: Path
) -> None:
    """60 requests are two shards: a death must not be held against the shard whose lines did not run."""
    num, restarts_max = 60, 40
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(num):
            text = "DEADLY" if number in poison else f"hello {number}"
            params = {"messages": [{"role": "user", "content": text}], "max_tokens": 5}
            file.write(json.dumps({"custom_id": f"lead_{number}", "params": params}) + "\n")
    env = {**os.environ, "BATCHFILE_ECHO_KILL": "DEADLY", "BATCHFILE_ECHO_SLOTS": "8"}
    codes: list[int] = []
    while not codes or (codes[-1] == -signal.SIGKILL and len(codes) < restarts_max):
        process = Warm("batchfile", RUN, cwd=tmp_path, env=env)
        process.communicate(timeout=RUN_TIMEOUT_S)
        codes.append(process.wait())
    assert codes[-1] == 3, codes
    rows = [json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    errors = {number: row["error"]["type"] for number, row in enumerate(rows) if row["error"]}
    assert errors == dict.fromkeys(poison, "runner_crash")
    assert len(rows) == num


def write_changed(path: Path) -> set[str]:
    """Change every second request; returns their ids."""
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    for row in rows[::2]:
        row["params"]["messages"][0]["content"] += " changed"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {row["custom_id"] for row in rows[::2]}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The bytes of a run of the changed input, and how long a run took that had to run only the changed requests."""
    echo = Echo(tmp_path_factory.mktemp("changed"))
    write_requests(echo.folder / "in.jsonl")
    echo.finish(echo.folder / "first", 0.0)
    ids = write_changed(echo.folder / "in.jsonl")
    started_at = time.monotonic()
    echo.finish(echo.folder / "second")
    assert sorted(executed(echo.folder / "second")) == sorted(ids)
    return echo.output.read_bytes(), time.monotonic() - started_at


@pytest.mark.parametrize(
    "moment",
    [pytest.param(n, marks=() if n in {5, 15} else pytest.mark.long) for n in range(NUM_KILLS)],
)
def test_a_killed_run_that_reuses_results_loses_none_and_runs_no_other_request(
    moment: int, changed: tuple[bytes, float], tmp_path: Path
) -> None:
    expected, duration_s = changed
    echo = Echo(tmp_path)
    write_requests(tmp_path / "in.jsonl")
    echo.finish(tmp_path / "first", 0.0)
    first = echo.output.read_bytes()
    ids = write_changed(tmp_path / "in.jsonl")
    process = echo.start(tmp_path / "second")
    time.sleep(random.Random(moment).uniform(moment, moment + 1) / NUM_KILLS * duration_s)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=RUN_TIMEOUT_S)
    assert echo.output.read_bytes() in {first, expected}, "the old results stay until the new ones are complete"
    committed = echo.committed() & ids
    had_ended = echo.output.read_bytes() == expected
    echo.finish(tmp_path / "third")
    assert echo.output.read_bytes() == expected
    again = executed(tmp_path / "third")
    assert {*executed(tmp_path / "second"), *again} == ids, "only what changed was generated"
    assert not committed & {*again}
    assert not (had_ended and again)
