"""A process that is stopped inside a lock of a directory: others wait for a bounded time, and it does no harm."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from batchfile import Ledger
from batchfile.errors import PreconditionFailed, StoreUnavailable
from tests.helpers.service import create_app
from tests.helpers.settings import Settings
from tests.helpers.store import DirectoryStore, files, locks

KEY = "batches/b/batch.json"
START_TIMEOUT_S = 60.0


class VirtualTime:
    """Waits take no time and are counted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept_s += seconds


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    found = VirtualTime()
    monkeypatch.setattr(locks, "time", found)
    return found


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@contextmanager
def stopped(store: DirectoryStore) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that stopped while it created `KEY`: under the lock, its condition already checked."""
    code = """
        import os, signal, sys
        from batchfile.store import files
        from batchfile.store.directory import DirectoryStore
        rename = files.rename
        def stop(*args, **options):
            os.kill(os.getpid(), signal.SIGSTOP)
            rename(*args, **options)
        files.rename = stop
        DirectoryStore(sys.argv[1]).put(sys.argv[2], b"the stopped one's", absent=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), store.url, KEY])
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield process
    finally:
        process.kill()
        process.wait()


def write_all_over(store: DirectoryStore) -> int:
    """How many of 200 other keys could not be written."""
    num_refused = 0
    for n in range(200):
        try:
            store.put(f"index/{n}", b"1")
        except StoreUnavailable:
            num_refused += 1
    return num_refused


def test_a_stopped_holder_is_waited_for_once_and_named(store: DirectoryStore, virtual: VirtualTime) -> None:
    with stopped(store) as process:
        named = rf"process {process.pid} on \S+ has held a lock for \d+ s and is stopped: resume it"
        with pytest.raises(StoreUnavailable, match=named):
            store.put(KEY, b"ours", absent=True)
        assert locks.WAIT_S <= virtual.slept_s < locks.WAIT_S + 1
        virtual.slept_s = 0.0
        for ask in (lambda: store.put(KEY, b"ours"), lambda: store.delete(KEY)):
            with pytest.raises(StoreUnavailable, match=named):
                ask()
        assert virtual.slept_s < 10 * locks.WAIT_LEAST_S


def test_a_stopped_holder_stops_only_what_has_its_lock(store: DirectoryStore, virtual: VirtualTime) -> None:
    with stopped(store):
        assert store.get(KEY) is None
        assert list(store.list("batches/")) == []
        assert write_all_over(store) < 200 * 4 / locks.NUM_LOCKS + 5
    assert write_all_over(store) == 0


def test_a_stopped_holder_that_wakes_up_does_no_harm(store: DirectoryStore, virtual: VirtualTime) -> None:
    with stopped(store) as process:
        with pytest.raises(StoreUnavailable):
            store.put(KEY, b"ours", absent=True)
        process.send_signal(signal.SIGCONT)
        assert process.wait(START_TIMEOUT_S) == 0
    with pytest.raises(PreconditionFailed):
        store.put(KEY, b"ours", absent=True)
    found = store.get(KEY)
    assert found is not None
    assert found.data == b"the stopped one's"
    store.put(KEY, b"ours", match=found.etag)


def test_a_killed_holder_has_no_lock(store: DirectoryStore, virtual: VirtualTime) -> None:
    with stopped(store) as process:
        process.kill()
        process.wait()
        store.put(KEY, b"ours", absent=True)
        assert virtual.slept_s == 0.0


def test_a_holder_that_is_killed_leaves_no_lock_to_its_forked_child(
    store: DirectoryStore, virtual: VirtualTime
) -> None:
    code = """
        import os, signal, sys
        from batchfile.store import files
        from batchfile.store.directory import DirectoryStore
        def fork(*args, **options):
            if os.fork() == 0:
                os.close(1)
                sys.stdin.read()  # lives on
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        files.rename = fork
        DirectoryStore(sys.argv[1]).put(sys.argv[2], b"1")
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), store.url, KEY], stdin=subprocess.PIPE)
    try:
        assert process.wait(START_TIMEOUT_S) == -signal.SIGKILL
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:  # until the child has come so far as to close its copy
            virtual.slept_s = 0.0
            try:
                store.put(KEY, b"ours")
            except StoreUnavailable:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                break
    finally:
        process.communicate()


def test_the_check_of_the_locks_finds_the_stopped_one_and_waits_for_nothing(
    store: DirectoryStore, virtual: VirtualTime
) -> None:
    store.check_locks()
    with stopped(store) as process:
        store.check_locks()  # it may be at work
        virtual.now += locks.WAIT_S
        with pytest.raises(StoreUnavailable, match=f"process {process.pid} on .* is stopped"):
            store.check_locks()
    store.check_locks()
    assert virtual.slept_s == 0.0


def test_a_lock_that_changes_hands_is_not_stuck(store: DirectoryStore, virtual: VirtualTime) -> None:
    for _ in range(2):
        with stopped(store):
            store.check_locks()
            virtual.now += locks.WAIT_S * 0.9
            store.check_locks()


def test_the_service_says_so_and_goes_on_with_what_can_be_done(store: DirectoryStore, virtual: VirtualTime) -> None:
    app = create_app(Ledger(store=store), Settings(), is_janitor=False)

    async def ask() -> tuple[object, int, int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            await http.get("/healthz")
            virtual.now += locks.WAIT_S
            health = (await http.get("/healthz")).json()
            ready, listed = await http.get("/ready"), await http.get("/api/batches")
            return {**health, "timestamp": ""}, ready.status_code, listed.status_code

    with stopped(store):
        health, ready, listed = asyncio.run(ask())
    reason = "A stuck process holds a lock of the store; the server log names it."
    assert health == {"status": "degraded", "storage": False, "pools": {}, "timestamp": "", "reason": reason}
    assert (ready, listed) == (200, 200)


def test_a_folder_that_another_process_removes_in_the_midst_of_a_write_is_made_again(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders, removed = files.make_folders, list[str]()

    def make_and_lose(folder: str, *, fsync: bool) -> None:
        make_folders(folder, fsync=fsync)
        if not removed:
            removed.append(folder)
            os.rmdir(folder)

    monkeypatch.setattr(files, "make_folders", make_and_lose)
    store.put(KEY, b"1", absent=True)
    assert len(removed) == 1
    assert store.get(KEY) is not None


def test_lock_files_are_only_made_where_a_store_is_opened(store: DirectoryStore) -> None:
    """Two files of one name would be two locks."""
    folder = Path(store.url, ".store", "locks")
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    for n in range(100):
        store.put(f"a/{n}", b"1")
        store.delete(f"a/{n}")
    DirectoryStore(store.url)
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    assert len(before) == locks.NUM_LOCKS
