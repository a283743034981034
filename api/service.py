"""What the routes share: the ledger, the settings, and reads that several routes need. Synchronous.

Stateless except for caches: any number of processes can serve one store, and each can die at any moment.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, takewhile

import structlog
from litestar.di import NamedDependency

from batchfile.errors import BatchDamaged, InvalidRequest, RecordDamaged, StoreError
from batchfile.files.stored_files import FileRecord, read_file
from batchfile.ledger import batches, damage, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, FileRef
from batchfile.ledger.retention import purge
from batchfile.ledger.status import BatchSnapshot, StatusReader
from batchfile.settings import Settings

from .http.auth import Caller
from .http.errors import Refusal, not_found, unreadable

log = structlog.get_logger()

PAGE_MAX = 1000
LOOKED_AT_MAX = 1000  # batches that one filtered page may read
READS_AT_ONCE = 16
CREATES_AT_ONCE = 4  # each can use 100 MiB of memory for a body of very long requests
FULL_S = 2.0  # how long a tenant at its limit gets 429 without another read of the store
FULL_RETRY_AFTER_S = 30
FILES_MAX = 20_000  # in the cache; about 500 bytes each


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """Batches, newest first. `has_more`: there are more in the requested direction."""

    data: list[BatchSnapshot]
    has_more: bool


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Batches, newest first. `next`: the cursor of the next page; None: there is none."""

    data: list[BatchSnapshot]
    next: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """Which batches a listing includes. `ids_like` excludes most others without a read; `has` decides."""

    ids_like: re.Pattern[str]
    has: Callable[[BatchSnapshot], bool]


def known_id(batch_id: str) -> str:
    """Raises: Refusal 404 for anything that cannot be an id, such as a path traversal."""
    try:
        return keys.check_batch_id(batch_id)
    except InvalidRequest:
        raise not_found() from None


