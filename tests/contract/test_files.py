"""Stored files and uploads in the store: when they exist, when they are gone, and what a crash leaves."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from batchfile import Ledger
from batchfile.errors import InvalidFile, ObjectChanged, StoreUnavailable, TooLarge
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from batchfile.types import Counts
from tests.helpers.inbox import FileRecord, UploadRecord, files_prefix, stored_files, uploads
from tests.helpers.ledger import FileRef, Origin, encode, retention, stand_in
from tests.helpers.ledger import keys as ledger_keys
from tests.helpers.service import Caller, OutputFiles, Service
from tests.helpers.settings import Settings
from tests.helpers.store import Entry, Store

DAY_S = 24 * 3600.0


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7))

    def file(self, data: bytes = b"abc", tenant: str = "acme", kept_s: float = DAY_S) -> FileRecord:
        self.clock.sleep(1.0)
        return stored_files.store_file(
            self.ledger, tenant, [data], filename="f", purpose="batch", kept_s=kept_s, bytes_max=100
        )

    def upload(self, size: int = 6) -> UploadRecord:
        return uploads.begin(
            self.ledger, "acme", filename="f", mime_type="m", purpose="batch", size=size, file_kept_s=DAY_S
        )

    def part(self, upload: UploadRecord, data: bytes) -> str:
        return uploads.add_part(self.ledger, upload, [data], bytes_max=100)

    def over(self, store: Store) -> Ledger:
        """Another process's, which sees the same objects through `store`."""
        return Ledger(store=store, clock=self.clock, rng=random.Random(8))

    def keys(self, prefix: str = "") -> list[str]:
        return [entry.key for entry in self.store.list(prefix)]


class Raced(MemoryStore):
    """Over the objects of another; `on_read` comes before each head and each stream."""

    def __init__(self, inner: MemoryStore, on_read: Callable[[str, str], None]) -> None:
        self.__dict__.update(inner.__dict__)
        self._on_read = on_read

    def head(self, key: str) -> Entry | None:
        self._on_read("head", key)
        return super().head(key)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        self._on_read("stream", key)
        return super().stream(key, start, end, match=match)


def test_files_list_newest_first_and_each_tenant_sees_its_own() -> None:
    world = World()
    made = [world.file().file_id for _ in range(5)]
    world.file(tenant="acme.other")
    assert list(stored_files.list_file_ids(world.ledger, "acme")) == made[::-1]
    assert list(stored_files.list_file_ids(world.ledger, "acme", after=made[3])) == made[2::-1]
    assert stored_files.read_file(world.ledger, "acme.other", made[0]) is None


def test_an_expired_file_is_gone_at_once_and_its_bytes_when_no_batch_can_need_them() -> None:
    world = World()
    file = world.file()
    world.clock.sleep(DAY_S)
    assert stored_files.read_file(world.ledger, "acme", file.file_id) is None
    retention.sweep(world.ledger)
    assert world.store.head(file.key) is not None
    world.clock.sleep(world.ledger.limits.completion_window_s + stored_files.MARGIN_S)
    assert retention.sweep(world.ledger) == 1
    assert world.keys() == []


def test_a_clock_that_is_ahead_sweeps_nothing_before_its_time() -> None:
    world = World()
    file = world.file()
    ahead = replace(world.ledger, clock=ManualClock(world.clock.now() + 30 * DAY_S))
    assert retention.sweep(ahead) == 0
    assert world.store.head(file.key) is not None


def test_a_clock_that_is_ahead_expires_no_file_and_no_upload() -> None:
    world = World()
    file, upload = world.file(), world.upload()
    ahead = replace(world.ledger, clock=ManualClock(world.clock.now() + 30 * DAY_S))
    assert stored_files.read_file(ahead, "acme", file.file_id) == file
    part = world.part(upload, b"abcdef")
    assert not uploads.is_expired(ahead, upload)
    assert uploads.complete(ahead, upload, [part], md5=None).state == "completed"


def test_a_removed_files_bytes_stay_for_the_batches_that_were_made_of_it() -> None:
    world = World()
    file = world.file(kept_s=30 * DAY_S)
    assert stored_files.remove_file(world.ledger, "acme", file.file_id)
    assert not stored_files.remove_file(world.ledger, "acme", file.file_id)
    assert list(stored_files.list_file_ids(world.ledger, "acme")) == []
    world.clock.sleep(world.ledger.limits.completion_window_s)
    retention.sweep(world.ledger)
    assert world.store.head(file.key) is not None
    world.clock.sleep(stored_files.MARGIN_S + 1)
    retention.sweep(world.ledger)
    assert world.keys("files/") == []


