"""What is left of a batch that is deleted now."""

import json
import random
from contextlib import suppress
from typing import Any

import pytest

from batchfile import Ledger
from batchfile.errors import StoreUnavailable
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import Janitor
from tests.helpers.ledger import BatchRecord, batches, ending, keys, load, purge, retention
from tests.helpers.plan import REJECT, submit

BATCH = "batch_000000000001"
SECRET = "Erika Mustermann"


def world() -> Ledger:
    """With one ended batch, in which the name is everywhere that a user can put it."""
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(1))
    row = {"custom_id": SECRET, "params": {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}}
    data = json.dumps(row).encode() + b"\n"
    draft = batches.Draft(
        batch_id=BATCH,
        routing=RoutingTable(everything="mistral"),
        defaults=Defaults(),
        metadata={"lead": SECRET},
        created_at=clock.now(),
    )
    submit(ledger, draft, [data], size=len(data), policy=REJECT)
    batches.end(ledger, BATCH, "canceled", f"canceled for {SECRET}")
    ending.finish(ledger, BATCH, runner="r")
    return ledger


def stored(ledger: Ledger) -> dict[str, bytes]:
    found = {}
    for entry in ledger.store.list(""):
        document = ledger.store.get(entry.key)
        assert document is not None
        found[entry.key] = document.data
    return found


def test_nothing_of_what_the_user_sent_is_left() -> None:
    ledger = world()
    assert SECRET in str(stored(ledger))
    retention.delete(ledger, BATCH)
    assert SECRET in str(stored(ledger)), "for downloads that are under way"
    purge(ledger, BATCH)
    left = stored(ledger)
    assert SECRET not in str(left)
    assert [key for key in left if key.startswith("batches/")] == [keys.batch_key(BATCH)]
    record = load(ledger, keys.batch_key(BATCH), BatchRecord)
    assert record is not None
    assert (record.record.state, record.record.batch_id, record.record.tenant) == ("deleted", BATCH, "default")
    written = dict(left)
    purge(ledger, BATCH)
    assert stored(ledger) == written, "again changes nothing"


def test_what_is_not_deleted_stays() -> None:
    ledger = world()
    before = stored(ledger)
    found = purge(ledger, BATCH)
    assert found is not None
    assert found.state == "ended"
    assert stored(ledger) == before
    assert purge(ledger, "batch_000000000002") is None


def test_the_last_trace_goes_with_the_tombstone_and_with_it_what_came_late() -> None:
    ledger = world()
    retention.delete(ledger, BATCH)
    purge(ledger, BATCH)
    ledger.store.put(keys.results_key(BATCH, "late"), SECRET.encode())  # of a process that slept
    janitor = Janitor(ledger, runner="s")
    for _ in range(30):
        ledger.clock.sleep(3600.0)
        janitor.tick()
    assert [key for key in stored(ledger) if BATCH in key] == []


def test_the_fence_of_a_create_that_was_given_up_stays_one() -> None:
    ledger = world()
    other = "batch_000000000009"
    retention.fence(ledger, other, "given up")
    purge(ledger, other)
    found = load(ledger, keys.batch_key(other), BatchRecord)
    assert found is not None
    assert (found.record.input.key, found.record.detail) == ("", "given up")


@pytest.mark.parametrize("last", range(1, 8))
def test_cut_off_anywhere_it_is_done_by_the_next(last: int) -> None:
    ledger = world()
    retention.delete(ledger, BATCH)
    num = 0

    def fail(*_: Any, **__: Any) -> None:
        nonlocal num
        num += 1
        if num >= last:
            raise StoreUnavailable("gone")

    flaky = Ledger(store=FaultyStore(ledger.store, on_call=fail), clock=ledger.clock, rng=ledger.rng)
    with suppress(StoreUnavailable):
        purge(flaky, BATCH)
    purge(ledger, BATCH)
    assert SECRET not in str(stored(ledger))
