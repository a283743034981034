"""What the tests of creating share: the service without HTTP, and bodies."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from batchfile import Ledger
from batchfile.testing import ManualClock, MemoryStore
from tests.helpers.ledger import BatchRecord, batches
from tests.helpers.plan import CreateOptions
from tests.helpers.service import Spooled, SpoolLimits, create_batch, spool
from tests.helpers.settings import Api, PoolSettings, load_settings
from tests.helpers.store import Store

STAGES = {"sales_intel": "llama-70b", "subject": "mistral", "email": "mistral", "polish": "llama-70b"}
SETTINGS = load_settings().model_copy(
    update={
        "pools": {
            "mistral": PoolSettings(model="m", lora={"short": "/adapters/short"}),
            "llama-70b": PoolSettings(model="l", aliases=("big",)),
        },
        "stages": STAGES,
        "api": Api(requests_max=50_000),
    }
)
JSON = "application/json"
LINES = "application/x-ndjson"


def request(number: int, **more: object) -> dict[str, Any]:
    params = {"messages": [{"role": "user", "content": f"lead {number}"}], "max_tokens": 4}
    return {"custom_id": f"lead_{number}_email", "params": params, **more}


def document(requests: list[Any], **more: object) -> bytes:
    return json.dumps({"stage": "email", "requests": requests, **more}, indent=1).encode()


def lines(requests: list[Any]) -> bytes:
    return b"\n".join(json.dumps(item).encode() for item in requests)


@dataclass
class Service:
    """Takes bodies as the route does."""

    store: Store
    clock: ManualClock = field(default_factory=ManualClock)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(3))

    def post(
        self, body: bytes, content_type: str | None = JSON, *, ledger: Ledger | None = None, **more: Any
    ) -> BatchRecord:
        options = CreateOptions(tenant="t", arrived_at=self.clock.monotonic())

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        async def go() -> BatchRecord:
            limits = SpoolLimits(bytes_max=100_000_000, wait_s=60)
            async with spool(chunks(), content_encoding=None, content_length=None, limits=limits) as spooled:
                return take(spooled)

        def take(spooled: Spooled) -> BatchRecord:
            return create_batch(
                ledger or self.ledger, SETTINGS, spooled, replace(options, **more), content_type=content_type
            )

        return asyncio.run(go())

    def keys(self, prefix: str = "") -> list[str]:
        return [entry.key for entry in self.store.list(prefix)]

    def input(self, batch: BatchRecord) -> list[Any]:
        data = b"".join(self.store.stream(batch.input.key, match=batch.input.etag))
        assert len(data) == batch.input.size
        return [json.loads(row) for row in data.splitlines()]

    def pools(self, batch: BatchRecord) -> dict[str, int]:
        return {pool: sum(ranges.values()) for pool, ranges in batches.read_plan(self.ledger, batch).pools.items()}


@pytest.fixture
def service() -> Service:
    return Service(MemoryStore(ManualClock()))
