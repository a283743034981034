"""Claims and prefetches shards: turns stored bytes into prepared requests before the engine runs dry.

A thread calls `tick`, which handles one shard at a time.
"""

from contextlib import suppress
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import structlog
from msgspec.structs import replace as replace_fields

from batchfile.engine.base import Prepared
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
from batchfile.ledger.inputs import repin
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.shards import Lease
from batchfile.lines.envelope import Envelope, custom_id_of, decode_envelope
from batchfile.lines.framing import data_of
from batchfile.lines.key_advice import typo_of
from batchfile.lines.parse import parse_request
from batchfile.routing import route
from batchfile.runner.claimer import Claimer
from batchfile.runner.output_schema import output_schema_of, own_schema
from batchfile.runner.preparer import fail, make_ready
from batchfile.runner.queues import TenantRotation
from batchfile.runner.state import ActiveShard, Job, PendingRequest, SharedState
from batchfile.types import Failure, Request

log = structlog.get_logger()

WINDOW_SLOTS = 4  # the ready queue is refilled below this many times the engine's slots
AHEAD_DIVISOR = 4  # a runner that has its share of a batch keeps this part of its slots ready
READY_QUEUE_BYTES_MAX = 64 * 1024 * 1024
BACKLOG_BYTES_MAX = 8 * 1024 * 1024  # no more is claimed while this much waits to be checkpointed
PUSH_CHUNK = 64  # requests that the loop sees at once
UNPREPARED = Prepared()
UNCHECKED_BYTES_MAX = 256 * 1024 * 1024  # nothing is claimed while this much waits for schemas or media

_RUNNER_CRASH = Failure(
    type="runner_crash",
    message="The runner process crashed each time this request ran alone; it was not tried again.",
)


class OwnLine(NamedTuple):
    """A request of this pool: its place in the range, its bytes, and the part that was parsed to find its pool."""

    number: int
    data: bytes
    read: Envelope | Request | None


