"""A store that fails on purpose does what it says, and the same again for the same seed."""

from collections import Counter

import pytest

from batchfile.errors import PreconditionFailed, StoreUnavailable
from batchfile.store.base import Store
from batchfile.store.conformance import prove_conditions
from batchfile.testing import Faults, FaultyStore, ManualClock, MemoryStore


def told(store: Store, key: str, *, absent: bool = True) -> str:
    try:
        store.put(key, b"x", absent=absent)
    except PreconditionFailed:
        return "refused"
    except StoreUnavailable:
        return "unavailable"
    return "done"


@pytest.mark.parametrize(
    ("faults", "answer", "is_there"),
    [
        (Faults(before=1), "unavailable", False),
        (Faults(after=1), "unavailable", True),
        (Faults(refused=1), "refused", False),
        (Faults(refused_after=1), "refused", True),
        (Faults(ghost=1), "unavailable", False),
        (Faults(), "done", True),
    ],
)
def test_each_fault_of_a_conditional_write(faults: Faults, answer: str, is_there: bool) -> None:
    inner = MemoryStore()
    assert told(FaultyStore(inner, faults=faults), "a") == answer
    assert (inner.get("a") is not None) == is_there


@pytest.mark.parametrize("faults", [Faults(refused=1), Faults(refused_after=1)])
def test_an_unconditional_write_is_never_told_of_a_condition(faults: Faults) -> None:
    assert told(FaultyStore(MemoryStore(), faults=faults), "a", absent=False) == "unavailable"


def test_the_same_seed_gives_the_same_faults() -> None:
    def run(seed: int) -> list[str]:
        faults = Faults(before=0.1, after=0.1, refused=0.1, refused_after=0.1, ghost=0.1, delay=0.5)
        store = FaultyStore(MemoryStore(), faults=faults, seed=seed, clock=ManualClock())
        return [told(store, f"{n}") for n in range(400)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert Counter(run(1)).keys() == {"done", "refused", "unavailable"}


def test_a_ghost_happens_with_a_later_call_once_its_time_has_come() -> None:
    inner, clock = MemoryStore(), ManualClock()
    store = FaultyStore(inner, faults=Faults(ghost=1, ghost_s=300), clock=clock)
    assert told(store, "a") == "unavailable"
    clock.sleep(301)
    assert inner.get("a") is None
    assert store.get("b") is None
    assert inner.get("a") is not None


def test_a_ghost_whose_condition_no_longer_holds_changes_nothing() -> None:
    inner = MemoryStore()
    store = FaultyStore(inner, faults=Faults(ghost=1))
    assert told(store, "a") == "unavailable"
    inner.put("a", b"another's")
    store.release_ghosts()
    found = inner.get("a")
    assert found is not None
    assert found.data == b"another's"


def test_a_delay_takes_time_by_the_clock() -> None:
    clock = ManualClock()
    store = FaultyStore(MemoryStore(), faults=Faults(delay=1, delay_s=10), clock=clock)
    began = clock.now()
    store.get("a")
    assert 0 < clock.now() - began <= 10


def test_while_it_is_down_every_call_is_unavailable() -> None:
    store = FaultyStore(MemoryStore())
    store.put("a", b"1")
    store.is_down = True
    for call in (
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: store.stream("a"),
        lambda: store.list(""),
        lambda: store.put("a", b"2"),
        lambda: store.delete("a"),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    store.is_down = False
    found = store.get("a")
    assert found is not None
    assert found.data == b"1"


def test_every_write_is_seen_before_and_after_it_happens() -> None:
    seen: list[tuple[int, str, str, str, bool]] = []
    inner = MemoryStore()
    store = FaultyStore(
        inner, on_call=lambda n, verb, key, phase: seen.append((n, verb, key, phase, bool(inner.get(key))))
    )
    store.put("a", b"1")
    with store.writer("b") as writer:
        writer.write(b"2")
        writer.commit()
    store.delete("a")
    store.get("a")
    assert seen == [
        (1, "put", "a", "before", False),
        (1, "put", "a", "after", True),
        (2, "commit", "b", "before", False),
        (2, "commit", "b", "after", True),
        (3, "delete", "a", "before", True),
        (3, "delete", "a", "after", False),
    ]


def test_what_a_watcher_raises_is_what_the_caller_gets() -> None:
    def stop(number: int, verb: str, key: str, phase: str) -> None:
        raise KeyboardInterrupt

    inner = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        FaultyStore(inner, on_call=stop).put("a", b"1")
    assert inner.get("a") is None


@pytest.mark.slow
def test_a_store_that_is_only_unreliable_is_not_convicted() -> None:
    faults = Faults(read=0.1, before=0.15, after=0.15, refused=0.15, refused_after=0.0, ghost=0.1)
    for seed in range(50):
        clock = ManualClock()
        try:
            prove_conditions(FaultyStore(MemoryStore(), faults=faults, seed=seed, clock=clock), clock=clock)
        except StoreUnavailable:
            continue
