"""What the host costs around an engine that costs nothing: from the file to the durable results file.

Runs `batchfile run --engine echo` as its own process on requests of 1 KB, few and many, and asks the operating
system for its CPU time and peak memory. Run: `python tests/bench/host.py` (1,000,000 requests; `--requests` for fewer).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SMALL = 10_000
LINE_BYTES = 1024
CPU_US_MAX = 60.0
GROWTH_MIB_MAX = 32.0
PEAK_MIB_MAX = 300.0
FIRST_REQUEST_MS_MAX = 50.0


@dataclass(frozen=True)
class Run:
    """One process: seconds of CPU and of the wall, MiB at the peak, ms from engine ready to the first request."""

    requests: int
    cpu_s: float
    wall_s: float
    peak_mib: float
    first_request_ms: float

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.requests * 1e6


def write_requests(path: Path, num: int) -> None:
    """Lines of exactly LINE_BYTES, newline included."""
    system = "You write short, personal sales messages in plain words. " * 4
    with path.open("wb", buffering=1 << 20) as file:
        for number in range(num):
            head = f'{{"custom_id":"lead_{number:08d}_email","params":{{"system":"{system}",'
            head += '"messages":[{"role":"user","content":"'
            tail = '"}],"max_tokens":120,"temperature":0.2},"metadata":{"leadId":"a"}}\n'
            text = f"Lead {number} asks about pricing for their team and wants an answer this week. " * 20
            file.write((head + text[: LINE_BYTES - len(head) - len(tail)] + tail).encode())


def measure(folder: Path, num: int) -> Run:
    source, output = folder / f"in{num}.jsonl", folder / f"out{num}.jsonl"
    write_requests(source, num)
    command = [sys.executable, "-m", "batchfile", "run", str(source), "-o", str(output), "--engine", "echo", "-v"]
    log = folder / f"log{num}"
    started_at = time.monotonic()
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started_at
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run of {num} requests ended with exit code {process.returncode}")
    fed = re.search(r"engine\.first_requests.*after_ms=([0-9.]+)", log.read_text())
    assert fed is not None, "the log does not tell when the first request reached the engine"
    return Run(
        requests=num,
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=wall_s,
        peak_mib=usage.ru_maxrss / 1024,
        first_request_ms=float(fed[1]),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    num = parser.parse_args().requests
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as folder:
        runs = [measure(Path(folder), count) for count in (SMALL, num)]
    print(f"{'requests':>9} {'CPU us each':>11} {'wall s':>7} {'peak MiB':>8} {'first request ms':>16}")
    for run in runs:
        print(
            f"{run.requests:>9} {run.cpu_us:>11.1f} {run.wall_s:>7.1f} {run.peak_mib:>8.1f} "
            f"{run.first_request_ms:>16.1f}"
        )
    small, large = runs
    growth = large.peak_mib - small.peak_mib
    print(f"memory grows by {growth:.1f} MiB from {small.requests} to {large.requests} requests")
    row = {
        "bench": "host",
        "requests": large.requests,
        "cpu_us": round(large.cpu_us, 1),
        "wall_s": round(large.wall_s, 1),
        "peak_mib": round(large.peak_mib, 1),
        "growth_mib": round(growth, 1),
        "first_request_ms": round(large.first_request_ms, 1),
    }
    print(json.dumps(row))
    is_within = (
        large.cpu_us <= CPU_US_MAX
        and growth <= GROWTH_MIB_MAX
        and large.peak_mib <= PEAK_MIB_MAX
        and large.first_request_ms <= FIRST_REQUEST_MS_MAX
    )
    # A small run is dominated by the process's own start: only the full size is judged.
    return 0 if is_within or num < 500_000 else 1


if __name__ == "__main__":
    sys.exit(main())
