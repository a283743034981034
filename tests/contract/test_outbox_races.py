"""A process that sleeps, or comes late, leaves the outbox to the newest version of a file."""

import hashlib
import random
from collections.abc import Callable

import pytest

from batchfile import Ledger
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from tests.contract.inbox_kit import POOLS, World, native, still
from tests.helpers.faults import Phase
from tests.helpers.inbox import OUTBOX_PREFIX, Inbox, Janitor, outbox, outbox_task_key
from tests.helpers.ledger import BatchRecord, Limits, SetAside, batches

__all__ = ["still"]

PATH = "mistral/a.jsonl"
RUBBISH = b"rubbish\n"


def reconcile(world: World, name: str = "other") -> None:
    """Others take up what is there, run it and tell of it; leases of sleepers have expired."""
    assert world.clock is not None
    janitor = world.new_janitor(name, world.new_ledger(5))
    world.clock.sleep(world.ledger.limits.lease_ttl_s)
    for _ in range(2):
        janitor.tick()
    for batch in world.batches():
        if batch.state == "open":
            world.run(batch)
    for _ in range(2):
        janitor.tick()


def replaced(world: World) -> None:
    world.drop(PATH, native("new-1"), native("new-2"), RUBBISH)
    reconcile(world)


def replaced_and_moved(world: World) -> None:
    world.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    replaced(world)
    assert world.store.head(f"inbox/{PATH}") is None


def taken_away(world: World) -> None:
    reconcile(world)
    for name in world.outbox():
        world.store.delete(f"outbox/{name}")


def rejected(world: World) -> None:
    world.drop(PATH, RUBBISH)
    reconcile(world)


def refused(world: World) -> None:
    world.drop(PATH)
    reconcile(world)


def ended_and_not_told(clock: ManualClock) -> tuple[World, BatchRecord]:
    world = World(MemoryStore(clock), clock)
    world.drop(PATH, native("old"), RUBBISH)
    clock.sleep(10.0)
    world.janitor.tick()
    ended = world.run(world.only())
    world.store.delete(outbox_task_key(ended.batch_id))
    for name in world.outbox():
        world.store.delete(f"outbox/{name}")
    return world, ended


def outbox_after(meanwhile: Callable[[World], None], sleep_at: int, *, is_word_spared: bool) -> dict[str, bytes] | None:
    """What lies there once the teller of the old version has slept through `meanwhile`. None: it never slept.

    It sleeps before its puts, and after all that it writes: what has no condition cannot be called back on its way.
    """
    clock = ManualClock()
    world, ended = ended_and_not_told(clock)
    slept, num = False, 0

    def sleep(number: int, verb: str, key: str, phase: Phase) -> None:
        nonlocal slept, num
        if phase == "before" and (verb != "put" or (is_word_spared and key.startswith(OUTBOX_PREFIX))):
            return
        num += 1
        if num == sleep_at:
            slept = True
            meanwhile(world)

    store = FaultyStore(world.store, on_call=sleep)
    sleeper = Ledger(store=store, clock=clock, rng=random.Random(1), limits=Limits(checkpoint_s=1.0))
    outbox.publish(sleeper, ended, runner="sleeper")
    if not slept:
        return None
    for _ in range(2):
        reconcile(world, "later")
    found = {name: world.out(name) for name in world.outbox()}
    return {name: data for name, data in found.items() if data is not None}


@pytest.mark.parametrize("meanwhile", [replaced, replaced_and_moved, rejected, refused, taken_away])
def test_who_sleeps_while_it_tells_of_an_old_version_leaves_the_outbox_to_the_newer(
    meanwhile: Callable[[World], None],
) -> None:
    """Only where the newer left nothing of a name, a write of that name on its way finds nothing to refuse it."""
    is_word_spared = meanwhile in {rejected, refused, taken_away}
    world, _ = ended_and_not_told(ManualClock())
    meanwhile(world)
    kinds = sorted(world.outbox())
    sleep_at = 1
    while (found := outbox_after(meanwhile, sleep_at, is_word_spared=is_word_spared)) is not None:
        assert sorted(found) == kinds, sleep_at
        results = found.get(f"{PATH}.{outbox.RESULTS}")
        if results is not None:
            assert results.startswith(b'{"custom_id":"new-1"'), sleep_at
            assert hashlib.sha256(results).hexdigest().encode() in found[f"{PATH}.{outbox.RECEIPT}"], sleep_at
        sleep_at += 1
    assert sleep_at > 8


