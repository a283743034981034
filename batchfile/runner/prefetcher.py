"""Claims ahead and prefetches: store bytes become prepared requests in the ready queue, before the engine runs dry.

`tick` does one shard's worth of work; a thread repeats it. Knows the engine only through `prepare`.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import NamedTuple

import structlog

from batchfile.engine.base import Prepared, SchemaUnchecked
from batchfile.errors import (
    BatchDamaged,
    BatchfileError,
    InvalidRequest,
    LeaseLost,
    ObjectChanged,
    ObjectMissing,
    ShardClosed,
    StoreError,
)
from batchfile.ledger import batches, bitmaps, lease, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.inputs import repin
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.ledger.shards import Lease
from batchfile.lines import custom_id_of, parse_request
from batchfile.lines.envelope import Envelope, decode_envelope
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import FinishedLine, encode_result
from batchfile.routing import route
from batchfile.runner.active import ActiveShard, PendingRequest
from batchfile.runner.claimer import Claims
from batchfile.runner.fair_queue import FairQueue, Job
from batchfile.runner.ready_queue import ReadyQueue
from batchfile.runner.schemas.output_schema import output_schema_of, own_schema, unguided
from batchfile.runner.stats import RunnerStats
from batchfile.runner.tenant_turns import Turns
from batchfile.runner.watchdog import Calls
from batchfile.types import Failure, Request

log = structlog.get_logger()

WINDOW_SLOTS = 4  # the ready queue is refilled below this many times the engine's slots
READY_QUEUE_BYTES_MAX = 64 * 1024 * 1024
BACKLOG_BYTES_MAX = 8 * 1024 * 1024  # no more is claimed while this much waits to be checkpointed
PUSH_CHUNK = 64  # requests that become visible to the loop at once
UNPREPARED = Prepared()
UNCHECKED_MAX = 64  # a batch with more requests that wait for their schemas is not claimed from
UNCHECKED_BYTES_MAX = 256 * 1024 * 1024  # no more is claimed at all while so much waits for schemas


class OwnLine(NamedTuple):
    """A request of this pool: its place in the range, its bytes, and what was read of them to find its pool."""

    number: int
    data: bytes
    read: Envelope | Request | None


class Prefetcher:
    """Fills the ready queue. Shares `works`, the shards in work, with the checkpointer."""

    def __init__(
        self,
        ledger: Ledger,
        claims: Claims,
        ready_queue: ReadyQueue,
        works: list[ActiveShard],
        runner_stats: RunnerStats,
        changed: threading.Condition,
        aside: SetAside,
        on_return: Callable[[], None],
    ) -> None:
        """`on_return`: a shard is to be put back.

        `attempts`: further attempts. `unchecked`: requests that wait for their schemas. A thread each works on them.
        """
        self._ledger = ledger
        self._claims = claims
        self._aside = aside
        self._on_return = on_return
        self._ready_queue = ready_queue
        self._works = works
        self._runner_stats = runner_stats
        self._changed = changed
        self._trial_turns = Turns(ledger.rng)
        self._keys = count(1)
        self.calls = Calls(is_warm=True)
        self.attempts = FairQueue()
        self.unchecked = FairQueue()
        claims.is_waiting = lambda batch_id: self.unchecked.num_of(batch_id) > UNCHECKED_MAX
        self._prepare: Callable[[Request], Prepared] | None = None
        self._low_water = 1
        self.has_engine = False  # what a dead one prepares may be unchecked
        self.is_stopped = False
        self.is_claiming = False  # a shard may be ours already and not yet among `works`

    def use(self, prepare: Callable[[Request], Prepared], num_slots: int, max_in_flight: int) -> None:
        """The engine is ready (again)."""
        self._prepare = prepare
        self._low_water = num_slots * WINDOW_SLOTS + max_in_flight
        self.has_engine = True

    def is_full(self) -> bool:
        if len(self._ready_queue) >= self._low_water or self._ready_queue.size_bytes >= READY_QUEUE_BYTES_MAX:
            return True
        if self.unchecked.size_bytes >= UNCHECKED_BYTES_MAX:
            return True
        # What cannot be committed holds up no other: its batch is set aside, so there is little of it.
        return sum(work.finished_bytes for work in list(self._works) if not work.num_failures) >= BACKLOG_BYTES_MAX

    def prepare_again(self, item: PendingRequest, request: Request) -> None:
        """Another attempt at `item`, with this request, goes into the ready queue soon. From the loop's thread."""
        self.attempts.add(Job(item, request))

    def prepare_next(self, queue: FairQueue) -> bool:
        """Prepare one request of `attempts` or `unchecked`; False: none waits.

        On a thread for each: `tick` may wait for the store, and a schema may take a minute.
        """
        job = queue.take() if self._is_ready() else None
        if job is None:
            return False
        began_at = self._ledger.clock.monotonic()
        is_dropped = job.item.shard.is_dropped
        if not is_dropped and self._make_ready(job, queue):
            with self._changed:
                if job.is_alone:
                    self._ready_queue.push_alone([job.item])
                else:
                    self._ready_queue.push([job.item])
                self._changed.notify_all()
        queue.charge(job, self._ledger.clock.monotonic() - began_at)
        return True

    def tick(self) -> bool:
        """Claim one shard and feed it, or continue a trial; False where there is nothing to do now."""
        if not self._is_ready():
            return False
        if self._continue_bisect():
            return True
        if self.is_full():
            return False
        self.is_claiming = True
        try:
            held = self._claims.next()
            has_more = held is not None or self._claims.has_more
            with self._changed:
                self._ready_queue.set_ended(not has_more)
                self._changed.notify_all()
            if held is not None:
                self._feed(held)
        finally:
            self.is_claiming = False
        return has_more

    def _is_ready(self) -> bool:
        return self.has_engine and not self.is_stopped

    def _feed(self, held: Lease) -> None:
        record = held.record
        log.info(
            "shard.claimed",
            batch_id=held.batch.batch_id,
            shard=f"{record.pool}/{record.n}",
            epoch=record.epoch,
            crash_count=record.crash_count,
        )
        output_schema = output_schema_of(held.batch.defaults)
        work = ActiveShard(
            held=held,
            left=record.num_lines - record.counts.finished,
            output_schema=output_schema,
            needs_answer=held.batch.defaults.needs_answer or output_schema is not None,
        )
        work.is_bisecting = lease.is_bisecting(record)
        self._works.append(work)
        if not work.is_bisecting:  # a trial waits for its turn
            self._start(work)

    def _start(self, work: ActiveShard) -> None:
        """Queue the shard's lines, or the next of its trial. Where they cannot be read, the shard is put back."""
        batch_id = work.held.batch.batch_id
        try:
            if work.is_bisecting:
                self._start_bisect(work)
            else:
                self._push(work, work.held.missing)
            self._aside.worked(batch_id, "claim")
        except LeaseLost as error:
            work.is_closed = isinstance(error, ShardClosed)
            work.is_dropped = True
        except (ObjectChanged, ObjectMissing) as error:
            self._end_changed(work, error)
        except (StoreError, BatchDamaged) as error:
            self._put_back(work, error)

    def _put_back(self, work: ActiveShard, error: BatchfileError) -> None:
        """Another runner may have more luck with the shard, and this one goes on with other batches.

        Raises: `error` where there are none.
        """
        log.warning("shard.put_back", batch_id=work.held.batch.batch_id, shard=work.held.record.n, error=str(error))
        work.is_to_return = True
        self._on_return()
        self._aside.put(work.held.batch.batch_id, "claim", error)

    def _push(self, work: ActiveShard, wanted: int, *, is_alone: bool = False) -> None:
        """Read the shard's range, prepare the wanted lines that are this pool's, and queue them."""
        items: list[PendingRequest] = []
        is_first = True
        for line in self._own_lines(work.held, wanted):
            item = self._item(work, line, is_alone=is_alone)
            if item is None:
                continue
            items.append(item)
            if not is_alone and len(items) >= PUSH_CHUNK:
                self._queue(items, new_generation=is_first)
                items, is_first = [], False
            if self.is_stopped or work.is_dropped:
                return
        if is_alone:
            with self._changed:
                self._ready_queue.push_alone(items)
                self._changed.notify_all()
        else:
            self._queue(items, new_generation=is_first)

    def _queue(self, items: list[PendingRequest], *, new_generation: bool) -> None:
        with self._changed:
            self._ready_queue.push(items, new_generation=new_generation)
            self._changed.notify_all()

    def _own_lines(self, held: Lease, wanted: int) -> list[OwnLine]:
        span, batch = held.range, held.batch
        chunks = self._ledger.store.stream(batch.input.key, span.start, span.end, match=batch.input.etag)
        wanted &= ~bitmaps.parse(span.rejected)
        is_shared = held.record.num_lines != span.num_lines - bitmaps.parse(span.rejected).bit_count()
        own: list[OwnLine] = []
        for number, line in enumerate(iter_lines(chunks, span.start, span.first_row)):
            if not wanted >> number & 1 or line.data is None:
                continue
            pool, read = _routed(line.data, batch) if is_shared else (held.record.pool, None)
            if pool == held.record.pool:
                own.append(OwnLine(number, line.data, read))
        return own

    def _item(self, work: ActiveShard, line: OwnLine, *, is_alone: bool) -> PendingRequest | None:
        """The request ready for the engine; None where `_make_ready` is False."""
        try:
            read = line.read or line.data
            request = read if isinstance(read, Request) else parse_request(read, work.held.batch.defaults)
            schema = own_schema(request)
        except InvalidRequest as error:
            self._fail(work, line.number, custom_id_of(line.data), error)
            return None
        is_checked = schema is not None or work.output_schema is not None
        item = PendingRequest(
            key=next(self._keys),
            shard=work,
            line=line.number,
            custom_id=request.custom_id,
            prepared=UNPREPARED,
            size=len(line.data),
            request=request if is_checked else None,
            schema=schema,
        )
        job = Job(item, request if work.output_schema is None else work.output_schema.guide(request), is_alone)
        return item if self._make_ready(job) else None

    def _make_ready(self, job: Job, queue: FairQueue | None = None) -> bool:
        """Prepare it; not guided where the engine refuses the batch's schema. `queue`: where it waited.

        False: it waits for its schema now, or it can never be served and is settled already.
        """
        item, request, _ = job
        output_schema = item.shard.output_schema
        try:
            item.prepared = self._prepared(job, queue)
        except SchemaUnchecked:
            self.unchecked.add(job)
            return False
        except InvalidRequest as error:
            if output_schema is None or not output_schema.is_guided(request):
                self._fail(item.shard, item.line, item.custom_id, error)
                return False
            if not self._make_ready(job._replace(request=unguided(request)), queue):
                return False  # something else is wrong with it
            output_schema.stop_guiding(str(error))
            return True
        if item.request is not None:  # its answer is checked: the next attempt follows from this one
            item.request = request
        return True

    def _prepared(self, job: Job, queue: FairQueue | None) -> Prepared:
        """Raises: InvalidRequest; SchemaUnchecked."""
        assert self._prepare is not None
        calls = self.calls if queue is None else queue.calls
        calls.enter("prepare", job.item)
        try:
            return self._prepare(job.request)
        except SchemaUnchecked as unchecked:
            if queue is not self.unchecked:
                raise
            finish = unchecked.finish
        finally:
            calls.leave()
        return finish(job.batch_id)  # it has bounds of its own

    def _fail(self, work: ActiveShard, line: int, custom_id: str | None, error: InvalidRequest | Failure) -> None:
        failure = error if isinstance(error, Failure) else Failure(type=error.type, message=str(error))
        with self._changed:
            self._runner_stats.refused += 1
        if work.settle(FinishedLine(line, failure.status, encode_result(custom_id, failure, ""))):
            with self._changed:
                self._changed.notify_all()

    def _start_bisect(self, work: ActiveShard) -> None:
        """Name the next lines in the record, then queue exactly those to run alone."""
        with work.lock:
            held = work.held
            finished = list(work.finished)
            missing = held.missing & ~bitmaps.of(item.line for item in finished)
            own = [line.number for line in self._own_lines(held, missing)]
            culprit = lease.poison_line(held.record)
            if culprit is not None and culprit in own:
                self._fail_poison(work, culprit)
                finished = list(work.finished)
                own.remove(culprit)
            bisect_set = lease.next_bisect_set(held.record, bitmaps.of(own)) if culprit is None else ()
            work.has_dispatched = work.wants_to_announce = False  # they wait for their turn; a death now is not theirs
            shards.checkpoint(self._ledger, held, finished, has_dispatched=False, bisect_set=bisect_set)
            work.forget(len(finished))
            if not lease.is_bisecting(held.record):
                work.is_bisecting, wanted = False, bitmaps.of(own)
            else:
                work.num_bisect_left, wanted = len(bisect_set), bitmaps.of(bisect_set)
        if wanted:
            log.warning(
                "trial.started", shard=held.record.n, lines=wanted.bit_count(), crash_count=held.record.crash_count
            )
            self._push(work, wanted, is_alone=work.is_bisecting)

    def _fail_poison(self, work: ActiveShard, line: int) -> None:
        (own,) = self._own_lines(work.held, 1 << line)
        failure = Failure(
            type="runner_crash",
            message="This request ended the runner process each time it ran, alone; it was not tried again.",
        )
        self._fail(work, line, custom_id_of(own.data), failure)

    def _continue_bisect(self) -> bool:
        """One trial at a time: a death then speaks against its lines, and against nobody else's.

        Each waits until the engine is empty, so tenants take turns; of a tenant's shards, that of the most deaths is
        next.
        """
        bisects = [
            work
            for work in self._works
            if work.is_bisecting and work.left > 0 and not (work.is_dropped or work.is_to_return)
        ]
        if not bisects or any(work.num_bisect_left > 0 for work in bisects):
            return False
        tenant = self._trial_turns.take(work.held.batch.tenant for work in bisects)
        of_tenant = [work for work in bisects if work.held.batch.tenant == tenant]
        self._start(max(of_tenant, key=lambda work: work.held.record.crash_count))
        return True

    def _end_changed(self, work: ActiveShard, error: StoreError) -> None:
        """The pinned input is not there any more: the batch ends, what is committed stays.

        Only if the store says so twice, in two ways: a batch never ends for an answer that may be a refusal. And only
        if the bytes that were planned are gone: otherwise the shard is claimed again, with an input that can be read.
        """
        batch = work.held.batch
        try:
            entry = self._ledger.store.head(batch.input.key)
            if entry is not None and entry.etag == batch.input.etag:
                return self._put_back(work, error)
            renewed = repin(self._ledger, batch)
            if renewed is not None:
                self._claims.renew(renewed)
                work.is_to_return = True
                self._on_return()
                return None
            log.error("input.changed", batch_id=batch.batch_id, error=str(error))
            batches.end(self._ledger, batch.batch_id, "input_changed", str(error))
        except (StoreError, BatchDamaged) as refusal:
            return self._put_back(work, refusal)
        work.is_closed = work.is_dropped = True
        self._claims.drop(batch.batch_id)
        self._claims.look_again()
        return None


def _routed(line: bytes, batch: BatchRecord) -> tuple[str | None, Envelope | Request | None]:
    """The pool that the planner chose, and what was read of the line: all of it where its own model decides, so that it
    is not parsed twice. No pool: the planner rejected it (the plan's bitmap says so too).
    """
    try:
        read: Envelope | Request
        read = envelope = decode_envelope(line)
        hint, model = envelope.hint, None
        if hint is None and batch.stage is None and batch.routing.everything is None:
            with suppress(InvalidRequest):
                read = parse_request(envelope, batch.defaults)
            model = read.model
        return route(batch.routing, stage=batch.stage, hint=hint, model=model), read
    except InvalidRequest:
        return None, None
