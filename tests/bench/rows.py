"""What rows cost: a Parquet file with a template against the same number of JSONL requests with the same prompts.

Runs `batchfile run --engine echo` as its own process on few rows, many rows and many requests. CPU time is that of the
process and its children; memory is the peak of the sum of their resident sets, which counts shared pages twice.
Run: `python tests/bench/rows.py` (1,000,000 rows; `--rows` for fewer).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

SMALL = 10_000
GROUP_ROWS = 50_000
GROWTH_MIB_MAX = 100.0
LOOK_S = 0.05  # between two looks at the memory
TEMPLATE = "Is this review good or bad? {{ review }}"


@dataclass(frozen=True)
class Run:
    """One run: seconds of CPU and of the wall, MiB at the peak."""

    kind: str
    requests: int
    cpu_s: float
    wall_s: float
    peak_mib: float

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.requests * 1e6


def review(number: int) -> str:
    return f"Order {number}: it arrived late, and the box was open, but the phone works well. " * 5


def write_rows(path: Path, num: int) -> None:
    schema = pa.schema([("id", pa.string()), ("review", pa.string()), ("stars", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num, GROUP_ROWS):
            group = range(start, min(num, start + GROUP_ROWS))
            columns = [[f"r{n:07d}" for n in group], [review(n) for n in group], [n % 5 for n in group]]
            writer.write_table(pa.table(columns, schema=schema))


def write_requests(path: Path, num: int) -> None:
    with path.open("w", buffering=1 << 20) as file:
        for number in range(num):
            content = TEMPLATE.replace("{{ review }}", review(number))
            params = {"messages": [{"role": "user", "content": content}]}
            file.write(json.dumps({"custom_id": f"r{number:07d}", "params": params}) + "\n")


def measure(kind: str, source: Path, num: int, write: Callable[[Path, int], None], *options: str) -> Run:
    write(source, num)
    output = source.with_name("out-" + source.name)
    command = [sys.executable, "-m", "batchfile", "run", str(source), "-o", str(output), "--engine", "echo", "--quiet"]
    started_at = time.monotonic()
    process = psutil.Popen([*command, *options])
    peak = 0
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        peak = max(peak, resident_bytes(process))
        time.sleep(LOOK_S)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run of {num} {kind} ended with exit code {process.returncode}")
    return Run(kind, num, usage.ru_utime + usage.ru_stime, time.monotonic() - started_at, peak / 2**20)


def resident_bytes(process: psutil.Process) -> int:
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:
        return total  # one has just ended
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    num = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as name:
        folder, prompt = Path(name), ("--prompt", TEMPLATE)
        few = measure("rows", folder / "few.parquet", SMALL, write_rows, *prompt)
        many = measure("rows", folder / "many.parquet", num, write_rows, *prompt)
        requests = measure("requests", folder / "many.jsonl", num, write_requests)
    print(f"{'kind':<8} {'number':>9} {'CPU us each':>11} {'wall s':>7} {'peak MiB':>8}")
    for run in (few, many, requests):
        print(f"{run.kind:<8} {run.requests:>9} {run.cpu_us:>11.1f} {run.wall_s:>7.1f} {run.peak_mib:>8.1f}")
    growth = many.peak_mib - few.peak_mib
    print(f"memory grows by {growth:.1f} MiB from {SMALL} to {num} rows")
    row = {
        "bench": "rows",
        "rows": num,
        "cpu_us": round(many.cpu_us, 1),
        "request_cpu_us": round(requests.cpu_us, 1),
        "peak_mib": round(many.peak_mib, 1),
        "growth_mib": round(growth, 1),
    }
    print(json.dumps(row))
    # A small run is dominated by the process's own start: only the full size is judged.
    return 0 if growth <= GROWTH_MIB_MAX or num < 500_000 else 1


if __name__ == "__main__":
    sys.exit(main())