class Service:
    """A tenant sees only its own batches; others are not found. `creating`: limits concurrent creates."""

    def __init__(self, ledger: Ledger, settings: Settings, name: str) -> None:
        self.ledger = ledger
        self.settings = settings
        self.name = name
        self.reader = StatusReader(ledger)
        self.room = Room(ledger, settings.api.open_batches_max)
        self.creating = asyncio.Semaphore(CREATES_AT_ONCE)
        self._files: dict[tuple[str, str], FileRecord] = {}
        self._readers = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="status")

    def record(self, caller: Caller, batch_id: str) -> BatchRecord:
        """Raises: Refusal 404; StoreUnavailable; BatchDamaged, of a batch of this tenant."""
        try:
            batch = batches.read_batch(self.ledger, known_id(batch_id))
        except BatchDamaged as error:
            self._place_of_damaged(caller, batch_id, error)
            raise
        if batch is None or batch.tenant != caller.tenant:
            raise not_found()
        return batch

    def read(self, caller: Caller, batch_id: str) -> BatchSnapshot:
        """Raises: as `record`."""
        try:
            found = self.reader.read(known_id(batch_id))
        except BatchDamaged as error:
            self._place_of_damaged(caller, batch_id, error)
            raise
        if found is None or found.batch.tenant != caller.tenant:
            raise not_found()
        return found

    def look(self, caller: Caller, batch_id: str) -> BatchSnapshot:
        """Like `read`, but also works for a damaged batch, as the listings show it."""
        try:
            return self.read(caller, batch_id)
        except BatchDamaged as error:
            found = self.reader.look(self._place_of_damaged(caller, batch_id, error))
            if found is None:
                raise not_found() from None
            return found

    def page(
        self,
        caller: Caller,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
        shown: Shown | None = None,
    ) -> SnapshotPage:
        """At most `limit` batches: the next ones older than `after`, or the next ones newer than `before`.

        `shown`: which batches the listing includes. A cursor may be a batch that the listing excludes, or one that was
        deleted within the last day. A batch that cannot be read does not hide others (see `StatusReader.look`).
        Raises: Refusal 404; StoreUnavailable if none can be read.
        """
        places = self._places(caller.tenant, "" if after is None else self._place(caller, after))
        if before is not None:
            places = reversed(self._newer(caller, before))
        if shown is not None:
            like = shown.ids_like
            places = (place for place in places if like.fullmatch(keys.index_batch_id(place)))
        found: list[BatchSnapshot] = []
        while len(found) <= limit:
            # Reading a few too many in parallel costs less than reading them one by one.
            some = list(islice(places, max(limit + 1 - len(found), READS_AT_ONCE if shown else 1)))
            if not some:
                break
            looked = [one for one in self._readers.map(self.reader.look, some) if one is not None]
            found += looked if shown is None else filter(shown.has, looked)
        refusals = [one.problem for one in found if isinstance(one.problem, StoreError)]
        if refusals and len(refusals) == len(found):
            raise refusals[0]
        data = found[:limit] if before is None else found[:limit][::-1]
        return SnapshotPage(data, has_more=len(found) > limit)

    def search(
        self,
        caller: Caller,
        has: Callable[[BatchSnapshot], bool],
        *,
        limit: int,
        after: str | None = None,
        since: float | None = None,
    ) -> SearchPage:
        """At most `limit` batches for which `has` is true, among the next `LOOKED_AT_MAX`, so that a filter that fits
        few does not read them all: a page may be empty and still have a next one. `since`: created then or later.
        Raises: as `page`.
        """
        places = self._places(caller.tenant, "" if after is None else self._place(caller, after))
        if since is not None:
            places = takewhile(lambda place: keys.index_created_at(place) >= since, places)
        found: list[BatchSnapshot] = []
        cursor, problem, num_looked = None, None, 0
        while num_looked < LOOKED_AT_MAX:
            some = list(islice(places, READS_AT_ONCE))
            if not some:
                break
            num_looked += len(some)
            for one in self._readers.map(self.reader.look, some):
                if one is None:
                    continue
                if len(found) == limit:
                    return SearchPage(found, cursor)
                cursor = one.batch.batch_id
                problem = problem or (one.problem if isinstance(one.problem, StoreError) else None)
                found += [one] if has(one) else []
        else:
            return SearchPage(found, cursor)
        if problem is not None and not found:
            raise problem
        return SearchPage(found, None)

    def several(self, caller: Caller, batch_ids: list[str]) -> list[BatchSnapshot]:
        """Those of these batches that exist, in this order. Raises: StoreUnavailable."""

        def look(batch_id: str) -> BatchSnapshot | None:
            with suppress(Refusal):
                return self.look(caller, batch_id)
            return None

        return [found for found in self._readers.map(look, batch_ids) if found is not None]

    def ended(self, caller: Caller, batch_id: str) -> BatchRecord:
        """Raises: Refusal 404, or 400 while it has not ended."""
        batch = self.record(caller, batch_id)
        if batch.state != "ended":
            raise Refusal(400, "Batch not yet complete")
        return batch

    def results(self, caller: Caller, batch_id: str) -> Iterator[bytes]:
        """The native results file of an ended batch, in chunks."""
        file = self.ended(caller, batch_id).results
        return iter(()) if file is None else self.file_chunks(file)

    def file_chunks(self, file: FileRef) -> Iterator[bytes]:
        return self.ledger.store.stream(file.key)

    def cancel(self, caller: Caller, batch_id: str) -> BatchSnapshot:
        """An ended batch stays unchanged. Raises: RecordNewer, and as `record`."""
        try:
            self.record(caller, batch_id)
            batches.end(self.ledger, batch_id, "canceled")
        except RecordDamaged as error:
            damage.cancel(self.ledger, error, self._place_of_damaged(caller, batch_id, error))
        return self.read(caller, batch_id)

    def purge(self, caller: Caller, batch_id: str) -> None:
        """Delete the batch if necessary, and remove its objects before returning. Raises: as `delete`."""
        try:
            self.delete(caller, batch_id)
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            self._place(caller, batch_id)  # it may be deleted already, with its objects still stored
        purge(self.ledger, batch_id)

    def delete(self, caller: Caller, batch_id: str) -> None:
        """Raises: Refusal 400 if it has not ended, unless it is damaged; RecordNewer, and as `record`."""
        try:
            self.record(caller, batch_id)
            standing = retention.delete(self.ledger, batch_id)
        except RecordDamaged as error:
            standing = damage.delete(self.ledger, error, self._place_of_damaged(caller, batch_id, error))
        if standing is not None and standing.state != "deleted":
            raise Refusal(400, "Batch not yet complete; cancel it and delete it when it has ended")

    def check_room(self, caller: Caller) -> None:
        """Raises: Refusal 429 if the tenant has reached its limit of open batches."""
        self.room.check(caller.tenant)

    def files(self, caller: Caller, file_ids: list[str]) -> list[FileRecord]:
        """The files that can be read, in the order given. Cached, because they never change.

        Raises: StoreError if none of them can be read.
        """

        def read(file_id: str) -> FileRecord | StoreError | None:
            try:
                return read_file(self.ledger, caller.tenant, file_id)
            except (StoreError, BatchDamaged) as error:
                log.error("file.unreadable", file_id=file_id, error=str(error))
                return error if isinstance(error, StoreError) else None

        unknown = [file_id for file_id in file_ids if (caller.tenant, file_id) not in self._files]
        found = list(self._readers.map(read, unknown))
        records = [record for record in found if isinstance(record, FileRecord)]
        refusals = [record for record in found if isinstance(record, StoreError)]
        if refusals and not records and len(unknown) == len(file_ids):
            raise refusals[0]
        self._files |= {(caller.tenant, record.file_id): record for record in records}
        now = self.ledger.clock.now()
        known = [self._files.get((caller.tenant, file_id)) for file_id in file_ids]
        for key in list(self._files)[: max(0, len(self._files) - FILES_MAX)]:
            self._files.pop(key, None)
        return [record for record in known if record is not None and now < record.expires_at]

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _place(self, caller: Caller, batch_id: str) -> str:
        """The batch's key in the index."""
        try:
            found = load(self.ledger, keys.batch_key(known_id(batch_id)), BatchRecord)
        except BatchDamaged as error:
            return self._place_of_damaged(caller, batch_id, error)
        if found is None or found.record.tenant != caller.tenant:
            raise not_found()
        return keys.index_key(caller.tenant, found.record.created_at, batch_id)

    def _newer(self, caller: Caller, batch_id: str) -> list[str]:
        place = self._place(caller, batch_id)
        entries = self.ledger.store.list(keys.index_prefix(caller.tenant))
        return [entry.key for entry in takewhile(lambda entry: entry.key < place, entries)]

    def _place_of_damaged(self, caller: Caller, batch_id: str, error: BatchDamaged) -> str:
        """The index key of a batch whose damaged record no longer names its tenant.

        Only an index entry of another tenant proves that the batch is not the caller's: a listing can omit one.
        Raises: Refusal 404, or 503 if the tenant cannot be found out.
        """
        place = damage.place_of(self.ledger, caller.tenant, batch_id) or damage.place_of(self.ledger, None, batch_id)
        if place is None:
            log.error("batch.unreadable", batch_id=batch_id, error=str(error))
            raise unreadable() from None
        if keys.index_tenant(place) != caller.tenant:
            raise not_found() from None
        return place

    def _places(self, tenant: str, after: str) -> Iterator[str]:
        """The index keys of the tenant's batches, newest first."""
        for entry in self.ledger.store.list(keys.index_prefix(tenant), after=after):
            yield entry.key


