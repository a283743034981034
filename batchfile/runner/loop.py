"""The loop: keeps the engine full, steps it and hands over what has finished.

It runs on one thread and never waits for the store: the prefetcher fills the ready queue ahead of it, and the
checkpointer commits results behind it.
"""

from dataclasses import dataclass

import structlog

from batchfile.engine.base import Engine, Finished
from batchfile.errors import InvalidRequest
from batchfile.ledger import lease
from batchfile.runner import answers
from batchfile.runner.prefetcher import is_full
from batchfile.runner.state import ActiveShard, PendingRequest, SharedState
from batchfile.types import Failure

log = structlog.get_logger()

FILL_WAIT_S_MAX = 0.25  # how long an empty engine waits for its slots to fill


@dataclass(slots=True)
class _Parked:
    """Requests whose lease may be lost, or whose shard must first announce the dispatch: they hold up no others."""

    items: list[PendingRequest]
    is_alone: bool


class Loop:
    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._calls = state.calls["loop"]
        self._fills_since: float | None = None
        self._parked: list[_Parked] = []

    def step(self, engine: Engine) -> bool:
        """Do one step. False: idle. Raises: EngineDead."""
        state = self._state
        self._abort_dropped(engine)
        answers.take_checked(state)
        self._unpark()
        self._fill(engine)
        if not state.in_flight:
            state.steps.ended_at = None
            return False
        for finished in self._step(engine):
            answers.complete(state, finished)
        return True

    def wait(self, timeout_s: float) -> None:
        """Wait after an idle step until there may be something to do, at most `timeout_s`."""
        state = self._state
        with state.changed:
            is_held = self._fills_since is not None or self._parked or state.is_stopping
            if not len(state.ready) or is_held or state.checking_chars >= answers.CHECKING_CHARS_MAX:
                state.changed.wait(timeout_s)

    def _step(self, engine: Engine) -> list[Finished]:
        state, began_at = self._state, self._state.now()
        self._calls.enter("step")
        try:
            finished = engine.step()
        finally:
            self._calls.leave()
        self._calls.is_warm = self._calls.is_warm or bool(finished)
        num_gpus = engine.info.num_gpus
        state.steps.add(began_at, state.now(), num_in_flight=len(state.in_flight), num_gpus=num_gpus)
        return finished

    def _fill(self, engine: Engine) -> None:
        state = self._state
        room = engine.info.max_in_flight - len(state.in_flight)
        if room <= 0 or state.is_stopping or not len(state.ready):
            return
        if state.checking_chars >= answers.CHECKING_CHARS_MAX or self._waits_to_fill(engine.info.num_slots):
            return
        with state.changed:
            items = state.ready.pop(room, len(state.in_flight))
        now, is_alone = state.now(), state.ready.is_alone_running
        ready: list[PendingRequest] = []
        late: list[PendingRequest] = []
        for item in items:
            if not item.shard.is_dropped:
                (ready if self._may_dispatch(item.shard, now) else late).append(item)
        if late:
            ready, late = ([], items) if is_alone else (ready, late)
            self._parked.append(_Parked(late, is_alone))
        # All count as in flight before the first is added, so that none is lost if the engine crashes on one of them.
        for item in ready:
            state.in_flight[item.key] = item
        for item in ready:
            self._add(engine, item, now)

    def _add(self, engine: Engine, item: PendingRequest, now: float) -> None:
        state = self._state
        item.shard.has_dispatched = True
        item.added_at = now
        item.gpu_s_before = state.steps.gpu_s_each
        if state.stats.first_dispatch_at is None:
            state.stats.first_dispatch_at = now
            log.info("engine.first_requests", after_ms=round((now - (state.stats.engine_ready_at or now)) * 1000, 1))
        self._calls.enter("add")
        try:
            engine.add(item.key, item.prepared)
        except InvalidRequest as error:
            answers.complete(state, Finished(item.key, Failure(type=error.type, message=str(error))))
        finally:
            self._calls.leave()

    def _may_dispatch(self, shard: ActiveShard, now: float) -> bool:
        """Not while the lease may be lost, and not before the record announces the dispatch if it must."""
        if lease.must_announce(shard.held.record):
            shard.wants_to_announce = True
            self._state.commit_due.set()
            return False
        return shard.held.may_dispatch(now, self._state.ledger.limits.lease_ttl_s)

    def _waits_to_fill(self, num_slots: int) -> bool:
        """Should an empty engine wait for full slots? A first step with a few long prompts would hold up all others."""
        state = self._state
        if state.in_flight or state.ready.has_ended or len(state.ready) >= num_slots or is_full(state):
            self._fills_since = None
            return False
        now = state.now()
        self._fills_since = now if self._fills_since is None else self._fills_since
        return now - self._fills_since < FILL_WAIT_S_MAX

    def _unpark(self) -> None:
        """Return what may be dispatched again to the ready queue; forget what was lost."""
        if not self._parked:
            return
        now = self._state.now()
        parked, self._parked = self._parked, []
        for group in parked:
            items = [item for item in group.items if not item.shard.is_dropped]
            free = {shard for shard in {item.shard for item in items} if self._may_dispatch(shard, now)}
            ready = [item for item in items if item.shard in free]
            late = [item for item in items if item.shard not in free]
            if group.is_alone and late:
                ready, late = [], items
            if ready:
                self._state.push(ready, is_alone=group.is_alone, is_next=True)
            if late:
                self._parked.append(_Parked(late, group.is_alone))

    def _abort_dropped(self, engine: Engine) -> None:
        state = self._state
        if not state.has_dropped:
            return
        state.has_dropped = False  # before the drop: another request may be dropped meanwhile
        keys = [key for key, item in state.in_flight.items() if item.shard.is_dropped]
        engine.abort(keys)
        for key in keys:
            del state.in_flight[key]
        with state.changed:
            state.ready.drop(lambda item: item.shard.is_dropped)