def test_a_version_that_ends_after_a_newer_one_was_moved_tells_nothing(still: World) -> None:
    assert still.clock is not None
    still.drop(PATH, native("old"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    old = still.only()
    batches.end(still.ledger, old.batch_id, "input_changed", "replaced")
    still.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    still.drop(PATH, native("new"))
    still.clock.sleep(10.0)
    Inbox(still.ledger, POOLS).look(SetAside(still.ledger))
    new = still.batches()[-1]
    outbox.report(still.ledger, new, new.counts, new.usage)
    still.store.delete(f"inbox/{PATH}")
    reconcile(still)
    assert {batch.state for batch in still.batches()} == {"ended"}
    assert still.document(f"{PATH}.receipt.json")["batch_id"] == new.batch_id
    assert still.document(f"{PATH}.status.json")["batch_id"] == new.batch_id


@pytest.mark.parametrize("is_refused", [False, True])
def test_an_older_version_that_a_wrong_clock_took_up_is_not_the_last_word_once_the_file_is_gone(
    still: World, is_refused: bool
) -> None:
    assert still.clock is not None
    still.drop(PATH, native("old"))
    ahead = ManualClock(still.clock.now() + 30 * 86400.0)
    Inbox(Ledger(store=still.store, clock=ahead, rng=random.Random(3)), POOLS).look(SetAside(still.ledger))
    old = still.only()
    batches.end(still.ledger, old.batch_id, "input_changed", "replaced")
    if is_refused:
        still.store.put("inbox/mistral/a.batch.toml", b"x = 1")
    still.clock.sleep(10.0)
    still.drop(PATH, native("new"))
    still.clock.sleep(10.0)
    Inbox(still.ledger, POOLS).look(SetAside(still.ledger))
    (new, *_) = still.batches()
    if not is_refused:
        assert new.batch_id != old.batch_id
        outbox.report(still.ledger, new, new.counts, new.usage)
    still.store.delete(f"inbox/{PATH}")
    reconcile(still)
    if is_refused:
        assert still.outbox() == [f"{PATH}.rejected.json"]
        assert still.document(f"{PATH}.rejected.json")["batch_id"] is None
    else:
        assert still.document(f"{PATH}.receipt.json")["batch_id"] == new.batch_id


def test_who_made_the_batch_and_slept_does_not_remove_what_was_said_of_it_since(still: World) -> None:
    assert still.clock is not None
    still.drop(PATH, RUBBISH)
    still.clock.sleep(10.0)
    has_slept = []

    def sleep(number: int, verb: str, key: str, phase: Phase) -> None:
        if phase == "after" and key.endswith("/batch.json") and not has_slept:
            has_slept.append(key)
            reconcile(still)
            assert f"{PATH}.rejected.json" in still.outbox()

    ledger = Ledger(store=FaultyStore(still.store, on_call=sleep), clock=still.clock, rng=random.Random(1))
    Janitor(ledger, runner="sleeper", inbox=Inbox(ledger, POOLS)).tick()
    assert has_slept
    assert still.document(f"{PATH}.rejected.json")["batch_id"] == still.only().batch_id


def test_progress_that_comes_between_is_no_reason_to_leave_the_end_untold(still: World) -> None:
    assert still.clock is not None
    clock = still.clock
    world, ended = ended_and_not_told(clock)
    has_come = []

    def interfere(number: int, verb: str, key: str, phase: Phase) -> None:
        if (verb, phase) == ("put", "before") and key.endswith(outbox.STATUS) and not has_come:
            has_come.append(key)
            world.store.put(key, b"{}")

    ledger = Ledger(store=FaultyStore(world.store, on_call=interfere), clock=clock, rng=random.Random(1))
    assert not outbox.publish(ledger, ended, runner="r")
    assert outbox.publish(ledger, ended, runner="r")
    assert world.document(f"{PATH}.status.json")["state"] == "ended"
