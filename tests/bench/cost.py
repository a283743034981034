"""What a bucket costs: requests to it, counted by the processes themselves, and dollars for a million requests.

An API replica and one runner with their default times over a real S3 server. First nothing happens, which gives what
they cost by the hour; then two batches of different sizes, which give what a shard costs and what a batch does. A
listing of over 1,000 objects and an upload in parts are counted as one request each. The last line is JSON.

Run: `python tests/bench/cost.py`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.chaos.servers import BUCKET, KEYS, PREFIX, Server, free_ports  # noqa: E402
from tests.helpers.ledger import Limits  # noqa: E402

# AWS S3 Standard, us-east-1, a million. What is removed, and what goes to machines in the region, is free.
DOLLARS = {"write": 5.00, "list": 5.00, "read": 0.40, "delete": 0.0}
KINDS = {"put": "write", "write": "write", "link": "write", "get": "read", "head": "read", "stream": "read"}
SHARDS_MAX = 1_000  # of a batch of a million requests
RUNNERS, RATE, HELD = 10, 40.0, 2  # requests a second and shards at once, of each runner
COUNTED = re.compile(r'^batchfile_store_requests_total\{.*verb="([a-z]+)".*\} ([0-9.e+]+)$', re.MULTILINE)
WAIT_S = 600.0


class Process:
    """Counts what it asked of the store since the last look."""

    def __init__(self, command: list[str], url: str, folder: Path) -> None:
        self.url = url
        environ = {**os.environ, **KEYS, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", *command]
        with (folder / f"{command[2]}.log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
        self._before: Counter[str] = Counter()

    def wait(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/metrics", trust_env=False).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise TimeoutError(self.url)

    def spent(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for verb, num in COUNTED.findall(httpx.get(f"{self.url}/metrics", trust_env=False, timeout=60).text):
            found[KINDS.get(verb, verb)] += round(float(num))
        since = found - self._before
        self._before = found
        return since

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def one_batch(url: str, num: int, look_s: float) -> int:
    """Create it, wait for its end as a webhook's receiver would: without asking. How many shards it had."""
    params = {"messages": [{"role": "user", "content": "Lead"}], "max_tokens": 8}
    rows = b"".join(json.dumps({"custom_id": f"r{n}", "params": params}).encode() + b"\n" for n in range(num))
    headers = {"content-type": "application/x-ndjson"}
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
        created = http.post("/v1/messages/batches", params={"stage": "email"}, content=rows, headers=headers)
        batch_id = created.raise_for_status().json()["id"]
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(look_s)  # asking costs too: seldom
            status = http.get(f"/v1/messages/batches/{batch_id}").raise_for_status().json()
            if status["processing_status"] == "ended":
                return -(-num // max(32, -(-num // SHARDS_MAX)))
    raise TimeoutError(batch_id)


def dollars(spent: dict[str, float]) -> float:
    return sum(num * DOLLARS[kind] for kind, num in spent.items()) / 1e6


def less(total: Counter[str], by_time: dict[str, float], seconds: float) -> dict[str, float]:
    """What is left of `total` without what would have been asked anyway."""
    return {kind: max(0.0, total[kind] - by_time.get(kind, 0.0) * seconds / 3600) for kind in DOLLARS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=float, default=300.0, help="seconds without work")
    parser.add_argument(
        "--warm", type=float, default=40.0, help="seconds before: what is done once an hour, is done first"
    )
    parser.add_argument("--look", type=float, default=20.0, help="seconds between two looks at a batch")
    parser.add_argument("--small", type=int, default=8_000)
    parser.add_argument("--large", type=int, default=32_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchfile-cost-") as name, ExitStack() as stack:
        folder = Path(name)
        server = Server("ministack", folder)
        stack.callback(server.kill)
        server.start()
        server.wait()
        server.make_bucket()
        row = measure(
            args, folder, ["--store", f"s3://{BUCKET}/{PREFIX}?endpoint={server.url}&region=us-east-1"], stack
        )
    print("\n".join(f"{key:>20}  {value}" for key, value in row.items()))
    print(json.dumps(row))
    return 0


def measure(args: argparse.Namespace, folder: Path, store: list[str], stack: ExitStack) -> dict[str, object]:
    port, page = free_ports(2)
    runner = ["runners", "--pool", "mistral", "--engine", "echo", "--metrics-port", str(page), *store]
    both = {
        "api": Process(["api", "--port", str(port), *store], f"http://127.0.0.1:{port}", folder),
        "runner": Process(runner, f"http://127.0.0.1:{page}", folder),
    }
    for process in both.values():
        stack.callback(process.stop)
        process.wait()
    time.sleep(args.warm)
    for process in both.values():
        process.spent()
    time.sleep(args.idle)
    idle = {who: {k: n * 3600 / args.idle for k, n in process.spent().items()} for who, process in both.items()}
    batches = []
    for num in (args.small, args.large):
        began = time.monotonic()
        shards = one_batch(both["api"].url, num, args.look)
        seconds = time.monotonic() - began
        asked = {who: less(process.spent(), idle[who], seconds) for who, process in both.items()}
        batches.append((shards, {kind: sum(asked[who][kind] for who in both) for kind in DOLLARS}))
    (few, small), (many, large) = batches
    shard = {kind: round(max(0.0, large[kind] - small[kind]) / (many - few), 2) for kind in DOLLARS}
    batch = {kind: round(max(0.0, large[kind] - many * shard[kind])) for kind in DOLLARS}
    hours = 1e6 / RATE / 3600
    held = 2 * 3600 / Limits().checkpoint_s
    by_shards = dollars(batch) + SHARDS_MAX * dollars(shard)
    by_time = hours * (dollars(idle["runner"]) + HELD * dollars({"write": held})) + hours / RUNNERS * dollars(
        idle["api"]
    )
    return {
        "bench": "cost",
        "shards": [few, many],
        "idle_hour": {who: {kind: round(num) for kind, num in spent.items()} for who, spent in idle.items()},
        "idle_hour_dollars": {who: round(dollars(spent), 4) for who, spent in idle.items()},
        "held_shard_hour": {"write": held, "dollars": round(dollars({"write": held}), 4)},
        "shard": shard,
        "batch": batch,
        "million_dollars": {"shards": round(by_shards, 3), "time": round(by_time, 3)},
        "dollars": round(by_shards + by_time, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
