"""What reading results costs: a file of 1,000,000 results out of a directory store through the service.

In both shapes: the stage contract's document (every line is rendered) and the native file (sent as it is stored). The
server is one process on one core; memory is its anonymous memory at its peak, as /proc tells.

Run: `python tests/bench/results.py` (1,000,000 results; `--results` for less).
"""

import argparse
import hashlib
import http.client
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ingest import anon_mib, free_port, server, watched

from batchfile.types import Choice, Completion, Counts, Defaults, RoutingTable, Usage
from tests.helpers.ledger import BatchRecord, FileRef, InputRef, encode, keys
from tests.helpers.lines import encode_result
from tests.helpers.store import DirectoryStore

BATCH_ID = "batch_0123456789ab"
ROUNDS = 5
MB_S_MIN = 100.0
GROWTH_MIB_MAX = 32.0
SHAPES = {"stage": f"/v1/messages/batches/{BATCH_ID}/results", "native": f"/api/batches/{BATCH_ID}/results"}


def write_batch(store: DirectoryStore, num: int) -> None:
    """An ended batch whose results are about 500 bytes each."""
    text = "Thank you for asking about our pricing. Here is what a team of your size usually starts with. " * 3
    digest, size = hashlib.sha256(), 0
    key = keys.results_key(BATCH_ID, "bench")
    with store.writer(key) as writer:
        for number in range(num):
            usage = Usage(input_tokens=200 + number % 50, output_tokens=60, cached_tokens=128)
            outcome = Completion(choices=(Choice(f"Hello {number}. {text}", "end_turn"),), usage=usage)
            line = encode_result(f"lead_{number:08d}_email", outcome, "mistral") + b"\n"
            digest.update(line)
            size += len(line)
            writer.write(line)
        writer.commit()
    now = time.time()
    record = BatchRecord(
        batch_id=BATCH_ID,
        created_at=now,
        expires_at=now + 3600,
        ended_at=now,
        state="ended",
        reason="completed",
        input=InputRef(key="", etag="", size=0, sha256="", format="native"),
        plan_key="",
        total=num,
        counts=Counts(succeeded=num),
        routing=RoutingTable(),
        defaults=Defaults(),
        results=FileRef(key=key, size=size, sha256=digest.hexdigest(), num_lines=num),
    )
    store.put(keys.batch_key(BATCH_ID), encode(record))
    store.put(keys.index_key(record.tenant, now, BATCH_ID), b"")


def download(port: int, pid: int, path: str) -> tuple[float, float]:
    """MB/s as they came over the wire, and by how many MiB the server grew."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    before = anon_mib(pid)
    with watched(pid) as peaks:
        started_at, size = time.monotonic(), 0
        connection.request("GET", path, headers={"Accept-Encoding": "identity"})
        answer = connection.getresponse()
        while chunk := answer.read(1 << 20):
            size += len(chunk)
        wall_s = time.monotonic() - started_at
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"the server answered {answer.status}")
    return size / 1e6 / wall_s, max(peaks) - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--core", type=int, default=0, help="the core that the server has to itself")
    args = parser.parse_args()
    row: dict[str, object] = {"bench": "results", "results": args.results}
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as name:
        folder = Path(name)
        write_batch(DirectoryStore(folder / "store"), args.results)
        port = free_port()
        command = [sys.executable, "-m", "api", "--port", str(port), "--store", str(folder / "store")]
        print(f"{'':>8}  {'MB/s':>8}  {'grew MiB':>8}")
        with server(command, port, folder / "api.log", args.core) as pid:
            for shape, path in SHAPES.items():
                download(port, pid, path)  # the first one loads what the route needs
                found = [download(port, pid, path) for _ in range(args.rounds)]
                mb_s = statistics.median(rate for rate, _ in found)
                growth_mib = max(growth for _, growth in found)
                print(f"{shape:>8}  {mb_s:8.0f}  {growth_mib:8.1f}")
                row |= {f"{shape}_mb_s": round(mb_s, 1), f"{shape}_growth_mib": round(growth_mib, 1)}
    print(json.dumps(row))
    is_fast = all(float(str(row[f"{shape}_mb_s"])) >= MB_S_MIN for shape in SHAPES)
    is_flat = all(float(str(row[f"{shape}_growth_mib"])) <= GROWTH_MIB_MAX for shape in SHAPES)
    # A short run is for completion only: it judges nothing.
    return 0 if (is_fast and is_flat) or args.rounds < 3 else 1


if __name__ == "__main__":
    sys.exit(main())