def test_a_file_whose_removal_failed_keeps_its_bytes() -> None:
    world = World()
    file = world.file(kept_s=30 * DAY_S)

    def refuse(number: int, verb: str, key: str, phase: str) -> None:
        if verb == "delete":
            raise StoreUnavailable("503")

    with pytest.raises(StoreUnavailable):
        stored_files.remove_file(world.over(FaultyStore(world.store, on_call=refuse)), "acme", file.file_id)
    world.clock.sleep(3 * DAY_S)
    retention.sweep(world.ledger)
    assert stored_files.read_file(world.ledger, "acme", file.file_id) == file
    assert world.store.head(file.key) is not None


def test_a_removed_files_bytes_go_in_the_end_if_nothing_could_be_said_of_them() -> None:
    world = World()
    file = world.file()

    def refuse(number: int, verb: str, key: str, phase: str) -> None:
        if verb == "put":
            raise StoreUnavailable("503")

    assert stored_files.remove_file(world.over(FaultyStore(world.store, on_call=refuse)), "acme", file.file_id)
    assert stored_files.read_file(world.ledger, "acme", file.file_id) is None
    world.clock.sleep(3 * DAY_S)
    retention.sweep(world.ledger)
    assert world.keys() == []


def test_a_file_that_is_too_large_or_cut_off_never_exists_and_leaves_nothing_for_good() -> None:
    world = World()
    with pytest.raises(TooLarge):
        world.file(b"x" * 101)
    with pytest.raises(RuntimeError):
        stored_files.store_file(
            world.ledger, "acme", _cut_off(), filename="f", purpose="batch", kept_s=DAY_S, bytes_max=100
        )
    assert world.keys("files/") == []
    world.clock.sleep(3 * DAY_S)
    retention.sweep(world.ledger)
    assert world.keys() == []


def _cut_off() -> "object":
    yield b"abc"
    raise RuntimeError("the client went away")


@pytest.mark.parametrize("name", ["..", "file-", "file-" + "g" * 32, "a/b", "", "file-" + "0" * 32 + "/x"])
def test_what_is_no_id_is_no_file_and_no_upload(name: str) -> None:
    world = World()
    assert stored_files.read_file(world.ledger, "acme", name) is None
    assert uploads.read_upload(world.ledger, "acme", name) is None


def test_an_upload_can_not_be_completed_after_an_hour_and_is_gone_after_a_day() -> None:
    world = World()
    upload = world.upload()
    part = world.part(upload, b"abcdef")
    world.clock.sleep(uploads.UPLOAD_S)
    assert uploads.is_expired(world.ledger, upload)
    with pytest.raises(InvalidFile, match="expired"):
        uploads.complete(world.ledger, upload, [part], md5=None)
    with pytest.raises(InvalidFile, match="expired"):
        world.part(upload, b"x")
    world.clock.sleep(DAY_S)
    retention.sweep(world.ledger)
    assert world.keys("uploads/") == []


