"""A whole runner over an HTTP pool: one bad request holds up neither its batch nor the one behind it."""

import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.contract import chat_server
from tests.helpers.endpoint import HttpEngine, HttpOptions
from tests.helpers.ledger import Limits, batches, input_key
from tests.helpers.plan import plan_input
from tests.helpers.store import SystemClock

POOL = RoutingTable(everything="local")
WAIT_S = 60


@pytest.fixture
def server() -> Iterator[Any]:
    with chat_server.running() as found:
        yield found


def ledger_of(**texts: list[str]) -> Ledger:
    """With a batch for each name, in this order."""
    clock = SystemClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(3), limits=Limits())
    for batch_id, lines in texts.items():
        rows = [
            {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": text}], "max_tokens": 9}}
            for n, text in enumerate(lines)
        ]
        ledger.store.put(input_key(batch_id, "n"), "\n".join(map(json.dumps, rows)).encode())
        planned = plan_input(ledger, batch_id, input_key(batch_id, "n"), routing=POOL)
        batches.create(ledger, batches.Draft(batch_id=batch_id, routing=POOL, defaults=Defaults()), planned)
    return ledger


def has_ended(ledger: Ledger, batch_id: str) -> bool:
    batch = batches.read_batch(ledger, batch_id)
    assert batch is not None
    return batch.state == "ended"


def statuses(ledger: Ledger, batch_id: str) -> dict[str, str]:
    batch = batches.read_batch(ledger, batch_id)
    assert batch is not None
    assert batch.results is not None
    rows = [json.loads(row) for row in b"".join(ledger.store.stream(batch.results.key)).splitlines()]
    return {row["custom_id"]: row["status"] for row in rows}


class Working:
    """A runner in a thread of its own while this is entered."""

    def __init__(self, ledger: Ledger, url: str, **more: Any) -> None:
        options = HttpOptions(base_url=url, model="served", **({"backoff_s": 0.01, "concurrency": 2} | more))
        self.runner = Runner(ledger, lambda: HttpEngine(options), RunnerOptions(runner_id="r1", pool="local"))
        self.thread = threading.Thread(target=self.runner.run)

    def __enter__(self) -> Runner:
        self.thread.start()
        return self.runner

    def __exit__(self, *_: object) -> None:
        self.runner.stop_now()
        self.thread.join()


def wait_for(ledger: Ledger, batch_id: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not has_ended(ledger, batch_id):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("status", [429, 502])
def test_many_requests_in_back_off_hold_up_no_batch_behind_them(server: Any, status: int) -> None:
    """More of them than the engine has in flight otherwise, each with an hour before its next try."""
    server.poison = ("poison", {"status": status, "headers": {"Retry-After": "3600"}})
    ledger = ledger_of(ill=["poison"] * 60, well=["hello"] * 30)
    with Working(ledger, server.url) as runner:
        wait_for(ledger, "well")
        assert runner.info is not None
        assert not has_ended(ledger, "ill")
        assert runner.down_s == 0
    assert set(statuses(ledger, "well").values()) == {"succeeded"}


def test_the_bad_one_fails_and_its_batch_ends(server: Any) -> None:
    server.poison = ("poison", {"status": 502, "text": "<html>502 Bad Gateway</html>", "content_type": "text/html"})
    ledger = ledger_of(ill=["hello"] * 5 + ["poison"] + ["hello"] * 35, well=["hello"] * 20)
    with Working(ledger, server.url):
        for batch_id in ("ill", "well"):
            wait_for(ledger, batch_id)
    assert [key for key, status in statuses(ledger, "ill").items() if status != "succeeded"] == ["r5"]
    assert set(statuses(ledger, "well").values()) == {"succeeded"}
    assert server.num_poison == 3


def test_a_429_that_never_ends_fails_its_request_after_the_time_for_it(server: Any) -> None:
    server.poison = ("poison", {"status": 429, "text": '{"error": {"message": "slow down"}}'})
    ledger = ledger_of(ill=["hello"] * 20 + ["poison"])
    with Working(ledger, server.url, throttle_s=0.5):
        wait_for(ledger, "ill")
    assert [key for key, status in statuses(ledger, "ill").items() if status != "succeeded"] == ["r20"]
