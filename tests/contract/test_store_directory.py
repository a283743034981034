"""What only a directory store does: processes, file locks, links, and a disk that says no."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchfile.errors import ObjectChanged, ObjectMissing, StoreError
from tests.helpers.store import FORGET_AFTER_S, LEFTOVER_AGE_S, DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


NUM_PROCESSES = 4
NUM_INCREMENTS = 25
LONG_AGO_S = LEFTOVER_AGE_S + FORGET_AFTER_S + 60


def start(code: str, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


@contextmanager
def holder(store: DirectoryStore, owner: str, *, with_child: bool = False) -> "Iterator[subprocess.Popen[str]]":
    """A process that holds `owner` until it is killed; with a forked child that outlives it."""
    process = start(
        """
        import os, sys, time
        from batchfile.store.directory import DirectoryStore
        with DirectoryStore(sys.argv[1]).hold_process_lock(sys.argv[2]):
            child = os.fork() if sys.argv[3] else None
            if not child:
                print("held", flush=True)
            if child == 0:
                os.close(1)
                sys.stdin.read()
                os._exit(0)
            time.sleep(600)
        """,
        store.url,
        owner,
        "child" if with_child else "",
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def backdate(path: Path) -> None:
    then = time.time() - LONG_AGO_S
    os.utime(path, (then, then), follow_symlinks=False)


def test_no_increment_is_lost_between_processes(store: DirectoryStore) -> None:
    store.put("counter.json", b"0")
    code = """
        import sys
        from batchfile.errors import PreconditionFailed
        from batchfile.store.directory import DirectoryStore
        store = DirectoryStore(sys.argv[1])
        sys.stdin.readline()
        left = int(sys.argv[2])
        while left:
            found = store.get("counter.json")
            try:
                store.put("counter.json", b"%d" % (int(found.data) + 1), match=found.etag)
            except PreconditionFailed:
                continue
            left -= 1
    """
    processes = [start(code, store.url, str(NUM_INCREMENTS)) for _ in range(NUM_PROCESSES)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    found = store.get("counter.json")
    assert found is not None
    assert int(found.data) == NUM_PROCESSES * NUM_INCREMENTS


def test_of_racing_processes_each_object_is_created_by_one(store: DirectoryStore) -> None:
    code = """
        import sys
        from batchfile.errors import PreconditionFailed
        from batchfile.store.directory import DirectoryStore
        store = DirectoryStore(sys.argv[1])
        sys.stdin.readline()
        for n in range(40):
            try:
                store.put(f"shards/{n % 5}/{n}.json", sys.argv[2].encode(), absent=True)
                print(n)
            except PreconditionFailed:
                pass
    """
    processes = [start(code, store.url, str(n)) for n in range(NUM_PROCESSES)]
    won = [process.communicate("go\n")[0].split() for process in processes]
    assert sorted(n for part in won for n in part) == sorted(str(n) for n in range(40))
    for process, part in enumerate(won):
        for n in part:
            found = store.get(f"shards/{int(n) % 5}/{n}.json")
            assert found is not None
            assert found.data == b"%d" % process


def test_a_killed_holder_is_dead_at_once(store: DirectoryStore) -> None:
    with holder(store, "runner-1") as process:
        assert not store.is_process_dead("runner-1")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert store.is_process_dead("runner-1")
        assert store.is_process_dead("runner-1")
        assert not store.is_process_dead("runner-2")


def test_a_child_that_outlives_a_killed_holder_does_not_keep_it_alive(store: DirectoryStore) -> None:
    with holder(store, "runner-1", with_child=True) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert store.is_process_dead("runner-1")


def test_an_owner_who_left_is_dead_until_it_holds_again(store: DirectoryStore) -> None:
    with store.hold_process_lock("runner-1"):
        assert not store.is_process_dead("runner-1")
    assert store.is_process_dead("runner-1")
    with store.hold_process_lock("runner-1"):
        assert not DirectoryStore(store.url).is_process_dead("runner-1")


def test_one_name_is_held_by_one(store: DirectoryStore) -> None:
    with (
        store.hold_process_lock("runner-1"),
        pytest.raises(StoreError, match="a different name"),
        store.hold_process_lock("runner-1"),
    ):
        pass


def test_files_of_owners_long_dead_are_swept_and_those_of_the_living_stay(store: DirectoryStore) -> None:
    folder = Path(store.url, ".store", "processes")
    with store.hold_process_lock("dead"):
        pass
    with store.hold_process_lock("recent"):
        pass
    recent = {path.name for path in folder.iterdir()}
    with store.hold_process_lock("alive"):
        for path in folder.iterdir():
            backdate(path)
        with store.hold_process_lock("recent"):
            pass
        again = DirectoryStore(store.url)
        assert not again.is_process_dead("dead")
        assert again.is_process_dead("recent")
        assert not again.is_process_dead("alive")
        assert len(list(folder.iterdir())) == len(recent)


def test_a_child_that_is_forked_during_a_write_keeps_nobody_from_writing(store: DirectoryStore) -> None:
    """As vLLM starts its engine process, beside threads that write."""
    code = """
        import os, sys
        from batchfile.store import files
        from batchfile.store.directory import DirectoryStore
        store, make_folders = DirectoryStore(sys.argv[1]), files.make_folders
        def forking(*args, **options):  # called under the lock
            if os.fork() == 0:
                os.close(1)
                sys.stdin.read()  # lives on
                os._exit(0)
            files.make_folders = make_folders
            make_folders(*args, **options)
        files.make_folders = forking
        store.put("during.json", b"1")
        store.put("after.json", b"2")
        print("put", flush=True)
        """
    process = start(code, store.url)
    assert process.stdout is not None
    assert process.stdin is not None
    giving_up = threading.Timer(60, process.kill)
    giving_up.start()
    try:
        said = process.stdout.readline()
    finally:
        giving_up.cancel()
        process.kill()
        process.communicate()
    assert said == "put\n"
    assert store.get("after.json") is not None


def test_a_link_stands_for_the_file_without_copying_it(store: DirectoryStore, tmp_path: Path) -> None:
    target = tmp_path / "in.jsonl"
    target.write_bytes(b"0123456789")
    etag = store.link("batches/b/input.jsonl", str(target))
    entry = store.head("batches/b/input.jsonl")
    assert entry is not None
    assert (entry.etag, entry.size) == (etag, 10)
    assert [entry.key for entry in store.list("")] == ["batches/b/input.jsonl"]
    assert b"".join(store.stream("batches/b/input.jsonl", 2, 5, match=etag)) == b"234"
    assert Path(store.url, "batches/b/input.jsonl").is_symlink()


def test_a_changed_target_changes_the_links_etag(store: DirectoryStore, tmp_path: Path) -> None:
    target = tmp_path / "in.jsonl"
    target.write_bytes(b"one")
    etag = store.link("in", str(target))
    target.write_bytes(b"three")
    entry = store.head("in")
    assert entry is not None
    assert entry.etag != etag
    with pytest.raises(ObjectChanged):
        list(store.stream("in", match=etag))


def test_deleting_or_replacing_a_link_leaves_the_file_alone(store: DirectoryStore, tmp_path: Path) -> None:
    target = tmp_path / "in.jsonl"
    target.write_bytes(b"mine")
    store.link("a/in", str(target))
    store.delete("a/in")
    assert store.get("a/in") is None
    store.link("b/in", str(target))
    store.put("b/in", b"another")
    store.link("c/in", str(target))
    store.link("c/in", str(target))
    assert target.read_bytes() == b"mine"


def test_a_link_whose_file_is_gone_is_no_object(store: DirectoryStore, tmp_path: Path) -> None:
    target = tmp_path / "in.jsonl"
    target.write_bytes(b"mine")
    store.link("in", str(target))
    target.unlink()
    assert store.head("in") is None
    assert list(store.list("")) == []
    with pytest.raises(ObjectMissing):
        list(store.stream("in"))
    with pytest.raises(ObjectMissing):
        store.link("in", str(target))


def test_a_relative_target_is_the_callers(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    store.link("a/b/in", "in.jsonl")
    found = store.get("a/b/in")
    assert found is not None
    assert found.data == b"mine"


def test_what_is_no_regular_file_is_not_linked(store: DirectoryStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert store.link("pipe", str(tmp_path / "pipe")) is None
    assert store.link("folder", str(tmp_path)) is None
    assert list(store.list("")) == []


def test_a_file_that_is_written_to_during_a_pinned_read_is_noticed(store: DirectoryStore, tmp_path: Path) -> None:
    target = tmp_path / "in.jsonl"
    target.write_bytes(b"a" * 3 * 1024 * 1024)
    etag = store.link("in", str(target))
    stream = iter(store.stream("in", match=etag))
    assert len(next(stream)) == 1024 * 1024
    with target.open("r+b") as file:
        file.seek(2 * 1024 * 1024)
        file.write(b"changed")
    os.utime(target)
    with pytest.raises(ObjectChanged):
        list(stream)


def test_a_file_that_becomes_shorter_during_a_read_is_noticed(store: DirectoryStore, tmp_path: Path) -> None:
    target = tmp_path / "in.jsonl"
    target.write_bytes(b"a" * 3 * 1024 * 1024)
    store.link("in", str(target))
    stream = iter(store.stream("in"))
    next(stream)
    os.truncate(target, 1024 * 1024)
    with pytest.raises(ObjectChanged):
        list(stream)


def test_an_object_that_is_replaced_during_a_read_is_read_to_its_end(store: DirectoryStore) -> None:
    etag = store.put("a", b"a" * 2 * 1024 * 1024)
    stream = iter(store.stream("a", match=etag))
    first = next(stream)
    store.put("a", b"b")
    assert first + b"".join(stream) == b"a" * 2 * 1024 * 1024


def test_documents_with_the_same_content_have_the_same_etag_and_others_do_not(store: DirectoryStore) -> None:
    assert store.put("a.json", b"same") == store.put("a.json", b"same")
    assert store.put("a.jsonl", b"same") != store.put("a.jsonl", b"same")


def test_unfinished_writes_are_never_listed_and_swept_when_old(store: DirectoryStore) -> None:
    process = start(
        """
        import os, sys
        from batchfile.store.directory import DirectoryStore
        writer = DirectoryStore(sys.argv[1]).writer("a")
        writer.write(b"half")
        os._exit(9)
        """,
        store.url,
    )
    process.communicate()
    unfinished = Path(store.url, ".store", "unfinished")
    (left,) = unfinished.iterdir()
    assert list(store.list("")) == []
    DirectoryStore(store.url)
    assert left.exists()
    with store.writer("b") as writer:
        for path in unfinished.iterdir():
            backdate(path)
        DirectoryStore(store.url)
        assert not left.exists()
        writer.write(b"slow but alive")
        writer.commit()
    found = store.get("b")
    assert found is not None
    assert found.data == b"slow but alive"
    assert list(unfinished.iterdir()) == []


def test_nothing_is_left_of_folders_that_are_empty(store: DirectoryStore) -> None:
    store.put("batches/b/parts/p/1/x", b"1")
    store.put("batches/b/batch.json", b"{}")
    store.delete("batches/b/parts/p/1/x")
    assert sorted(path.name for path in Path(store.url, "batches/b").iterdir()) == ["batch.json"]
    store.delete("batches/b/batch.json")
    assert [path.name for path in Path(store.url).iterdir()] == [".store"]


def test_files_that_a_desktop_leaves_in_folders_are_no_objects(store: DirectoryStore) -> None:
    store.put("queue/mistral/5-1-b", b"")
    for name in (".DS_Store", "queue/.DS_Store", "queue/mistral/.DS_Store"):
        Path(store.url, name).write_bytes(b"x")
    assert [entry.key for entry in store.list("")] == ["queue/mistral/5-1-b"]
    assert [entry.key for entry in store.list("queue/mistral/")] == ["queue/mistral/5-1-b"]


def test_folders_of_the_inbox_stay_when_they_are_empty(store: DirectoryStore) -> None:
    """Others made them, to drop the next file there."""
    Path(store.url, "inbox/email").mkdir(parents=True)
    Path(store.url, "inbox/email/a.jsonl").write_bytes(b"{}")
    store.delete("inbox/email/a.jsonl")
    store.delete("inbox/email/b.jsonl")
    assert list(Path(store.url, "inbox/email").iterdir()) == []
