"""What reuse costs the planner and saves a run: CPU time and memory of planning, and a second run of a changed file.

Each measurement is a process of its own. `plan` reads a file and hashes nothing, `hash` also stores the hashes of its
requests (as each planner does), `reuse` takes over the results of a batch of the same file, of which 1 % was changed,
and `shuffled` those of the file in another order. `runs` runs the file, and then the changed one, with the echo engine,
in one process and without waiting for the disk. `command` does so with `batchfile run`, from its start to its end.
Run: `python tests/bench/reuse.py` (100,000 lines; `--lines` for more; `--only hash,reuse` for some).
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import EchoEngine
from batchfile.types import Choice, Completion, Defaults, RoutingTable, Usage
from tests.helpers.ledger import IN_FLIGHT, BatchRecord, Draft, HashingWriter, Planned, batches, keys, update_batch
from tests.helpers.lines import encode_result
from tests.helpers.plan import Reuse, plan_input
from tests.helpers.store import DirectoryStore

LINES = 100_000
CHANGED_EACH = 100  # one of so many lines
WALL_SHARE_MAX = 0.2  # of the second command
SHUFFLE_WINDOW = 200_000  # lines that are shuffled among each other, so that any file fits into memory
LOCAL = RoutingTable(everything="local")
PLANS = ("plan", "hash", "reuse", "shuffled")


def rows(num: int, *, is_changed: bool = False, is_shuffled: bool = False) -> Iterator[bytes]:
    system = "You write short, personal sales messages in plain words. " * 4
    rng = random.Random(1)
    window: list[bytes] = []
    for n in range(num):
        text = f"Lead {n} asks about pricing for their team and wants an answer this week. " * 6
        text += "Changed. " if is_changed and n % CHANGED_EACH == 0 else ""
        params = {"system": system, "messages": [{"role": "user", "content": text}], "max_tokens": 32}
        window.append(json.dumps({"custom_id": f"lead_{n:08d}", "params": params}).encode() + b"\n")
        if len(window) == SHUFFLE_WINDOW or n == num - 1:
            if is_shuffled:
                rng.shuffle(window)
            yield from window
            window.clear()


def put_input(ledger: Ledger, batch_id: str, lines: Iterator[bytes]) -> None:
    with ledger.store.writer(keys.input_key(batch_id, "n")) as writer:
        for line in lines:
            writer.write(line)
        writer.commit()


def plan(ledger: Ledger, batch_id: str, *, is_hashed: bool, reuse: Reuse | None = None) -> Planned:
    defaults = Defaults() if is_hashed else None
    key = keys.input_key(batch_id, "n")
    return plan_input(ledger, batch_id, key, routing=LOCAL, defaults=defaults, reuse=reuse)


def create(ledger: Ledger, batch_id: str, planned: Planned) -> BatchRecord:
    return batches.create(ledger, Draft(batch_id=batch_id, routing=LOCAL, defaults=Defaults()), planned)


def put_source(ledger: Ledger, num: int) -> None:
    """An ended batch with a result for each line, without an engine."""
    put_input(ledger, "source", rows(num))
    create(ledger, "source", plan(ledger, "source", is_hashed=True))
    with HashingWriter(ledger, keys.results_key("source", "n")) as writer:
        for n in range(num):
            answer = Completion(choices=(Choice(f"Dear lead {n}, " + "word " * 30, "end_turn"),), usage=Usage())
            writer.write_lines([encode_result(f"lead_{n:08d}", answer, "echo")])
        results = writer.commit()
    update_batch(ledger, keys.batch_key("source"), lambda record: replace(record, state="ended", results=results))


def measure_plan(ledger: Ledger, kind: str) -> dict[str, Any]:
    source = batches.read_batch(ledger, "source")
    assert source is not None
    reuse = Reuse(sources=(source,), is_sampled_too=True) if kind in {"reuse", "shuffled"} else None
    began_at, cpu_at = time.monotonic(), time.process_time()
    planned = plan(ledger, kind, is_hashed=kind != "plan", reuse=reuse)
    cpu_s = time.process_time() - cpu_at
    hashes = planned.plan.hashes
    return {
        "us_a_line": round(cpu_s / planned.total * 1e6, 2),
        "wall_s": round(time.monotonic() - began_at, 1),
        "peak_mib": round(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024),
        "reused": planned.num_reused,
        "hash_bytes_a_line": 0 if hashes is None else round(hashes.size / planned.total, 2),
    }


def measure_runs(ledger: Ledger, num: int) -> dict[str, Any]:
    put_input(ledger, "first", rows(num))
    put_input(ledger, "second", rows(num, is_changed=True))
    walls, cpus = [], []
    for batch_id, earlier in (("first", None), ("second", "first")):
        began_at, cpu_at = time.monotonic(), time.process_time()
        source = None if earlier is None else batches.read_batch(ledger, earlier)
        reuse = None if source is None else Reuse(sources=(source,), is_sampled_too=True)
        planned = plan(ledger, batch_id, is_hashed=True, reuse=reuse)
        create(ledger, batch_id, planned)
        options = RunnerOptions(runner_id=batch_id, pool="local", only=(batch_id,))
        runner = Runner(ledger, EchoEngine, options)
        runner.run()
        walls.append(time.monotonic() - began_at)
        cpus.append(time.process_time() - cpu_at)
    return {
        "first_s": round(walls[0], 2),
        "second_s": round(walls[1], 2),
        "share": round(walls[1] / walls[0], 3),
        "cpu_share": round(cpus[1] / cpus[0], 3),  # also on a busy machine
        "generated_again": runner.runner_stats.succeeded,
        "reused": planned.num_reused,
    }


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_command(folder: Path, num: int) -> dict[str, Any]:
    walls, cpus = [], []
    command = [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo", "--json"]
    for is_changed in (False, True):
        with open(folder / "in.jsonl", "wb") as file:
            file.writelines(rows(num, is_changed=is_changed))
        began_at, cpu_at = time.monotonic(), _cpu_of_children()
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        made = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True).stdout
        walls.append(time.monotonic() - began_at)
        cpus.append(_cpu_of_children() - cpu_at)
    return {
        "first_s": round(walls[0], 2),
        "second_s": round(walls[1], 2),
        "share": round(walls[1] / walls[0], 3),
        "cpu_share": round(cpus[1] / cpus[0], 3),
        "reused": json.loads(made)["reused"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--only", default=",".join((*PLANS, "runs", "command")))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, folder = args.child
        # As in a run, so that small objects are written next to each other.
        ledger = Ledger(store=DirectoryStore(Path(folder), fsync=False), num_in_flight=IN_FLIGHT)
        if kind == "command":
            print(json.dumps(measure_command(Path(folder), args.lines)))
        else:
            print(json.dumps(measure_runs(ledger, args.lines) if kind == "runs" else measure_plan(ledger, kind)))
        return 0
    row: dict[str, Any] = {"bench": "reuse", "lines": args.lines}
    kinds = args.only.split(",")
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as folder:
        ledger = Ledger(store=DirectoryStore(Path(folder), fsync=False))
        if set(kinds) & set(PLANS):
            put_source(ledger, args.lines)
        for kind in kinds:
            if kind in PLANS:
                put_input(ledger, kind, rows(args.lines, is_changed=True, is_shuffled=kind == "shuffled"))
            command = [sys.executable, __file__, "--lines", str(args.lines), "--child", kind, folder]
            made = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            row[kind] = json.loads(made)
            print(f"{kind:>9} {made}")
            with suppress(OSError):
                for entry in list(ledger.store.list(keys.batch_prefix(kind))):
                    ledger.store.delete(entry.key)
    print(json.dumps(row))
    return 0 if "command" not in row or row["command"]["share"] <= WALL_SHARE_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
