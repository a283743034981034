"""What a batch is doing, derived from its records: list them, read what changed, keep running sums.

A known record is never replaced by an older one of the same owner, so counts seen through one reader never decrease.
A look at an open batch costs batch.json, a listing and the changed records; the first look reads the plan and all
records. An ended batch costs batch.json.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import NamedTuple

import msgspec
import structlog

from batchfile.errors import BatchDamaged, BatchfileError, RecordDamaged, RecordNewer, StoreError
from batchfile.ledger import damage
from batchfile.ledger import keys as ledger_keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batch_status import BatchStatus
from batchfile.ledger.batches import read_batch, read_plan
from batchfile.ledger.cas import Stored, load
from batchfile.ledger.damage import DAMAGED
from batchfile.ledger.records import BatchRecord, Plan, ShardRecord
from batchfile.ledger.shard_runs import ShardRow
from batchfile.ledger.status_sums import NO_SUMS, Sums, progress_of, status_of, sums_of
from batchfile.lines.failures import merged
from batchfile.types import FailureGroup

log = structlog.get_logger()

BATCHES_MAX = 1_000  # remembered by a reader; the one looked at longest ago is forgotten first
RECORDS_MAX = 1_000_000  # in all of these; about 500 bytes each
READ_THREADS = 16  # threads that read the records of a first look
BATCH_THREADS = 8  # threads that look at several batches
READ_ALONE_MAX = 32  # up to this many are read without threads
LOG_AGAIN_S = 600.0  # between two log lines about one batch that cannot be read

NEWER = "a newer version of this service wrote the record of this batch; upgrade this process"
UNREADABLE = "the record of this batch cannot be read now; try again later"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSnapshot:
    """A batch at one look: its status, and the record that the status was derived from, for who needs its other fields.

    `status.pools` is empty once the batch has ended. Neither it nor `num_records`, the shard records of the batch,
    includes lines that the planner decided. `problem`: what cannot be read.
    """

    batch: BatchRecord
    status: BatchStatus
    num_records: int = 0
    problem: BatchfileError | None = None

    @property
    def is_known(self) -> bool:
        """False: `batch` is a placeholder."""
        return self.status.state not in {"damaged", "unreadable"}

    @property
    def is_running(self) -> bool:
        """Is any request of the batch still to be finished by a runner?"""
        return self.batch.state == "open" and self.status.pending > 0


class _Row(NamedTuple):
    """What is remembered of a record."""

    etag: str
    epoch: int
    seq: int
    sums: Sums
    shard: ShardRow


class _View:
    """An open batch as last seen. Everything but `num_looks` and `updated_at` is accessed under `lock` only."""

    def __init__(self, batch: BatchRecord, updated_at: float) -> None:
        self.lock = threading.Lock()
        self.num_looks = 0
        self.batch = batch
        self.updated_at = updated_at
        self.rows: dict[str, _Row] = {}
        self.failures: dict[str, tuple[FailureGroup, ...]] = {}  # of the records with some
        self.merged: tuple[FailureGroup, ...] | None = ()  # of all records; None: they have changed
        self.totals: dict[str, Sums] = {}
        self.shares: dict[str, tuple[int, int]] = {}  # pool -> its number of shards and of requests
        self.is_planned = False
        self.problem: BatchDamaged | None = None  # of its plan or a shard record, at the last look
        self.is_whole = False  # the last look was complete

    def use_plan(self, plan: Plan) -> None:
        self.shares = {
            pool: (len(members), sum(members.values()))
            for pool, members in plan.pools.items()
            if pool not in ledger_keys.PSEUDO_POOLS
        }
        self.is_planned = True

    def take(self, key: str, modified_at: float, found: Stored[ShardRecord]) -> None:
        record = found.record
        known = self.rows.get(key)
        if known is not None and (record.epoch, record.seq) < (known.epoch, known.seq):
            return
        sums = sums_of(record)
        total = self.totals.get(record.pool, NO_SUMS)
        self.totals[record.pool] = total.replaced(NO_SUMS if known is None else known.sums, sums)
        self.rows[key] = _Row(found.etag, record.epoch, record.seq, sums, ShardRow.of(record, modified_at))
        if record.failures and record.failures != self.failures.get(key):
            self.failures[key] = record.failures
            self.merged = None

    @property
    def size(self) -> int:
        """What is remembered, in records."""
        return len(self.rows) + sum(map(len, self.failures.values()))

    def snapshot(self) -> BatchSnapshot:
        total = reduce(lambda sums, more: sums.replaced(NO_SUMS, more), self.totals.values(), NO_SUMS)
        if self.merged is None:
            self.merged = merged(*self.failures.values())
        pools = {pool: progress_of(self.totals.get(pool, NO_SUMS), *share) for pool, share in self.shares.items()}
        return BatchSnapshot(
            batch=self.batch,
            status=status_of(self.batch, total, self.updated_at, self.merged, pools),
            num_records=sum(self.totals.get(pool, NO_SUMS).num_records for pool in self.shares),
            problem=self.problem,
        )


class StatusReader:
    """Remembers the records of open batches, so that a second look costs a listing and what changed.

    Thread-safe: threads that ask for one batch at the same time share one look at it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._lock = threading.Lock()
        self._views: OrderedDict[str, _View] = OrderedDict()
        self._logged_at: dict[str, float] = {}  # batches that are partly unreadable, and when that was logged
        self._record_readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="records")
        self._batch_readers = ThreadPoolExecutor(BATCH_THREADS, thread_name_prefix="status")

    def read(self, batch_id: str) -> BatchSnapshot | None:
        """None: no such batch. Raises: StoreUnavailable, BatchDamaged."""
        with self._lock:
            view = self._views.get(batch_id)
        num_before = 0 if view is None else view.num_looks
        batch = read_batch(self.ledger, batch_id)
        if batch is None:
            self._forget(batch_id, view)
            return None
        if batch.state == "ended":
            return self._ended(batch)
        view = self._view_of(batch)
        with view.lock:
            if batch.seq > view.batch.seq:
                view.batch = batch
            # Another thread may have seen it end after we read it, or begun its look after we asked.
            has_ended = view.batch.state == "ended"
            is_open = bool(view.batch.plan_key) and not has_ended  # without a plan, the total is unknown
            if is_open and not (view.is_whole and view.num_looks > num_before):
                self._look(view)
            if not has_ended:
                return view.snapshot()
        return self._ended(view.batch)

    def shards(self, batch_id: str) -> list[ShardRow]:
        """The shards that have a record, in the order of pool and number, as of the last `read`; [] once the batch has
        ended. Costs no request.
        """
        with self._lock:
            view = self._views.get(batch_id)
        if view is None:
            return []
        with view.lock:
            return [view.rows[key].shard for key in sorted(view.rows)]

    def look(self, place: str) -> BatchSnapshot | None:
        """As `read`, for the batch at this place in the index, for listings: a damaged batch does not hide the others.

        A batch that cannot be read has a `problem`, and is a placeholder if nothing of it was known.
        """
        batch_id = ledger_keys.index_batch_id(place)
        try:
            return self.read(batch_id)
        except RecordDamaged as error:
            return self._ill(damage.placeholder(place), error)
        except (BatchDamaged, StoreError) as error:
            with self._lock:
                view = self._views.get(batch_id)
            if view is not None:
                self._log_unreadable(batch_id, error)
                with view.lock:
                    return replace(view.snapshot(), problem=error)
            is_damaged = isinstance(error, BatchDamaged)
            detail = NEWER if isinstance(error, RecordNewer) else DAMAGED if is_damaged else UNREADABLE
            unknown = replace(damage.placeholder(place, detail), state="planning", reason=None, ended_at=None)
            return self._ill(unknown, error)

    def _ill(self, placeholder: BatchRecord, error: BatchfileError) -> BatchSnapshot:
        self._log_unreadable(placeholder.batch_id, error)
        status = msgspec.structs.replace(
            status_of(placeholder, NO_SUMS, placeholder.created_at),
            state="damaged" if placeholder.state == "ended" else "unreadable",
            reason=None,
            ended_at=None,
        )
        return BatchSnapshot(batch=placeholder, status=status, problem=error)

    def _log_unreadable(self, batch_id: str, error: BatchfileError) -> None:
        """Logs it for the operator, at most once in `LOG_AGAIN_S`."""
        now = self.ledger.clock.monotonic()
        with self._lock:
            recent = {known: at for known, at in self._logged_at.items() if now - at < LOG_AGAIN_S}
            if batch_id in recent:
                return
            self._logged_at = recent | {batch_id: now}
        log.error("batch.unreadable", batch_id=batch_id, error=str(error))

    def read_many(self, batch_ids: Iterable[str]) -> Iterator[BatchSnapshot]:
        """Several at a time, in order. Leaves out batches that are missing or cannot be read.

        Raises: StoreError if none can be read.
        """
        ids = iter(batch_ids)
        while some := list(islice(ids, BATCH_THREADS * 8)):
            read = self._read_or_refusal
            found = list(map(read, some) if len(some) == 1 else self._batch_readers.map(read, some))
            refusals = [one for one in found if isinstance(one, StoreError)]
            if refusals and not any(isinstance(one, BatchSnapshot) for one in found):
                raise refusals[0]
            yield from (one for one in found if isinstance(one, BatchSnapshot))

    def _read_or_refusal(self, batch_id: str) -> BatchSnapshot | StoreError | None:
        try:
            return self.read(batch_id)
        except BatchDamaged:  # reported by the processes that work on it
            return None
        except StoreError as error:
            return error

    def _ended(self, batch: BatchRecord) -> BatchSnapshot:
        updated_at = batch.ended_at or batch.created_at
        with self._lock:
            view = self._views.get(batch.batch_id)
            if view is not None:
                # Two clocks: the time reported while it was open must not be later than the one reported now.
                updated_at = max(updated_at, view.updated_at)
                if view.rows:
                    self._views[batch.batch_id] = _View(batch, updated_at)
        total = Sums(counts=batch.counts, usage=batch.usage, gpu_s=batch.gpu_s)
        status = status_of(batch, total, updated_at, batch.failures)
        return BatchSnapshot(batch=batch, status=status)

    def _view_of(self, batch: BatchRecord) -> _View:
        with self._lock:
            view = self._views.setdefault(batch.batch_id, _View(batch, batch.created_at))
            self._views.move_to_end(batch.batch_id)
            if len(self._views) > BATCHES_MAX:
                self._views.popitem(last=False)
        return view

    def _forget(self, batch_id: str, view: _View | None) -> None:
        """Forget a batch that is gone. A newer view stays: we may have read before the batch was created."""
        with self._lock:
            if view is not None and self._views.get(batch_id) is view:
                del self._views[batch_id]

    def _look(self, view: _View) -> None:
        view.num_looks += 1
        view.is_whole = False
        view.problem = None
        if not view.is_planned:
            try:
                view.use_plan(read_plan(self.ledger, view.batch))
            except RecordNewer:
                raise
            except BatchDamaged as error:  # a batch can be canceled, and expires, without its plan
                self._note(view, error)
        changed = []
        for entry in self.ledger.store.list(ledger_keys.shards_prefix(view.batch.batch_id)):
            view.updated_at = max(view.updated_at, entry.modified_at)
            known = view.rows.get(entry.key)
            if known is None or known.etag != entry.etag:
                changed.append(entry)
        num_known = len(view.rows)
        for entry, found in zip(changed, self._get_all([entry.key for entry in changed]), strict=True):
            if isinstance(found, RecordDamaged):
                self._note(view, found)
            elif found is not None:
                view.take(entry.key, entry.modified_at, found)
        view.is_whole = True
        if len(view.rows) > num_known:
            self._forget_some()

    def _note(self, view: _View, error: BatchDamaged) -> None:
        view.problem = error
        self._log_unreadable(view.batch.batch_id, error)

    def _get_all(self, keys: Sequence[str]) -> Iterable[Stored[ShardRecord] | RecordDamaged | None]:
        get = self._get
        return map(get, keys) if len(keys) <= READ_ALONE_MAX else self._record_readers.map(get, keys)

    def _get(self, key: str) -> Stored[ShardRecord] | RecordDamaged | None:
        try:
            return load(self.ledger, key, ShardRecord)
        except RecordDamaged as error:  # of one shard: the others still count
            return error

    def _forget_some(self) -> None:
        with self._lock:
            num_records = sum(view.size for view in self._views.values())
            while num_records > RECORDS_MAX and len(self._views) > 1:
                _, oldest = self._views.popitem(last=False)
                num_records -= oldest.size