def is_full(state: SharedState) -> bool:
    """Is the ready queue full for now?"""
    info, ready = state.info, state.ready
    low_water = 1 if info is None else info.num_slots * WINDOW_SLOTS + info.max_in_flight
    if info is not None and state.share is not None:  # leave the rest to runners that have nothing to do
        room = info.max_in_flight - len(state.in_flight)
        low_water = min(low_water, max(room + info.num_slots // AHEAD_DIVISOR, state.share))
    if len(ready) + len(state.to_load) + len(state.attempts) >= low_water or ready.size_bytes >= READY_QUEUE_BYTES_MAX:
        return True
    if state.unchecked.size + state.to_load.size >= UNCHECKED_BYTES_MAX:
        return True
    # Results that cannot be committed hold up no others: their batch is set aside, so there are few.
    return sum(shard.finished_bytes for shard in list(state.shards) if not shard.num_failures) >= BACKLOG_BYTES_MAX


class Prefetcher:
    def __init__(self, state: SharedState, claimer: Claimer) -> None:
        self._state = state
        self._ledger = state.ledger
        self._claimer = claimer
        self._bisect_rotation = TenantRotation(state.ledger.rng)
        self._keys = count(1)

    def tick(self) -> bool:
        """Claim one shard and queue it, or continue bisecting; False if there is nothing to do now."""
        state = self._state
        if not state.may_prefetch:
            return False
        if self._continue_bisect():
            return True
        state.share = self._claimer.share()
        if is_full(state):
            return False
        state.is_claiming = True
        try:
            held = self._claimer.next()
            has_more = held is not None or self._claimer.has_more
            with state.changed:
                state.ready.set_ended(not has_more)
                state.changed.notify_all()
            if held is not None:
                self._feed(held)
        finally:
            state.is_claiming = False
        return has_more

    def _feed(self, held: Lease) -> None:
        record, defaults = held.record, held.batch.defaults
        log.info(
            "shard.claimed",
            batch_id=held.batch.batch_id,
            shard=held.name,
            epoch=record.epoch,
            crash_count=record.crash_count,
        )
        output_schema = output_schema_of(defaults)
        shard = ActiveShard(
            held=held,
            left=record.num_lines - record.counts.finished,
            output_schema=output_schema,
            needs_answer=defaults.needs_answer or output_schema is not None,
            claimed_at=self._ledger.clock.now(),
            is_bisecting=lease.is_bisecting(record),
        )
        self._state.take_on(shard)
        if not shard.is_bisecting:  # bisecting waits for its turn
            self._start(shard)

    def _start(self, shard: ActiveShard) -> None:
        """Queue the shard's lines, or the next ones to bisect. A shard whose lines cannot be read is put back."""
        try:
            if shard.is_bisecting:
                self._start_bisect(shard)
            else:
                self._push(shard, shard.held.missing)
            self._state.aside.worked(shard.batch_id, "claim")
        except LeaseLost as error:
            shard.is_closed = isinstance(error, ShardClosed)
            shard.is_dropped = True
        except (ObjectChanged, ObjectMissing) as error:
            self._end_changed(shard, error)
        except (StoreError, BatchDamaged) as error:
            self._put_back(shard, error)

    def _put_back(self, shard: ActiveShard, error: BatchfileError) -> None:
        """Another runner may be able to read the shard, and this one continues with other batches.

        Raises: `error` if there are no others.
        """
        log.warning("shard.put_back", batch_id=shard.batch_id, shard=shard.held.name, error=str(error))
        self._state.give_back(shard)
        self._state.aside.put(shard.batch_id, "claim", error)

    def _push(self, shard: ActiveShard, wanted: int, *, is_alone: bool = False) -> None:
        """Read the shard's range, prepare the wanted lines of this pool, and queue them."""
        items: list[PendingRequest] = []
        is_first = True
        for line in self._own_lines(shard.held, wanted):
            item = self._item(shard, line, is_alone=is_alone)
            if item is None:
                continue
            items.append(item)
            if not is_alone and len(items) >= PUSH_CHUNK:
                self._state.push(items, new_generation=is_first)
                items, is_first = [], False
            if self._state.is_ending or shard.is_dropped:
                return
        self._state.push(items, is_alone=is_alone, new_generation=is_first and not is_alone)

    def _own_lines(self, held: Lease, wanted: int) -> list[OwnLine]:
        span, batch = held.range, held.batch
        chunks = self._ledger.store.stream(batch.input.key, span.start, span.end, match=batch.input.etag)
        rejected = bitmaps.parse(span.rejected)
        wanted &= ~rejected
        is_shared = held.record.num_lines != span.num_lines - rejected.bit_count()
        lines = data_of(chunks, span.end - span.start, span.num_lines)
        own: list[OwnLine] = []
        for number in bitmaps.lines(wanted & ((1 << len(lines)) - 1)):
            data = lines[number]
            if data is None:
                continue
            pool, read = _routed(data, batch) if is_shared else (held.record.pool, None)
            if pool == held.record.pool:
                own.append(OwnLine(number, data, read))
        return own

    def _item(self, shard: ActiveShard, line: OwnLine, *, is_alone: bool) -> PendingRequest | None:
        """The request, ready for the engine; None if `make_ready` is False, or it waits for its media."""
        try:
            read = line.read or line.data
            request = read if isinstance(read, Request) else parse_request(read, shard.held.batch.defaults)
            if shard.held.batch.routing.adapters:
                loaded = None if self._state.info is None else self._state.info.adapters
                request = _with_adapter(request, line.data, shard.held.batch, loaded)
            schema = own_schema(request)
        except InvalidRequest as error:
            fail(self._state, shard, line.number, custom_id_of(line.data), error)
            return None
        is_checked = schema is not None or shard.output_schema is not None
        item = PendingRequest(
            key=next(self._keys),
            shard=shard,
            line=line.number,
            custom_id=request.custom_id,
            prepared=UNPREPARED,
            size=len(line.data),
            request=request if is_checked else None,
            schema=schema,
        )
        guided = request if shard.output_schema is None else shard.output_schema.guide(request)
        job = Job(item, guided, is_alone)
        if request.has_media:
            self._state.to_load.add(job)
            return None
        return item if make_ready(self._state, job, "prefetcher") else None

    def _start_bisect(self, shard: ActiveShard) -> None:
        """Write the next lines into the record, then queue exactly those to run alone."""
        with shard.commit_lock:
            held, finished = shard.held, list(shard.finished)
            lines = self._own_lines(held, held.missing & ~bitmaps.of(line.line for line in finished))
            own = {line.number: line.data for line in lines}
            culprit = lease.poison_line(held.record)
            if culprit is not None and culprit in own:
                fail(self._state, shard, culprit, custom_id_of(own.pop(culprit)), _RUNNER_CRASH)
                finished = list(shard.finished)
            bisect_set = lease.next_bisect_set(held.record, bitmaps.of(own)) if culprit is None else ()
            # Written before they run: a process crash until then must not count against these lines.
            shard.has_dispatched = shard.wants_to_announce = False
            known = self._state.fingerprints
            shards.checkpoint(
                self._ledger, held, finished, has_dispatched=False, bisect_set=bisect_set, fingerprints=known
            )
            self._state.forget(shard, len(finished))
            if not lease.is_bisecting(held.record):
                shard.is_bisecting, wanted = False, bitmaps.of(own)
            else:
                shard.num_bisect_left, wanted = len(bisect_set), bitmaps.of(bisect_set)
        if wanted:
            log.warning(
                "bisect.started",
                batch_id=shard.batch_id,
                shard=held.name,
                lines=wanted.bit_count(),
                crash_count=held.record.crash_count,
            )
            self._push(shard, wanted, is_alone=shard.is_bisecting)

    def _continue_bisect(self) -> bool:
        """Bisect one shard at a time: then a crash speaks against its lines, and against no others.

        Each waits until the engine is empty, so tenants take turns; of a tenant's shards, the one with the most crashes
        is next.
        """
        bisects = [
            shard
            for shard in list(self._state.shards)
            if shard.is_bisecting and shard.left > 0 and not (shard.is_dropped or shard.is_to_return)
        ]
        if not bisects or any(shard.num_bisect_left > 0 for shard in bisects):
            return False
        tenant = self._bisect_rotation.take(shard.held.batch.tenant for shard in bisects)
        of_tenant = [shard for shard in bisects if shard.held.batch.tenant == tenant]
        self._start(max(of_tenant, key=lambda shard: shard.held.record.crash_count))
        return True

    def _end_changed(self, shard: ActiveShard, error: StoreError) -> None:
        """The pinned input is gone: end the batch and keep what is committed.

        Only if the store says so in two different ways, because one answer may be a hidden access error. And only if
        the planned bytes are gone: otherwise the shard is claimed again with a readable input.
        """
        batch = shard.held.batch
        try:
            entry = self._ledger.store.head(batch.input.key)
            if entry is not None and entry.etag == batch.input.etag:
                return self._put_back(shard, error)
            renewed = repin(self._ledger, batch)
            if renewed is not None:
                self._claimer.renew(renewed)
                return self._state.give_back(shard)
            log.error("input.changed", batch_id=batch.batch_id, error=str(error))
            batches.end(self._ledger, batch.batch_id, "input_changed", str(error))
        except (StoreError, BatchDamaged) as refusal:
            return self._put_back(shard, refusal)
        shard.is_closed = shard.is_dropped = True
        self._claimer.drop(batch.batch_id)
        return self._claimer.look_again()


def _with_adapter(request: Request, line: bytes, batch: BatchRecord, loaded: tuple[str, ...] | None) -> Request:
    """A `model_hint` that names an adapter counts as the model of the request.

    Raises: InvalidRequest if the pool no longer has the adapter, or its name is misspelled: the model itself must not
    answer instead.
    """
    hint = decode_envelope(line).hint
    name = hint if hint in batch.routing.adapters else request.model
    if name in batch.routing.adapters and loaded is not None and name not in loaded:
        raise InvalidRequest(
            f"model: the pool no longer has the adapter {name!r}, which it had when the batch was created"
        )
    _check_spelling(request.model, batch)
    return request if name == request.model else replace_fields(request, model=name)


_adapter_meant = lru_cache(maxsize=1024)(typo_of)  # most lines of a batch name one model


def _check_spelling(model: str | None, batch: BatchRecord) -> None:
    """A stage ignores models, such as those of a hosted API, but a misspelled adapter is not one of them.

    Raises: InvalidRequest.
    """
    table = batch.routing
    if model is None or model in table.adapters or model in table.pools:
        return
    meant = (
        None if any(model in names for names in table.pools.values()) else _adapter_meant(model, tuple(table.adapters))
    )
    if meant is not None:
        raise InvalidRequest(f"model: {model[:80]!r} is unknown; did you mean the adapter {meant!r}?")


def _routed(line: bytes, batch: BatchRecord) -> tuple[str | None, Envelope | Request | None]:
    """The pool that the planner chose, and what was parsed of the line: all of it if its own model decides, so that it
    is not parsed twice. No pool: the planner rejected the line (the plan's bitmap says so too).
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
