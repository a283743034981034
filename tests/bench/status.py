"""What the status of a large open batch costs: store requests and time, on a directory and on an S3 server.

Builds the batch's state by the ledger's own verbs, without running it: a thousand requests a shard, every shard held
and half done. Run: `python tests/bench/status.py` (1,000 shards; `--shards` for fewer, `--only` for one store).
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from batchfile import BatchStatus, Ledger
from batchfile.types import Defaults, RoutingTable, Usage
from tests.helpers.ledger import (
    BatchRecord,
    InputRef,
    Lease,
    Plan,
    Planned,
    Range,
    StatusReader,
    batches,
    encode,
    keys,
    shards,
)
from tests.helpers.lines import FinishedLine
from tests.helpers.store import DirectoryStore, MeteredStore, Store
from tests.helpers.store_s3 import S3Store

BATCH, POOL = "batch_0123456789ab", "mistral"
REQUESTS_A_SHARD = 1000
LIST_PAGE = 1000  # keys in one answer to a listing, on S3
NUM_LOOKS = 9
NUM_CHANGED = 10
WARM_MS_MAX = {"directory": 50.0, "s3": 300.0}
CONTRACT = Path(__file__).parents[1] / "contract" / "conftest.py"


@dataclass(frozen=True)
class Row:
    """One store: milliseconds and store requests of a first look, of one without news, of one with some."""

    store: str
    cold_ms: float
    cold_requests: int
    warm_ms: float
    warm_requests: int
    changed_ms: float
    changed_requests: int

    def is_within(self, num_shards: int) -> bool:
        allowed = 2 + num_shards / LIST_PAGE
        is_quick = self.warm_ms <= WARM_MS_MAX[self.store] or num_shards < 1000
        return is_quick and self.warm_requests <= allowed and self.changed_requests <= allowed + NUM_CHANGED


def build(ledger: Ledger, num_shards: int) -> list[Lease]:
    """A batch of which every shard is held and half done."""
    ranges = tuple(
        Range(
            start=n * 10**6,
            end=(n + 1) * 10**6,
            first=n * REQUESTS_A_SHARD,
            first_row=n + 1,
            num_lines=REQUESTS_A_SHARD,
        )
        for n in range(num_shards)
    )
    plan = Plan(ranges=ranges, pools={POOL: dict.fromkeys(range(num_shards), REQUESTS_A_SHARD)})
    plan_key = keys.plan_key(BATCH, "n")
    ledger.store.put(plan_key, encode(plan))
    planned = Planned(
        input=InputRef(key=keys.input_key(BATCH, "n"), etag="", size=0, sha256="", format="native"),
        plan=plan,
        plan_key=plan_key,
        total=num_shards * REQUESTS_A_SHARD,
        num_rejected=0,
    )
    routing = RoutingTable(pools={POOL: (POOL,)})
    batch = batches.create(ledger, batches.Draft(batch_id=BATCH, routing=routing, defaults=Defaults()), planned)
    return [_half_done(ledger, batch, plan, n) for n in range(num_shards)]


def _half_done(ledger: Ledger, batch: BatchRecord, plan: Plan, n: int) -> Lease:
    held = shards.claim(ledger, batch, plan, POOL, n, runner="bench")
    assert isinstance(held, Lease)
    answer(ledger, held, range(0, REQUESTS_A_SHARD, 2))
    return held


def answer(ledger: Ledger, held: Lease, places: range) -> None:
    usage = Usage(input_tokens=100, output_tokens=10)
    shards.checkpoint(ledger, held, [FinishedLine(n, "succeeded", b"{}", usage) for n in places], has_dispatched=True)


def measure(name: str, store: Store, num_shards: int, num_requests: Callable[[], int]) -> Row:
    ledger = Ledger(store=store)
    held = build(ledger, num_shards)
    reader = StatusReader(ledger)

    def look() -> tuple[BatchStatus, float, int]:
        before, started_at = num_requests(), time.perf_counter()
        found = reader.read(BATCH)
        took_ms = (time.perf_counter() - started_at) * 1000
        assert found is not None
        return found.status, took_ms, num_requests() - before

    first, cold_ms, cold_requests = look()
    assert first.counts.succeeded == num_shards * REQUESTS_A_SHARD // 2
    warm = [look() for _ in range(NUM_LOOKS)]
    changed = []
    for number in range(NUM_LOOKS):
        for one in held[:NUM_CHANGED]:
            answer(ledger, one, range(2 * number + 1, 2 * number + 2))
        changed.append(look())
    assert changed[-1][0].counts.succeeded == first.counts.succeeded + NUM_LOOKS * min(NUM_CHANGED, num_shards)
    return Row(
        store=name,
        cold_ms=round(cold_ms, 1),
        cold_requests=cold_requests,
        warm_ms=round(median(took_ms for _, took_ms, _ in warm), 1),
        warm_requests=max(num for _, _, num in warm),
        changed_ms=round(median(took_ms for _, took_ms, _ in changed), 1),
        changed_requests=max(num for _, _, num in changed),
    )


def on_a_directory(num_shards: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as folder:
        store = MeteredStore(DirectoryStore(folder, fsync=False))
        return measure("directory", store, num_shards, lambda: sum(f.num for f in store.figures().values()))


def on_s3(num_shards: int) -> Row:
    """On the S3 server of the contract tests; requests are counted where they leave the client."""
    sent: list[str] = []
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as folder, s3_server(Path(folder)) as (bucket, url):
        store = S3Store(bucket, "bench", endpoint_url=url)
        for client in (store._control, store._data):
            client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.method))
        try:
            return measure("s3", store, num_shards, lambda: len(sent))
        finally:
            store.close()


@contextmanager
def s3_server(folder: Path) -> Iterator[tuple[str, str]]:
    contract = _load(CONTRACT)
    os.environ.update(contract.CREDENTIALS)
    port = contract.free_port()
    env = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
    server = contract.serve([str(Path(sys.executable).with_name("ministack"))], port, folder, env)
    try:
        yield contract.BUCKET, next(server)
    finally:
        server.close()


def _load(path: Path) -> Any:
    # Test folders are no packages, so a neighbour is loaded by its path.
    spec = importlib.util.spec_from_file_location("contract_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--only", choices=["directory", "s3"])
    options = parser.parse_args()
    places = {"directory": on_a_directory, "s3": on_s3}
    rows = [place(options.shards) for name, place in places.items() if options.only in {None, name}]
    print(
        f"{'store':>10} {'first ms':>9} {'requests':>8} {'warm ms':>8} {'requests':>8} "
        f"{'changed ms':>10} {'requests':>8}"
    )
    for row in rows:
        print(
            f"{row.store:>10} {row.cold_ms:>9.1f} {row.cold_requests:>8} {row.warm_ms:>8.1f} {row.warm_requests:>8} "
            f"{row.changed_ms:>10.1f} {row.changed_requests:>8}"
        )
    print(json.dumps({"bench": "status", "shards": options.shards, "rows": [asdict(row) for row in rows]}))
    return 0 if all(row.is_within(options.shards) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
