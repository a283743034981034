"""What every store does alike. One suite over memory, directory, a faultless faulty one and two S3 servers."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError
from batchfile.testing import ManualClock
from tests.helpers.store import Store, prove_conditions

NUM_WRITERS = 12
NUM_ROUNDS = 5
MIB = 1024 * 1024

UNUSUAL_NAMES = [
    "with space.json",
    "ümlaut-日本-😀.jsonl",
    "percent%20%zz",
    "plus+and&amp;?query=1#hash",
    "quote'\"<>",
    "~tilde,semicolon;equals=",
    ".hidden",
    "dots..inside...",
    "a/deep/er/path/with.json/inside",
]


def race(write: Callable[[int], object]) -> list[int]:
    """The writers that were told that they won."""
    barrier = threading.Barrier(NUM_WRITERS)

    def attempt(n: int) -> bool:
        barrier.wait()
        try:
            write(n)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(NUM_WRITERS) as threads:
        return [n for n, is_won in enumerate(threads.map(attempt, range(NUM_WRITERS))) if is_won]


def keys_of(store: Store, prefix: str, after: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix, after=after)]


def read(store: Store, key: str, start: int = 0, end: int | None = None, match: str | None = None) -> bytes:
    return b"".join(store.stream(key, start, end, match=match))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_what_was_put_is_what_is_read(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    etag = store.put(key, b"one")
    found = store.get(key)
    assert found is not None
    assert (found.data, found.etag) == (b"one", etag)
    entry = store.head(key)
    assert entry is not None
    assert (entry.key, entry.size, entry.etag) == (key, 3, etag)
    (listed,) = store.list(f"{folder}/")
    assert (listed.key, listed.size, listed.etag) == (key, 3, etag)
    assert abs(listed.modified_at - entry.modified_at) <= 1  # HTTP headers have whole seconds
    assert read(store, key) == b"one"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_put_replaces_and_changes_the_etag(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    first = store.put(key, b"one")
    second = store.put(key, b"two")
    found = store.get(key)
    assert first != second
    assert found is not None
    assert (found.data, found.etag) == (b"two", second)


def test_a_missing_object_is_none_and_its_stream_an_error(store: Store, folder: str) -> None:
    for key in (f"{folder}/a.json", f"{folder}/a"):
        assert store.get(key) is None
        assert store.head(key) is None
        assert store.get_if_changed(key, "0" * 32) is None
        with pytest.raises(ObjectMissing):
            list(store.stream(key))
        with pytest.raises(ObjectMissing):
            list(store.stream(key, 5, 5))


def test_an_empty_object_is_an_object(store: Store, folder: str) -> None:
    etag = store.put(f"{folder}/put", b"")
    with store.writer(f"{folder}/written") as writer:
        writer.commit()
    for key in (f"{folder}/put", f"{folder}/written"):
        found = store.get(key)
        assert found is not None
        assert found.data == b""
        assert list(store.stream(key)) == []
        assert [entry.size for entry in store.list(key)] == [0]
    assert list(store.stream(f"{folder}/put", match=etag)) == []


def test_ages_are_by_the_stores_clock_and_not_negative(store: Store, folder: str) -> None:
    store.put(f"{folder}/a.json", b"1")
    found = store.get(f"{folder}/a.json")
    assert found is not None
    assert 0 <= found.age_s < 60
    assert abs(found.modified_at - found.read_at) < 60


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_absent_writes_only_where_nothing_is(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    etag = store.put(key, b"one", absent=True)
    with pytest.raises(PreconditionFailed):
        store.put(key, b"two", absent=True)
    found = store.get(key)
    assert found is not None
    assert (found.data, found.etag) == (b"one", etag)
    store.delete(key)
    store.put(key, b"three", absent=True)
    assert read(store, key) == b"three"


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_match_writes_only_over_that_version(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    first = store.put(key, b"one")
    second = store.put(key, b"two", match=first)
    with pytest.raises(PreconditionFailed):
        store.put(key, b"three", match=first)
    assert read(store, key) == b"two"
    store.put(key, b"four", match=second)
    assert read(store, key) == b"four"


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_match_never_creates(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    etag = store.put(key, b"one")
    store.delete(key)
    with pytest.raises(PreconditionFailed):
        store.put(key, b"two", match=etag)
    assert store.get(key) is None


def test_of_racing_creators_one_wins_and_its_bytes_stand(store: Store, folder: str) -> None:
    for n in range(NUM_ROUNDS):
        key = f"{folder}/{n}.json"
        winners = race(lambda i, key=key: store.put(key, b"%d" % i, absent=True))  # type: ignore[misc]
        assert len(winners) == 1
        assert read(store, key) == b"%d" % winners[0]


def test_of_racing_replacers_one_wins_and_its_bytes_stand(store: Store, folder: str) -> None:
    key = f"{folder}/a.json"
    etag = store.put(key, b"first")
    for n in range(NUM_ROUNDS):
        winners = race(lambda i, n=n, etag=etag: store.put(key, b"%d-%d" % (n, i), match=etag))  # type: ignore[misc]
        assert len(winners) == 1
        found = store.get(key)
        assert found is not None
        assert found.data == b"%d-%d" % (n, winners[0])
        etag = found.etag


def test_no_increment_of_a_shared_counter_is_lost(store: Store, folder: str) -> None:
    key, num_threads, num_each = f"{folder}/counter.json", 4, 5
    store.put(key, b"0")

    def count(_: int) -> None:
        done = 0
        while done < num_each:
            found = store.get(key)
            assert found is not None
            try:
                store.put(key, b"%d" % (int(found.data) + 1), match=found.etag)
            except PreconditionFailed:
                continue
            done += 1

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(count, range(num_threads)))
    assert read(store, key) == b"%d" % (num_threads * num_each)


def test_many_threads_use_one_store(store: Store, folder: str) -> None:
    def use(n: int) -> bytes:
        store.put(f"{folder}/{n}", b"%d" % n)
        return read(store, f"{folder}/{n}")

    with ThreadPoolExecutor(40) as threads:
        assert list(threads.map(use, range(120))) == [b"%d" % n for n in range(120)]
    assert len(keys_of(store, f"{folder}/")) == 120


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_get_if_changed_gives_only_what_is_new(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    first = store.put(key, b"one")
    assert store.get_if_changed(key, first) == "unchanged"
    store.put(key, b"two")
    found = store.get_if_changed(key, first)
    assert found is not None
    assert found != "unchanged"
    assert found.data == b"two"


def test_a_stream_gives_exactly_its_range(store: Store, folder: str) -> None:
    key, data = f"{folder}/a", bytes(range(256)) * 10
    store.put(key, data)
    for start, end in ((0, None), (0, 1), (5, 300), (2559, 2560), (2559, None), (7, 7), (100, 9999), (2560, None)):
        assert read(store, key, start, end) == data[start:end]
    assert read(store, key, 5000, 6000) == b""


def test_a_long_stream_comes_in_chunks_of_at_most_1_mib(store: Store, folder: str) -> None:
    key, data = f"{folder}/a", os.urandom(3 * MIB + 17)
    store.put(key, data)
    chunks = list(store.stream(key, 5))
    assert b"".join(chunks) == data[5:]
    assert len(chunks) > 1
    assert all(0 < len(chunk) <= MIB for chunk in chunks)


def test_a_stream_that_is_left_early_harms_nothing(store: Store, folder: str) -> None:
    key, data = f"{folder}/a", os.urandom(3 * MIB)
    store.put(key, data)
    for _ in range(3):
        first = next(iter(store.stream(key)))
        assert first == data[: len(first)]
    assert read(store, key) == data


@pytest.mark.parametrize("name", ["a.json", "a"])
def test_a_pinned_stream_reads_that_version_or_fails(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    first = store.put(key, b"first!")
    assert read(store, key, match=first) == b"first!"
    assert read(store, key, 2, 4, match=first) == b"rs"
    store.put(key, b"second")
    for start, end in ((0, None), (2, 4), (0, 6), (3, 3), (99, None)):
        with pytest.raises(ObjectChanged):
            read(store, key, start, end, match=first)


def test_a_writer_shows_nothing_before_its_commit(store: Store, folder: str) -> None:
    key = f"{folder}/a.jsonl"
    with store.writer(key) as writer:
        for n in range(10):
            writer.write(b"line %d\n" % n)
        assert store.get(key) is None
        assert keys_of(store, f"{folder}/") == []
        etag = writer.commit()
    found = store.get(key)
    assert found is not None
    assert found.data == b"".join(b"line %d\n" % n for n in range(10))
    assert found.etag == etag


def test_a_writer_that_is_left_without_commit_leaves_nothing(store: Store, folder: str) -> None:
    with store.writer(f"{folder}/left") as writer:
        writer.write(b"half")
    with suppress(ZeroDivisionError), store.writer(f"{folder}/failed") as writer:
        writer.write(b"half")
        raise ZeroDivisionError
    assert keys_of(store, f"{folder}/") == []


def test_a_writer_that_is_left_keeps_what_was_there(store: Store, folder: str) -> None:
    store.put(f"{folder}/a", b"old")
    with store.writer(f"{folder}/a") as writer:
        writer.write(b"new")
    assert read(store, f"{folder}/a") == b"old"


def test_a_writer_takes_more_than_one_part(store: Store, folder: str) -> None:
    key, piece = f"{folder}/large", os.urandom(5 * MIB)
    with store.writer(key) as writer:
        for _ in range(7):
            writer.write(piece)
        etag = writer.commit()
    entry = store.head(key)
    assert entry is not None
    assert (entry.size, entry.etag) == (35 * MIB, etag)
    assert read(store, key, match=etag) == piece * 7
    assert read(store, key, 16 * MIB - 10, 16 * MIB + 10) == (piece * 7)[16 * MIB - 10 : 16 * MIB + 10]
    with store.writer(f"{folder}/left") as writer:
        for _ in range(4):
            writer.write(piece)
    assert keys_of(store, f"{folder}/") == [key]


def test_a_writer_keeps_its_own_copy_of_a_buffer(store: Store, folder: str) -> None:
    buffer = bytearray(b"one")
    with store.writer(f"{folder}/a") as writer:
        writer.write(buffer)
        buffer[:] = b"two"
        writer.commit()
    assert read(store, f"{folder}/a") == b"one"


def test_a_listing_is_in_byte_order_and_complete(store: Store, folder: str) -> None:
    # `a-b` before `a/b` before `a0`: a folder must not sort by its bare name.
    names = ["a b", "a-b", "a.b/c", "a/b", "a/b-c", "a/b.json", "a0", "A", "Z/a", "z", "é", "日本", "😀", "\uffee"]
    for name in names:
        store.put(f"{folder}/{name}", b"x")
    expected = sorted((f"{folder}/{name}" for name in names), key=str.encode)
    assert keys_of(store, f"{folder}/") == expected
    for n, key in enumerate(expected):
        assert keys_of(store, f"{folder}/", after=key) == expected[n + 1 :]


def test_a_listing_goes_on_past_1000_objects(store: Store, folder: str) -> None:
    keys = [f"{folder}/{n % 7}/{n:04d}.json" for n in range(1010)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.put(key, b"{}"), keys))
    keys.sort()
    assert keys_of(store, f"{folder}/") == keys
    assert keys_of(store, f"{folder}/", after=keys[7]) == keys[8:]
    assert keys_of(store, f"{folder}/3/", after=f"{folder}/3/05") == [
        key for key in keys if key > f"{folder}/3/05" and key < f"{folder}/4"
    ]


def test_a_prefix_may_end_inside_a_name(store: Store, folder: str) -> None:
    for name in ("in-1", "in-2", "in/3", "out", "i"):
        store.put(f"{folder}/{name}", b"")
    assert keys_of(store, f"{folder}/in") == [f"{folder}/{name}" for name in ("in-1", "in-2", "in/3")]
    assert keys_of(store, f"{folder}/in-") == [f"{folder}/{name}" for name in ("in-1", "in-2")]
    assert keys_of(store, f"{folder}/nothing/") == []
    assert keys_of(store, f"{folder}/in", after=f"{folder}/in-1") == [f"{folder}/in-2", f"{folder}/in/3"]
    assert keys_of(store, f"{folder}/in", after=f"{folder}/in/0") == [f"{folder}/in/3"]
    assert keys_of(store, f"{folder}/in", after=f"{folder}/z") == []


def test_objects_may_come_and_go_while_they_are_listed(store: Store, folder: str) -> None:
    keys = [f"{folder}/{n}.json" for n in range(9)]
    for key in keys:
        store.put(key, b"{}")
    for entry in store.list(f"{folder}/"):
        for key in keys:
            store.delete(key)
        assert entry.key in keys
    assert keys_of(store, f"{folder}/") == []


def test_delete_removes_and_is_silent_where_nothing_is(store: Store, folder: str) -> None:
    store.put(f"{folder}/a/b", b"x")
    store.delete(f"{folder}/a/b")
    store.delete(f"{folder}/a/b")
    assert store.get(f"{folder}/a/b") is None
    store.put(f"{folder}/a", b"where a folder was")
    assert read(store, f"{folder}/a") == b"where a folder was"


def test_many_are_deleted_together_those_that_are_not_there_included(store: Store, folder: str) -> None:
    keys = [f"{folder}/{name}" for name in (*UNUSUAL_NAMES, *map(str, range(20)))]
    for key in keys:
        store.put(key, b"x")
    store.put(f"{folder}/kept", b"x")
    store.delete_many([*keys, f"{folder}/absent"])
    assert keys_of(store, f"{folder}/") == [f"{folder}/kept"]
    store.delete_many(keys)
    store.delete_many([])


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_unusual_keys_are_keys(store: Store, folder: str, name: str) -> None:
    key = f"{folder}/{name}"
    etag = store.put(key, name.encode(), absent=True)
    assert read(store, key, match=etag) == name.encode()
    assert keys_of(store, f"{folder}/") == [key]
    with pytest.raises(PreconditionFailed):
        store.put(key, b"", absent=True)
    store.delete(key)
    assert keys_of(store, f"{folder}/") == []


@pytest.mark.parametrize(
    "key", ["", "/absolute", "a//b", "a/", "../up", "a/../b", "a/./b", ".", "..", "a\\b", "a\0b", "\ud800", ".store/x"]
)
def test_bad_keys_are_refused(store: Store, key: str) -> None:
    for use in (
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.delete(key),
        lambda: list(store.stream(key)),
        lambda: store.writer(key),
    ):
        with pytest.raises(StoreError, match="cannot be a key"):
            use()


def test_the_store_keeps_its_conditions(store: Store) -> None:
    proof = prove_conditions(store, clock=ManualClock())  # however slow this machine is
    assert not proof.unclear, proof
    assert keys_of(store, "proof/") == []


def test_an_owner_who_never_was_is_not_known_dead(store: Store, folder: str) -> None:
    assert not store.is_process_dead(folder)
    with store.hold_process_lock(folder):
        assert not store.is_process_dead(folder)
