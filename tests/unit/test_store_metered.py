"""The metered store: what it counts, and that it is otherwise its inner store (see the contract suite)."""

import pytest

from batchfile.errors import PreconditionFailed, StoreUnavailable
from batchfile.store.metered import Call, MeteredStore
from batchfile.testing import FaultyStore, MemoryStore


def counted(store: MeteredStore) -> dict[tuple[str, str], int]:
    return {(call.verb, call.outcome): figure.num for call, figure in store.figures().items()}


def test_every_call_is_counted_by_verb_and_by_how_it_ended() -> None:
    store = MeteredStore(MemoryStore())
    etag = store.put("a", b"1")
    assert store.get_if_changed("a", etag) == "unchanged"
    assert store.get("b") is None
    assert store.head("b") is None
    with pytest.raises(PreconditionFailed):
        store.put("a", b"2", absent=True)
    assert [entry.key for entry in store.list("")] == ["a"]
    assert b"".join(store.stream("a")) == b"1"
    with store.writer("c") as writer:
        writer.write(b"3")
        writer.commit()
    store.delete("a")
    assert counted(store) == {
        ("put", "ok"): 1,
        ("put", "refused"): 1,
        ("get", "unchanged"): 1,
        ("get", "absent"): 1,
        ("head", "absent"): 1,
        ("list", "ok"): 1,
        ("stream", "ok"): 1,
        ("write", "ok"): 1,
        ("delete", "ok"): 1,
    }


def test_a_store_that_is_down_is_counted_as_such() -> None:
    inner = FaultyStore(MemoryStore())
    store = MeteredStore(inner)
    inner.is_down = True
    with pytest.raises(StoreUnavailable):
        store.get("a")
    with pytest.raises(StoreUnavailable):
        list(store.list(""))
    assert counted(store) == {("get", "unavailable"): 1, ("list", "unavailable"): 1}


def test_a_reader_that_has_seen_enough_counts_once_and_its_own_time_does_not() -> None:
    ticks = iter([0.0, 1.0, 100.0, 102.0])
    store = MeteredStore(MemoryStore(), clock=lambda: next(ticks))
    store._inner.put("a", b"1")
    store._inner.put("b", b"2")
    entries = store.list("")
    next(entries)
    next(entries)
    entries.close()  # type: ignore[attr-defined]
    assert store.figures()[Call("list", "ok")].seconds == 3.0


def test_a_writer_that_is_left_without_a_commit_is_no_write() -> None:
    store = MeteredStore(MemoryStore())
    with store.writer("c") as writer:
        writer.write(b"3")
    assert counted(store) == {}
