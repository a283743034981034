"""What the tests of dropped files share: a store with an inbox, one janitor, and who runs its batches."""

import json
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from batchfile.types import RoutingTable
from tests.helpers.engine import engine_factory
from tests.helpers.inbox import Inbox, Janitor, scan
from tests.helpers.ledger import BatchRecord, Limits, SetAside, batches, keys
from tests.helpers.store import DirectoryStore, Store
from tests.helpers.store_s3 import S3Store

POOLS = RoutingTable(stages={"email": "mistral"}, pools={"mistral": ("org/m",), "llama": ("l",)})


class World:
    def __init__(self, store: Store, clock: ManualClock | None = None) -> None:
        self.store = store
        self.clock = clock
        self.ledger = self.new_ledger(7)
        self.janitor = self.new_janitor("s")

    def new_ledger(self, seed: int) -> Ledger:
        more: dict[str, Any] = {} if self.clock is None else {"clock": self.clock}
        return Ledger(store=self.store, rng=random.Random(seed), limits=Limits(checkpoint_s=1.0), **more)

    def new_janitor(self, name: str, ledger: Ledger | None = None) -> Janitor:
        ledger = ledger or self.ledger
        return Janitor(ledger, runner=name, inbox=Inbox(ledger, POOLS))

    def drop(self, path: str, *rows: Any) -> bytes:
        data = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
        self.store.put(f"inbox/{path}", data)
        return data

    def batches(self) -> list[BatchRecord]:
        ids = [keys.index_batch_id(entry.key) for entry in self.store.list(keys.INDEX_PREFIX)]
        found = [batches.read_batch(self.ledger, batch_id) for batch_id in ids]
        return sorted((batch for batch in found if batch is not None), key=lambda batch: batch.created_at)

    def only(self) -> BatchRecord:
        (batch,) = self.batches()
        return batch

    def run(self, batch: BatchRecord, pool: str = "mistral") -> BatchRecord:
        options = RunnerOptions(runner_id=f"r-{uuid.uuid4().hex}", pool=pool, only=batch.batch_id, is_janitor=False)
        ended = Runner(self.ledger, engine_factory("echo", model="echo"), options).run()
        assert ended is not None
        return ended

    def out(self, path: str) -> bytes | None:
        found = self.store.get(f"outbox/{path}")
        return None if found is None else found.data

    def document(self, path: str) -> Any:
        data = self.out(path)
        assert data is not None, path
        return json.loads(data)

    def outbox(self) -> list[str]:
        return [entry.key.removeprefix("outbox/") for entry in self.store.list("outbox/")]


def native(custom_id: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "params": {"messages": [{"role": "user", "content": text}], "max_tokens": 8},
        **more,
    }


@pytest.fixture(params=["memory", "directory", "ministack"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Each test has a store of its own: an inbox is one for the whole store. Files are whole when they are there."""
    monkeypatch.setattr(scan, "QUIET_S", -3600.0)
    match request.param:
        case "memory":
            yield World(MemoryStore())
        case "directory":
            yield World(DirectoryStore(tmp_path / "store", fsync=False))
        case _:
            url = request.getfixturevalue("ministack_url")
            store = S3Store("contract", f"inbox-{uuid.uuid4().hex}", endpoint_url=url)
            store.prove()
            yield World(store)
            store.close()


@pytest.fixture
def still() -> World:
    """In memory, by a clock that only tests move."""
    clock = ManualClock()
    return World(MemoryStore(clock), clock)


class Killed(BaseException):
    """Where a process died."""


def made_and_died(still: World) -> None:
    """A file is dropped, and the process that looks makes its batch and dies before its claim says so."""
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)

    def die(number: int, verb: str, key: str, phase: str) -> None:
        if phase == "after" and key.endswith("/batch.json"):
            raise Killed

    faulty = Ledger(store=FaultyStore(still.store, on_call=die), clock=still.clock, rng=random.Random(3))
    with pytest.raises(Killed):
        Inbox(faulty, POOLS).look(SetAside(faulty))
