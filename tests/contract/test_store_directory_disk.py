"""A directory store beside what others leave there, without permission, on a full disk, or gone."""

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from batchfile.errors import ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable
from tests.helpers.store import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_foreign_folders_links_and_names_do_no_harm(store: DirectoryStore, tmp_path: Path) -> None:
    inbox = Path(store.url, "inbox")
    inbox.mkdir()
    (inbox / "empty").mkdir()
    (inbox / "loop").symlink_to(inbox)
    (inbox / "nowhere").symlink_to(tmp_path / "nowhere")
    os.mkfifo(inbox / "pipe")
    with suppress(OSError):  # some file systems allow Unicode only
        Path(os.fsdecode(os.fsencode(inbox) + b"/not-unicode-\xff")).write_bytes(b"x")
    (inbox / "work.jsonl").write_bytes(b"{}")
    assert [entry.key for entry in store.list("")] == ["inbox/work.jsonl"]
    assert store.get("inbox") is None
    assert store.get("inbox/pipe") is None
    assert store.head("inbox/empty") is None


def test_what_is_passed_over_in_the_inbox_is_said_once(store: DirectoryStore, tmp_path: Path) -> None:
    email = Path(store.url, "inbox", "email")
    email.mkdir(parents=True)
    (tmp_path / "elsewhere.jsonl").write_bytes(b"{}")
    (email / "link.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    (email / "back\\slash.jsonl").write_bytes(b"{}")
    said = {"inbox/email/link.jsonl", "inbox/email/back\\slash.jsonl"}
    with suppress(OSError):  # some file systems allow Unicode only
        Path(os.fsdecode(os.fsencode(email) + b"/\xff.jsonl")).write_bytes(b"{}")
        said.add("inbox/email/\\udcff.jsonl")
    (email / "work.jsonl").write_bytes(b"{}")
    store.put("batches/b/batch.json", b"{}")
    store.link("batches/b/input.jsonl", str(tmp_path / "elsewhere.jsonl"))
    with structlog.testing.capture_logs() as events:
        for _ in range(2):
            assert [entry.key for entry in store.list("inbox/")] == ["inbox/email/work.jsonl"]
        assert len(list(store.list("batches/"))) == 2
    assert sorted(event["key"] for event in events if event["event"] == "store.skipped_keys") == sorted(said)


def test_what_others_can_not_read_is_not_read_for_them(store: DirectoryStore, tmp_path: Path) -> None:
    """A link in the inbox, to a file or on the way to one, is nothing."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "key.jsonl").write_bytes(b"secret")
    inbox = Path(store.url, "inbox")
    (inbox / "email").mkdir(parents=True)
    (inbox / "email" / "steal.jsonl").symlink_to(secrets / "key.jsonl")
    (inbox / "email" / "loop.jsonl").symlink_to("loop.jsonl")
    (inbox / "folder").symlink_to(secrets)
    (inbox / "email" / "work.jsonl").write_bytes(b"{}")
    assert [entry.key for entry in store.list("inbox/")] == ["inbox/email/work.jsonl"]
    for key in ("inbox/email/steal.jsonl", "inbox/email/loop.jsonl", "inbox/folder/key.jsonl"):
        assert store.get(key) is None
        assert store.head(key) is None
        with pytest.raises(ObjectMissing):
            b"".join(store.stream(key))
    assert b"".join(store.stream("inbox/email/work.jsonl")) == b"{}"


def test_a_folder_of_others_that_can_not_be_read_is_passed_over(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("inbox/closed/a.jsonl", "inbox/open/b.jsonl", "batches/c/batch.json"):
        store.put(name, b"x")
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read everything, so the system is asked to say no
        if path.endswith(("inbox/closed", "batches/c")):
            raise PermissionError(errno.EACCES, "no", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [entry.key for entry in store.list("inbox/")] == ["inbox/open/b.jsonl"]
    with pytest.raises(StoreError, match="permission denied"):
        list(store.list("batches/"))


def test_a_key_below_an_object_is_refused_with_what_stands_there(store: DirectoryStore) -> None:
    store.put("a", b"object")
    for condition in (False, True):
        with pytest.raises(StoreError, match="there is a file where a folder is needed"):
            store.put("a/b", b"x", absent=condition)
    store.put("c/d", b"object")
    with pytest.raises(StoreError, match="there is a folder where an object should be"):
        store.put("c", b"x", absent=True)
    assert store.get("a/b") is None
    assert [entry.key for entry in store.list("")] == ["a", "c/d"]
    assert list(Path(store.url, ".store", "unfinished").iterdir()) == []


def test_a_full_disk_is_unavailable_and_leaves_nothing(store: DirectoryStore) -> None:
    store.put("old.json", b"old")
    data = b"x" * (1024 * 1024)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(StoreUnavailable, match="the size limit of one file"):
            store.put("new.json", data)
        with pytest.raises(StoreUnavailable, match="the size limit of one file"):
            store.put("old.json", data, match=store.put("old.json", b"old"))
        with store.writer("written") as writer, pytest.raises(StoreUnavailable):
            writer.write(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [(entry.key, entry.size) for entry in store.list("")] == [("old.json", 3)]
    assert list(Path(store.url, ".store", "unfinished").iterdir()) == []
    store.put("new.json", data)


def test_no_space_left_is_said_so_and_the_store_goes_on_after_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        store = DirectoryStore(disk / "store")
        store.put("a.json", b"1")
        with pytest.raises(StoreUnavailable, match=r"the disk is full.*free some space"):
            store.put("large", b"x" * 4 * 1024 * 1024)
        assert [entry.key for entry in store.list("")] == ["a.json"]
        store.put("small", b"x" * 1024)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_that_can_not_be_written_is_refused_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(StoreError, match="there is a file where a folder is needed"):
        DirectoryStore(file / "store")
    with pytest.raises(StoreError, match="/proc/batchfile"):
        DirectoryStore("/proc/batchfile")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permission")
def test_no_permission_is_refused_with_what_to_do(store: DirectoryStore) -> None:
    store.put("a.json", b"1")
    os.seteuid(65534)
    try:
        with pytest.raises(StoreError, match="permission denied: give this user") as refused:
            store.put("a.json", b"2")
        assert not isinstance(refused.value, StoreUnavailable | PreconditionFailed)
        with pytest.raises(StoreError, match="permission denied"):
            store.delete("a.json")
    finally:
        os.seteuid(0)
    found = store.get("a.json")
    assert found is not None
    assert found.data == b"1"


def test_a_store_whose_directory_is_gone_says_so(store: DirectoryStore) -> None:
    subprocess.run(["rm", "-r", store.url], check=True)
    with pytest.raises(StoreError, match="the store's directory is missing"):
        store.put("a.json", b"1")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")
def test_a_store_that_can_not_be_made_where_it_was_asked_for_says_so() -> None:
    with pytest.raises(StoreError, match=r"/proc/here: .* missing or cannot be created: .* choose another"):
        DirectoryStore("/proc/here")


def test_a_store_that_is_gone_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("a/b", b"x")
    (tmp_path / "store").rename(tmp_path / "away")
    for ask in (
        lambda: store.get("a/b"),
        lambda: store.head("a/b"),
        lambda: list(store.list("a/")),
        lambda: list(store.stream("a/b")),
    ):
        with pytest.raises(StoreUnavailable, match="is missing"):
            ask()
    (tmp_path / "away").rename(tmp_path / "store")
    assert store.get("a/c") is None