class Room:
    """Limits the open batches of each tenant. `limit`: open batches of one tenant, planned or not.

    Other processes may create at the same moment, so a few more are possible. Ended batches are cached, so that only
    records of batches that may be open are read, and only near the limit.
    """

    def __init__(self, ledger: Ledger, limit: int) -> None:
        self._ledger = ledger
        self._limit = limit
        self._lock = threading.Lock()
        self._ended: dict[str, set[str]] = {}  # tenant -> batches of its index that have ended
        self._full_until: dict[str, float] = {}  # monotonic

    def on_ended(self, batch: BatchRecord) -> None:
        """A batch has ended."""
        with self._lock:
            self._ended.setdefault(batch.tenant, set()).add(batch.batch_id)
            self._full_until.pop(batch.tenant, None)

    def check(self, tenant: str) -> None:
        """Raises: Refusal 429 if the tenant has reached its limit of open batches; StoreError."""
        now = self._ledger.clock.monotonic()
        with self._lock:
            is_full = now < self._full_until.get(tenant, now)
        if not is_full and self._num_open(tenant) >= self._limit:
            is_full = True
            with self._lock:
                self._full_until[tenant] = now + FULL_S
        if is_full:
            raise Refusal(
                429,
                f"{self._limit} batches are open, which is the limit; wait for one to end, or cancel one",
                {"Retry-After": str(FULL_RETRY_AFTER_S)},
            )

    def _num_open(self, tenant: str) -> int:
        """Counts up to the limit."""
        index = [keys.index_batch_id(entry.key) for entry in self._ledger.store.list(keys.index_prefix(tenant))]
        with self._lock:
            ended = self._ended[tenant] = self._ended.get(tenant, set()) & set(index)
            may_be_open = [batch_id for batch_id in index if batch_id not in ended]
        num_open = 0
        if len(may_be_open) < self._limit:
            return 0
        for batch_id, found in zip(may_be_open, in_order(self._ledger, self._read, may_be_open), strict=False):
            if found is not None and found.state in {"ended", "deleted"}:
                with self._lock:
                    self._ended.setdefault(tenant, set()).add(batch_id)
            elif found is not None:  # a batch without a record is being created, or its create was abandoned
                num_open += 1
                if num_open >= self._limit:
                    break
        return num_open

    def _read(self, batch_id: str) -> BatchRecord | None:
        """None: it does not exist or cannot be read, which must not keep its tenant from creating others."""
        with suppress(BatchDamaged, StoreError):
            found = load(self._ledger, keys.batch_key(batch_id), BatchRecord)
            return None if found is None else found.record
        return None


ServiceDep = NamedDependency[Service]
