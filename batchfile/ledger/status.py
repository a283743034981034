"""What a batch is doing, derived from its records: list them, read what changed, keep running sums.

A known record is never replaced by an older one of the same owner, so counts seen through one reader never decrease.
A look at an open batch costs batch.json, a listing and the changed records; the first look reads the plan and all
records. An ended batch costs batch.json.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import structlog

from batchfile.errors import BatchDamaged, BatchfileError, RecordDamaged, RecordNewer, StoreError
from batchfile.ledger import damage
from batchfile.ledger import keys as ledger_keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.batch_status import BatchStatus, PoolProgress
from batchfile.ledger.batches import read_batch, read_plan
from batchfile.ledger.cas import Stored, load
from batchfile.ledger.damage import DAMAGED
from batchfile.ledger.records import BatchRecord, Plan, ShardRecord
from batchfile.types import Counts, Usage

log = structlog.get_logger()

BATCHES_MAX = 1_000  # remembered by a reader; the one looked at longest ago is forgotten first
RECORDS_MAX = 1_000_000  # in all of these; about 500 bytes each
READ_THREADS = 16  # threads that read the records of a first look
BATCH_THREADS = 8  # threads that look at several batches
READ_IN_TURN_MAX = 32  # up to this many are read without threads
TELL_S = 600.0  # between two log lines about one batch that cannot be read

NEWER = "a newer version of this service wrote the record of this batch; upgrade this process"
UNREADABLE = "the record of this batch cannot be read now; try again later"


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedStatus:
    """A batch's record and its progress. `num_records`: of shards that a runner has claimed, or that were closed.

    `pools` is empty once the batch has ended. Neither it nor `num_records` includes lines that the planner settled.
    Times in epoch seconds. `problem`: what cannot be read. `is_known` False: `batch` is a placeholder.
    """

    batch: BatchRecord
    counts: Counts
    usage: Usage
    updated_at: float
    num_records: int = 0
    pools: dict[str, PoolProgress] = field(default_factory=dict)
    problem: BatchfileError | None = None
    is_known: bool = True

    @property
    def pending(self) -> int:
        return self.batch.total - self.counts.finished

    def shown(self, *, detail: str | None, inbox_path: str | None) -> BatchStatus:
        """As it is sent to users. `detail`: the message for the reader."""
        batch, counts, usage, is_known = self.batch, self.counts, self.usage, self.is_known
        assert batch.state != "deleted", "a deleted batch has no status"
        return BatchStatus(
            batch_id=batch.batch_id,
            state=batch.state if is_known else "damaged" if batch.state == "ended" else "unreadable",
            reason=batch.reason if is_known else None,
            detail=detail,
            stage=batch.stage,
            total=batch.total,
            succeeded=counts.succeeded,
            errored=counts.errored,
            canceled=counts.canceled,
            expired=counts.expired,
            pending=self.pending,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            usage_unknown=usage.unknown,
            created_at=batch.created_at,
            updated_at=self.updated_at,
            ended_at=batch.ended_at if is_known else None,
            expires_at=batch.expires_at,
            metadata=batch.metadata,
            priority=batch.priority,
            dialect=batch.input.format,
            inbox_path=inbox_path,
            pools=self.pools,
        )


class _Figures(NamedTuple):
    """What one record adds to the sums."""

    num_records: int = 0
    num_done: int = 0
    num_leased: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    usage_unknown: int = 0

    def changed(self, old: "_Figures", new: "_Figures") -> "_Figures":
        return _Figures(*(total - before + after for total, before, after in zip(self, old, new, strict=True)))

    @property
    def counts(self) -> Counts:
        return Counts(succeeded=self.succeeded, errored=self.errored, canceled=self.canceled, expired=self.expired)

    @property
    def usage(self) -> Usage:
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            unknown=self.usage_unknown,
        )


_NONE = _Figures()


class _Row(NamedTuple):
    """What is remembered of a record."""

    etag: str
    epoch: int
    seq: int
    figures: _Figures


class _View:
    """An open batch as last seen. Everything but `turn` and `updated_at` is accessed under `lock` only."""

    def __init__(self, batch: BatchRecord, updated_at: float) -> None:
        self.lock = threading.Lock()
        self.turn = 0
        self.batch = batch
        self.updated_at = updated_at
        self.rows: dict[str, _Row] = {}
        self.totals: dict[str, _Figures] = {}
        self.shares: dict[str, tuple[int, int]] = {}  # pool -> its number of shards and of requests
        self.is_planned = False
        self.problem: BatchDamaged | None = None  # of its plan or a shard record, at the last look
        self.is_whole = False  # the last look was complete

    def use_plan(self, plan: Plan) -> None:
        self.shares = {
            pool: (len(members), sum(members.values()))
            for pool, members in plan.pools.items()
            if pool not in ledger_keys.SETTLED_POOLS
        }
        self.is_planned = True

    def take(self, key: str, found: Stored[ShardRecord]) -> None:
        record = found.record
        known = self.rows.get(key)
        if known is not None and (record.epoch, record.seq) < (known.epoch, known.seq):
            return
        figures = _figures(record)
        total = self.totals.get(record.pool, _NONE)
        self.totals[record.pool] = total.changed(_NONE if known is None else known.figures, figures)
        self.rows[key] = _Row(found.etag, record.epoch, record.seq, figures)

    def status(self) -> DerivedStatus:
        whole = _NONE
        for total in self.totals.values():
            whole = whole.changed(_NONE, total)
        return DerivedStatus(
            batch=self.batch,
            counts=whole.counts,
            usage=whole.usage,
            updated_at=self.updated_at,
            num_records=sum(self.totals.get(pool, _NONE).num_records for pool in self.shares),
            pools={pool: _progress(self.totals.get(pool, _NONE), *share) for pool, share in self.shares.items()},
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
        self._told: dict[str, float] = {}  # batches that are partly unreadable, and when that was logged
        self._record_readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="records")
        self._batch_readers = ThreadPoolExecutor(BATCH_THREADS, thread_name_prefix="status")

    def read(self, batch_id: str) -> DerivedStatus | None:
        """None: no such batch. Raises: StoreUnavailable, BatchDamaged."""
        with self._lock:
            view = self._views.get(batch_id)
        turn = 0 if view is None else view.turn
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
            if is_open and not (view.is_whole and view.turn > turn):
                self._look(view)
            if not has_ended:
                return view.status()
        return self._ended(view.batch)

    def look(self, place: str) -> DerivedStatus | None:
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
                self._tell(batch_id, error)
                with view.lock:
                    return replace(view.status(), problem=error)
            detail = DAMAGED
            if not isinstance(error, BatchDamaged):
                detail = UNREADABLE
            elif isinstance(error, RecordNewer):
                detail = NEWER
            unknown = replace(damage.placeholder(place, detail), state="planning", reason=None, ended_at=None)
            return self._ill(unknown, error)

    def _ill(self, placeholder: BatchRecord, error: BatchfileError) -> DerivedStatus:
        self._tell(placeholder.batch_id, error)
        return DerivedStatus(
            batch=placeholder,
            counts=Counts(),
            usage=Usage(),
            updated_at=placeholder.created_at,
            problem=error,
            is_known=False,
        )

    def _tell(self, batch_id: str, error: BatchfileError) -> None:
        """Logs it for the operator, at most once in `TELL_S`."""
        now = self.ledger.clock.monotonic()
        with self._lock:
            told_at = self._told.get(batch_id, float("-inf"))
            if now - told_at < TELL_S:
                return
            self._told = {known: at for known, at in self._told.items() if now - at < TELL_S} | {batch_id: now}
        log.error("batch.unreadable", batch_id=batch_id, error=str(error))

    def read_many(self, batch_ids: Iterable[str]) -> Iterator[DerivedStatus]:
        """Several at a time, in order. Leaves out batches that are missing or cannot be read.

        Raises: StoreError if none can be read.
        """
        ids = iter(batch_ids)
        while some := list(islice(ids, BATCH_THREADS * 8)):
            read = self._read_or_refusal
            found = list(map(read, some) if len(some) == 1 else self._batch_readers.map(read, some))
            refusals = [one for one in found if isinstance(one, StoreError)]
            if refusals and not any(isinstance(one, DerivedStatus) for one in found):
                raise refusals[0]
            yield from (one for one in found if isinstance(one, DerivedStatus))

    def _read_or_refusal(self, batch_id: str) -> DerivedStatus | StoreError | None:
        try:
            return self.read(batch_id)
        except BatchDamaged:  # reported by the processes that work on it
            return None
        except StoreError as error:
            return error

    def _ended(self, batch: BatchRecord) -> DerivedStatus:
        updated_at = batch.ended_at or batch.created_at
        with self._lock:
            view = self._views.get(batch.batch_id)
            if view is not None:
                # Two clocks: the time reported while it was open must not be later than the one reported now.
                updated_at = max(updated_at, view.updated_at)
                if view.rows:
                    self._views[batch.batch_id] = _View(batch, updated_at)
        return DerivedStatus(batch=batch, counts=batch.counts, usage=batch.usage, updated_at=updated_at)

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
        view.turn += 1
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
                changed.append(entry.key)
        num_known = len(view.rows)
        for key, found in zip(changed, self._get_all(changed), strict=True):
            if isinstance(found, RecordDamaged):
                self._note(view, found)
            elif found is not None:
                view.take(key, found)
        view.is_whole = True
        if len(view.rows) > num_known:
            self._forget_some()

    def _note(self, view: _View, error: BatchDamaged) -> None:
        view.problem = error
        self._tell(view.batch.batch_id, error)

    def _get_all(self, keys: Sequence[str]) -> Iterable[Stored[ShardRecord] | RecordDamaged | None]:
        get = self._get
        return map(get, keys) if len(keys) <= READ_IN_TURN_MAX else self._record_readers.map(get, keys)

    def _get(self, key: str) -> Stored[ShardRecord] | RecordDamaged | None:
        try:
            return load(self.ledger, key, ShardRecord)
        except RecordDamaged as error:  # of one shard: the others still count
            return error

    def _forget_some(self) -> None:
        with self._lock:
            num_records = sum(len(view.rows) for view in self._views.values())
            while num_records > RECORDS_MAX and len(self._views) > 1:
                _, oldest = self._views.popitem(last=False)
                num_records -= len(oldest.rows)


def _figures(record: ShardRecord) -> _Figures:
    counts, usage = record.counts, record.usage
    return _Figures(
        num_records=1,
        num_done=record.state in {"done", "closed"},
        num_leased=record.state == "leased",
        succeeded=counts.succeeded,
        errored=counts.errored,
        canceled=counts.canceled,
        expired=counts.expired,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        usage_unknown=usage.unknown,
    )


def _progress(total: _Figures, num_shards: int, num_requests: int) -> PoolProgress:
    return PoolProgress(
        num_shards=num_shards,
        num_done=total.num_done,
        num_leased=total.num_leased,
        num_requests=num_requests,
        num_finished=total.counts.finished,
    )
