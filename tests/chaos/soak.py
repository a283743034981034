"""The whole service for an hour at the highest rate that this machine holds: does any process grow?

Two API replicas and two runners over a real S3 server. Callers keep batches coming, each reads every result; the
engine costs nothing, so that what is measured is ours. Memory, descriptors and threads of each process are sampled;
none may hold more at the end than in the middle, beyond what `SLACK` allows. The last line of the output is JSON.

Run: `python -m tests.chaos.soak --minutes 60`.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.checks import severe
from tests.chaos.clients import BATCHES, Asker
from tests.chaos.fleet import Fleet
from tests.chaos.servers import BUCKET, PREFIX, SERVERS, Server

NAMES = ["api-a", "api-b", "runner-a", "runner-b"]
BATCH_REQUESTS = 1_000
NUM_CALLERS = 8
SAMPLE_S = 10.0
POLL_S = 0.2
MIB = 1024 * 1024
# What the last tenth of a run may hold beyond its middle: an allocator's noise, a connection more.
SLACK = {"mib": 24.0, "descriptors": 8.0, "threads": 4.0}
VARIABLES = {"BATCHFILE_ECHO_SLOTS": "256", "BATCHFILE_LIMITS__RETENTION_S": "300"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Of one process and what it started, at `at` seconds."""

    at: float
    mib: float
    descriptors: int
    threads: int


@dataclass(slots=True)
class Load:
    """What the callers have done; they stop at `stop_at` (monotonic)."""

    stop_at: float
    num_batches: int = 0
    num_wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, asker: Asker, caller: int) -> None:
        number = 0
        while time.monotonic() < self.stop_at:
            began = time.monotonic()
            try:
                is_right = one_batch(asker, f"c{caller}-{number}")
            except (TimeoutError, AssertionError, KeyError, ValueError) as error:
                with self.lock:
                    self.problems.append(repr(error))
                continue
            number += 1
            with self.lock:
                self.num_batches += 1
                self.num_wrong += not is_right
                self.seconds.append(time.monotonic() - began)


def one_batch(asker: Asker, name: str) -> bool:
    """Create it, wait, read every result; whether each is there, in order, and succeeded."""
    ids = [f"{name}-{row}" for row in range(BATCH_REQUESTS)]
    rows = [
        {"custom_id": custom_id, "params": {"messages": [{"role": "user", "content": "Lead"}], "max_tokens": 8}}
        for custom_id in ids
    ]
    headers = {"content-type": "application/x-ndjson", "idempotency-key": name}
    body = "\n".join(map(json.dumps, rows)).encode()
    created = asker.ask("POST", BATCHES, params={"stage": "email"}, content=body, headers=headers)
    assert created.status_code == 200, created.text
    place = f"{BATCHES}/{created.json()['id']}"
    while asker.ask("GET", place).json()["processing_status"] != "ended":
        time.sleep(POLL_S)
    results = asker.ask("GET", f"{place}/results").json()["results"]
    return [row["custom_id"] for row in results] == ids and {row["status"] for row in results} == {"succeeded"}


def look(pids: list[int], at: float) -> Sample | None:
    """The sum over `pids`; None where one has just gone."""
    try:
        processes = [psutil.Process(pid) for pid in pids]
        return Sample(
            at=at,
            mib=sum(process.memory_info().rss for process in processes) / MIB,
            descriptors=sum(process.num_fds() for process in processes),
            threads=sum(process.num_threads() for process in processes),
        )
    except psutil.NoSuchProcess:
        return None


def growth(samples: list[Sample], length_s: float) -> dict[str, Any]:
    """After the first tenth, in the middle, at the end (medians of a tenth of the run each), and the most."""
    found: dict[str, Any] = {}
    for name in SLACK:
        parts = []
        for begin in (0.1, 0.5, 0.9):
            inside = [getattr(s, name) for s in samples if begin * length_s <= s.at < (begin + 0.1) * length_s]
            parts.append(round(statistics.median(inside), 1) if inside else None)
        found[name] = [*parts, round(max((getattr(s, name) for s in samples), default=0), 1)]
    return found


