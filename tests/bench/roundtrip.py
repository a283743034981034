"""How long one request takes through the whole service: from POST to a finished batch, with the echo engine.

The API and one runner as real processes over a directory store; the batch is asked for until it has ended. What it
shows is the path itself: the change notification, the claim, the checkpoint, the assembly.

Run: `python tests/bench/roundtrip.py` (30 batches; `--batches` for less).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from ingest import ROOT, free_port, server

MEDIAN_S_MAX = 1.5
ASK_S = 0.02
WAIT_S = 600.0


def one(http: httpx.Client, number: int) -> float:
    """Seconds from the POST to the first status that says `ended`."""
    params = {"messages": [{"role": "user", "content": f"Lead {number}"}], "max_tokens": 16}
    document = {"stage": "email", "requests": [{"custom_id": "a", "params": params}]}
    started_at = time.monotonic()
    batch_id = http.post("/v1/messages/batches", json=document).raise_for_status().json()["id"]
    while time.monotonic() - started_at < WAIT_S:
        status = http.get(f"/v1/messages/batches/{batch_id}").raise_for_status().json()
        if status["processing_status"] == "ended":
            return time.monotonic() - started_at
        time.sleep(ASK_S)
    raise SystemExit(f"{batch_id} did not end in {WAIT_S} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as name:
        folder, port = Path(name), free_port()
        store = ["--store", str(folder / "store")]
        api = [sys.executable, "-m", "api", "--port", str(port), *store]
        runner = [
            sys.executable,
            "-m",
            "runners",
            "--pool",
            "mistral",
            "--engine",
            "echo",
            "--metrics-port",
            "0",
            *store,
        ]
        core = sorted(os.sched_getaffinity(0))[-1]
        with server(api, port, folder / "api.log", core), (folder / "runner.log").open("wb") as log:
            working = subprocess.Popen(
                runner, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
            )
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http:
                    one(http, 0)  # the first one waits for the engine to load
                    found = [one(http, number) for number in range(args.batches)]
            finally:
                working.terminate()
                working.wait(60)
    row = {
        "bench": "roundtrip",
        "batches": args.batches,
        "median_s": round(statistics.median(found), 3),
        "max_s": round(max(found), 3),
    }
    print(f"from POST to a finished batch of one request: median {row['median_s']} s, slowest {row['max_s']} s")
    print(json.dumps(row))
    return 0 if statistics.median(found) <= MEDIAN_S_MAX or args.batches < 10 else 1


if __name__ == "__main__":
    sys.exit(main())