def test_who_completes_again_after_a_crash_finds_the_file_that_was_committed() -> None:
    world = World()
    upload = world.upload()
    parts = [world.part(upload, b"abc"), world.part(upload, b"def")]

    def die(number: int, verb: str, key: str, phase: str) -> None:
        if key.startswith("files/") and key.endswith(".json"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uploads.complete(world.over(FaultyStore(world.store, on_call=die)), upload, parts, md5=None)
    assert list(stored_files.list_file_ids(world.ledger, "acme")) == []
    committed = uploads.read_upload(world.ledger, "acme", upload.upload_id)
    again = uploads.complete(world.ledger, upload, parts, md5=None)
    assert again == committed
    assert again.file is not None
    assert stored_files.read_file(world.ledger, "acme", again.file.file_id) == again.file


def test_a_removed_file_does_not_come_back_with_a_complete_that_is_repeated() -> None:
    world = World()
    upload = world.upload()
    parts = [world.part(upload, b"abc"), world.part(upload, b"def")]
    done = uploads.complete(world.ledger, upload, parts, md5=None)
    assert done.file is not None
    assert stored_files.remove_file(world.ledger, "acme", done.file.file_id)
    assert uploads.complete(world.ledger, upload, parts, md5=None) == done
    assert stored_files.read_file(world.ledger, "acme", done.file.file_id) is None
    assert list(stored_files.list_file_ids(world.ledger, "acme")) == []


@pytest.mark.parametrize(
    ("verb", "problem"), [("head", None), ("stream", None), ("stream", ObjectChanged("what a bucket may say as well"))]
)
def test_who_completes_while_another_does_finds_the_other_ones_file(verb: str, problem: Exception | None) -> None:
    """Whose parts go once it is done, be it while this one looks for them or while it reads them."""
    world = World()
    upload = world.upload()
    parts = [world.part(upload, b"abc"), world.part(upload, b"def")]
    done: list[UploadRecord] = []

    def race(called: str, key: str) -> None:
        if called == verb and key.endswith(parts[1]):
            done.append(uploads.complete(world.ledger, upload, parts, md5=None))
            if problem is not None:
                raise problem

    again = uploads.complete(world.over(Raced(world.store, race)), upload, parts, md5=None)
    assert [again] == done
    assert again.file is not None
    assert list(stored_files.list_file_ids(world.ledger, "acme")) == [again.file.file_id]
    assert [key for key in world.keys("files/") if ".data-" in key] == [again.file.key]
    assert [key for key in world.keys("uploads/") if "part_" in key] == []


@pytest.mark.parametrize("verb", ["head", "stream", "commit"])
def test_cancel_and_complete_at_the_same_time_have_one_winner(verb: str) -> None:
    world = World()
    upload = world.upload(3)
    part = world.part(upload, b"abc")

    def race(called: str, key: str) -> None:
        if called == verb:
            uploads.cancel(world.ledger, upload)

    def race_write(number: int, called: str, key: str, phase: str) -> None:
        if verb == "commit" and key.startswith("files/"):
            uploads.cancel(world.ledger, upload)

    slow = world.over(FaultyStore(Raced(world.store, race), on_call=race_write))
    with pytest.raises(InvalidFile, match="cancelled"):
        uploads.complete(slow, upload, [part], md5=None)
    assert list(stored_files.list_file_ids(world.ledger, "acme")) == []
    assert world.keys("files/") == []


def test_files_and_uploads_live_and_go_on_every_store(store: Store, folder: str) -> None:
    clock = ManualClock(1_000_000_000.0)
    ledger = Ledger(store=store, clock=clock, rng=random.Random(folder))
    made = []
    for data in (b"", b"abc", b"x" * 3_000_000):
        clock.sleep(1.0)
        made.append(
            stored_files.store_file(
                ledger, folder, [data], filename="f", purpose="batch", kept_s=DAY_S, bytes_max=10_000_000
            )
        )
        assert b"".join(store.stream(made[-1].key)) == data
    upload = uploads.begin(ledger, folder, filename="f", mime_type="m", purpose="batch", size=6, file_kept_s=DAY_S)
    parts = [uploads.add_part(ledger, upload, [data], bytes_max=9) for data in (b"abc", b"def")]
    clock.sleep(1.0)
    done = uploads.complete(ledger, upload, parts, md5=None)
    assert done.file is not None
    assert b"".join(store.stream(done.file.key)) == b"abcdef"
    ids = [file.file_id for file in [*made, done.file]]
    assert list(stored_files.list_file_ids(ledger, folder)) == ids[::-1]
    assert stored_files.remove_file(ledger, folder, ids[0])
    clock.sleep(100 * DAY_S)
    assert retention.sweep(ledger) == 0
    for entry in list(store.list(ledger_keys.EXPIRING_PREFIX)):  # no test can move the store's own clock
        store.put(entry.key, b"0")
    retention.sweep(ledger)
    assert list(store.list(files_prefix(folder))) == []
    assert list(store.list(f"uploads/{folder}/")) == []
    assert [entry for entry in store.list(ledger_keys.EXPIRING_PREFIX) if folder in entry.key] == []


def test_an_output_file_is_kept_by_the_stores_clock_not_by_that_of_a_process() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    batch_id = f"batch_{'a' * 32}"
    ended = replace(
        stand_in(batch_id, clock.now()),
        state="ended",
        ended_at=clock.now(),
        kept_s=7200.0,
        tenant="acme",
        origin=Origin(kind="file", name="file-1", facts={"file_id": "file-1", "endpoint": "/v1/chat/completions"}),
        results=FileRef(key="r", size=1, sha256="s", num_lines=1),
        counts=Counts(succeeded=1),
    )
    store.put(ledger_keys.batch_key(batch_id), encode(ended))
    fast = Ledger(store=store, clock=ManualClock(now=clock.now() + 86400.0))
    files = OutputFiles(Service(fast, Settings(), "api"))
    caller, file_id = Caller(tenant="acme", key="k"), f"file-{'a' * 32}-output"
    assert files.find(caller, file_id) is not None
    clock.sleep(7200.0)
    assert files.find(caller, file_id) is None