def grown(name: str, row: dict[str, Any]) -> list[str]:
    problems = []
    for what, slack in SLACK.items():
        _, middle, end, _ = row[what]
        if middle is not None and end is not None and end > middle + slack:
            problems.append(f"{name}: {middle} {what} in the middle, {end} at the end")
    return problems


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    length_s = options.minutes * 60
    statuses: Counter[int] = Counter()
    with ExitStack() as stack:
        server = Server(options.server, folder)
        stack.callback(server.kill)
        server.start()
        server.wait()
        server.make_bucket()
        store = f"s3://{BUCKET}/{PREFIX}?endpoint={server.url}&region=us-east-1"
        fleet = Fleet(folder, dict.fromkeys(NAMES, store), VARIABLES)
        stack.callback(fleet.close)
        for name in NAMES:
            fleet.start(name)
        ports = list(fleet.ports.values())
        Asker(ports, statuses).ask("GET", "/healthz")
        began = time.monotonic()
        load = Load(began + length_s)
        callers = [
            threading.Thread(target=load.run, args=(Asker(ports, statuses), number), daemon=True)
            for number in range(NUM_CALLERS)
        ]
        for caller in callers:
            caller.start()
        samples = watch(fleet, server, load, began, folder / "samples.jsonl")
        for caller in callers:
            caller.join(120)
        problems = [f"{name} ended with {code}" for name in NAMES if (code := fleet.code(name)) is not None]
    processes = {name: growth(found, length_s) for name, found in samples.items()}
    problems += [item for name in NAMES for item in grown(name, processes[name])]
    problems += load.problems + ([f"{load.num_wrong} batches with wrong results"] if load.num_wrong else [])
    seconds = sorted(load.seconds) or [0.0]
    return {
        "soak": options.server,
        "minutes": options.minutes,
        "batches": load.num_batches,
        "requests": load.num_batches * BATCH_REQUESTS,
        "requests_per_s": round(load.num_batches * BATCH_REQUESTS / length_s, 1),
        "batch_s": {"p50": round(seconds[len(seconds) // 2], 1), "max": round(seconds[-1], 1)},
        "answers": {str(status): num for status, num in sorted(statuses.items())},
        "logged": dict(severe(fleet.logs()).most_common(12)),
        "after_tenth_middle_end_max": processes,
        "problems": problems,
    }


def watch(fleet: Fleet, server: Server, load: Load, began: float, path: Path) -> dict[str, list[Sample]]:
    """Until the callers are to stop. Every sample goes to `path` at once: a run that is cut short has its figures."""
    samples: dict[str, list[Sample]] = {name: [] for name in [*NAMES, "s3"]}
    with path.open("a") as file:
        while time.monotonic() < load.stop_at:
            at = time.monotonic() - began
            for name, found in samples.items():
                pids = fleet.pids(name) if name in NAMES else server.pids()
                sample = look(pids, at)
                if sample is not None:
                    found.append(sample)
                    row = [name, round(at), round(sample.mib, 1), sample.descriptors, sample.threads, load.num_batches]
                    file.write(json.dumps(row) + "\n")
            file.flush()
            time.sleep(SAMPLE_S)
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--server", choices=SERVERS, default="ministack")
    parser.add_argument("--keep", action="store_true", help="keep the logs and samples")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("BATCHFILE_", "AWS_"))]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"logs and samples are in {folder}", file=sys.stderr)
    row = run(options, folder)
    for name, value in row.items():
        if name != "after_tenth_middle_end_max":
            print(f"{name:>16}  {value}")
    for name, found in row["after_tenth_middle_end_max"].items():
        print(f"{name:>16}  " + "  ".join(f"{what}: {' '.join(map(str, parts))}" for what, parts in found.items()))
    print(json.dumps(row))
    if not row["problems"] and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if row["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
