"""The loop: keep the engine full, step it, hand over what finished, and find the request that kills it.

One thread turns it, and nothing here waits for the store: the prefetcher fills the ready queue before, the checkpointer
commits what is settled behind.
"""

import threading
from collections.abc import Callable
from functools import partial
from itertools import chain

import structlog

from batchfile.clock import Clock
from batchfile.engine.base import Engine, EngineInfo, Finished, Prepared, prepare_now
from batchfile.errors import InvalidRequest
from batchfile.ledger import lease
from batchfile.lines.result import REFUSALS, FinishedLine, encode_result, refusal_failure
from batchfile.runner import bisect
from batchfile.runner.active import ActiveShard, PendingRequest
from batchfile.runner.ready_queue import ReadyQueue
from batchfile.runner.schemas import output_schema
from batchfile.runner.schemas.check_queue import Answer, Checked, Checks
from batchfile.runner.stats import RunnerStats
from batchfile.runner.watchdog import Calls
from batchfile.types import Completion, Failure, Outcome, Request, Usage

log = structlog.get_logger()

FILL_WAIT_S_MAX = 0.25  # how long an empty engine waits for its slots to fill

_ENGINE_CRASH = Failure(
    type="engine_crash",
    message="This request ended the engine each time it ran, the last time alone; it was not tried again.",
)


class Loop:
    """Shares the ready queue and its condition `changed` with the prefetcher, `dropped` (shards that were lost) with
    the checkpointer.

    `lease_ttl_s` in seconds. `is_full`: nothing more comes into the ready queue for now. `on_settled`: a shard has
    something for the checkpointer. `on_served`: an engine has answered. `prepare_again`: another attempt at an item is
    to be prepared and put into the ready queue by another thread.
    """

    def __init__(
        self,
        clock: Clock,
        lease_ttl_s: float,
        ready_queue: ReadyQueue,
        changed: threading.Condition,
        dropped: list[ActiveShard],
        runner_stats: RunnerStats,
        *,
        is_full: Callable[[], bool],
        on_settled: Callable[[], None],
        on_served: Callable[[], None],
        prepare_again: Callable[[PendingRequest, Request], None],
    ) -> None:
        self.in_flight: dict[int, PendingRequest] = {}
        self.info: EngineInfo | None = None  # of the first engine that was built, then of each next one
        self.is_stopped = False  # nothing more is started
        self.calls = Calls()
        self.checks = Checks(self._wake)
        self._clock = clock
        self._lease_ttl_s = lease_ttl_s
        self._ready_queue = ready_queue
        self._changed = changed
        self._dropped = dropped
        self._runner_stats = runner_stats
        self._is_full = is_full
        self._on_settled = on_settled
        self._on_served = on_served
        self._prepare_again = prepare_again
        self._prepare: Callable[[Request, str], Prepared]
        self._busy_until: float | None = None  # up to when `runner_stats.busy_s` counts; None: nothing was in flight
        self._gpu_s_each = 0.0  # seconds of GPUs, shared by those in flight, one share after the other
        self._fills_since: float | None = None
        # Whose lease may be lost, or must say first that they go: they hold up no other.
        self._parked: list[PendingRequest] = []
        self._parked_alone: list[list[PendingRequest]] = []

    def use(self, engine: Engine) -> None:
        """From now on this one."""
        self.info, self._prepare = engine.info, partial(prepare_now, engine)
        self.calls.is_warm = False

    def turn(self, engine: Engine) -> bool:
        """Once around. False: idle. Raises: EngineDead, after which `requeue_in_flight` is due."""
        self._abort_dropped(engine)
        self._take_checked()
        self._unpark()
        self._fill(engine)
        if not self.in_flight:
            self._busy_until = None
            return False
        began_at = self._clock.monotonic()
        self.calls.enter("step")
        try:
            finished_now = engine.step()
        finally:
            self.calls.leave()
        self.calls.is_warm = self.calls.is_warm or bool(finished_now)
        now = self._clock.monotonic()
        self._runner_stats.busy_s += now - (began_at if self._busy_until is None else self._busy_until)
        self._busy_until = now
        self._gpu_s_each += (now - began_at) * engine.info.num_gpus / len(self.in_flight)
        for finished in finished_now:
            item = self.in_flight.get(finished.key)
            if item is not None and isinstance(finished.outcome, Completion):
                self._runner_stats.request_s.add(now - item.added_at)
            self._settle(finished)
        return True

    def requeue_in_flight(self, *, has_successor: bool) -> None:
        """The engine died: each request goes where `bisect.judge` says, or nowhere if no other engine follows."""
        in_flight = list(self.in_flight.values())
        self.in_flight.clear()
        self._busy_until = None
        if not has_successor:
            return
        verdicts = bisect.judge(in_flight, was_alone=self._ready_queue.is_alone_running)
        for item in verdicts.poison:
            self.in_flight[item.key] = item
            self._settle(Finished(item.key, _ENGINE_CRASH))
        with self._changed:
            self._ready_queue.push(verdicts.again)
            for group in reversed(verdicts.alone):
                self._ready_queue.push_alone(group, is_next=True)

    def wait(self, timeout_s: float) -> None:
        """After an idle turn, until there may be something to do; at most `timeout_s`."""
        with self._changed:
            is_held = self._fills_since is not None or self.num_parked or self.checks.is_full or self.is_stopped
            if not len(self._ready_queue) or is_held:
                self._changed.wait(timeout_s)

    def _abort_dropped(self, engine: Engine) -> None:
        if not self._dropped:
            return
        lost = [self._dropped.pop() for _ in range(len(self._dropped))]
        keys = [key for key, item in self.in_flight.items() if item.shard in lost]
        engine.abort(keys)
        for key in keys:
            del self.in_flight[key]
        with self._changed:
            self._ready_queue.drop(lambda item: item.shard.is_dropped)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @property
    def num_parked(self) -> int:
        return len(self._parked) + sum(map(len, self._parked_alone))

    def _unpark(self) -> None:
        """What may be dispatched again goes back into the ready queue; what was lost is forgotten."""
        if not self._parked and not self._parked_alone:
            return
        now = self._clock.monotonic()
        self._parked = [item for item in self._parked if not item.shard.is_dropped]
        groups = ([item for item in group if not item.shard.is_dropped] for group in self._parked_alone)
        self._parked_alone = [group for group in groups if group]
        works = {item.shard for item in (*self._parked, *chain.from_iterable(self._parked_alone))}
        free = {work for work in works if self._may_dispatch(work, now)}
        if not free:
            return
        ready = [item for item in self._parked if item.shard in free]
        ready_alone = [group for group in self._parked_alone if all(item.shard in free for item in group)]
        self._parked = [item for item in self._parked if item.shard not in free]
        self._parked_alone = [group for group in self._parked_alone if group not in ready_alone]
        with self._changed:
            self._ready_queue.push(ready)
            for group in ready_alone:
                self._ready_queue.push_alone(group, is_next=True)

    def _fill(self, engine: Engine) -> None:
        room = engine.info.max_in_flight - len(self.in_flight)
        if room <= 0 or self.is_stopped or not len(self._ready_queue) or self.checks.is_full:
            return
        if self._waits_to_fill(engine.info.num_slots):
            return
        with self._changed:
            items = self._ready_queue.pop(room, len(self.in_flight))
        now = self._clock.monotonic()
        if self._ready_queue.is_alone_running and not all(self._may_dispatch(item.shard, now) for item in items):
            self._parked_alone.append(items)
            return
        for item in items:
            if item.shard.is_dropped:
                continue
            if self._may_dispatch(item.shard, now):
                self.in_flight[item.key] = item
            else:
                self._parked.append(item)
        # All of them count as in flight before the first is added: an engine that dies of one loses none.
        for item in items:
            if item.key in self.in_flight:
                self._add(engine, item, now)

    def _add(self, engine: Engine, item: PendingRequest, now: float) -> None:
        item.shard.has_dispatched = True
        item.added_at = now
        item.gpu_s_before = self._gpu_s_each
        if self._runner_stats.first_dispatch_at is None:
            self._runner_stats.first_dispatch_at = now
            log.info("engine.fed", after_ms=round((now - (self._runner_stats.engine_ready_at or now)) * 1000, 1))
        self.calls.enter("add")
        try:
            engine.add(item.key, item.prepared)
        except InvalidRequest as error:
            self._settle(Finished(item.key, Failure(type=error.type, message=str(error))))
        finally:
            self.calls.leave()

    def _may_dispatch(self, work: ActiveShard, now: float) -> bool:
        """Not while the lease may be lost, and not before the record says so where it must."""
        if lease.must_announce(work.held.record):
            work.wants_to_announce = True
            self._on_settled()
            return False
        return work.held.may_dispatch(now, self._lease_ttl_s)

    def _waits_to_fill(self, num_slots: int) -> bool:
        """An empty engine starts with full slots: a first step of a few long prompts would hold up all others."""
        if self.in_flight or self._ready_queue.has_ended or len(self._ready_queue) >= num_slots or self._is_full():
            self._fills_since = None
            return False
        now = self._clock.monotonic()
        self._fills_since = now if self._fills_since is None else self._fills_since
        return now - self._fills_since < FILL_WAIT_S_MAX

    def _settle(self, finished: Finished) -> None:
        item = self.in_flight.pop(finished.key, None)
        if item is None or item.shard.is_dropped:
            return
        gpu_s = self._gpu_s_each - item.gpu_s_before
        outcome = self._answered(finished.outcome) if item.shard.needs_answer else finished.outcome
        if item.request is None:
            self._finish(item, outcome, gpu_s)
        elif isinstance(outcome, Completion):
            self._judge(item, item.request, outcome, gpu_s)
        else:
            self._try_unguided(item, item.request, outcome, gpu_s)

    def _finish(self, item: PendingRequest, outcome: Outcome, gpu_s: float) -> None:
        result = encode_result(item.custom_id, outcome, self.info.model if self.info else "")
        self._count(outcome)
        usage = outcome.usage if isinstance(outcome, Completion) else Usage()
        status = "succeeded" if isinstance(outcome, Completion) else outcome.status
        if item.shard.settle(FinishedLine(item.line, status, result, usage, gpu_s)):
            self._on_settled()

    def _try_unguided(self, item: PendingRequest, request: Request, failure: Failure, gpu_s: float) -> None:
        """Once more where the engine may refuse the guide of the request's batch."""
        checks = item.shard.output_schema
        if checks is None or failure.type != "invalid_request_error" or not checks.is_guided(request):
            self._finish(item, failure, gpu_s)
        else:
            self._again(item, output_schema.unguided(request), gpu_s, is_alone=self._ready_queue.is_alone_running)

    def _answered(self, outcome: Outcome) -> Outcome:
        """A refusal as the failure that it is where an answer is needed."""
        if isinstance(outcome, Failure):
            return outcome
        for choice in outcome.choices:
            if choice.stop_reason in REFUSALS:
                self._count_tokens(outcome.usage)
                return refusal_failure(choice.stop_reason, choice.text)
        return outcome

    def _judge(self, item: PendingRequest, request: Request, completion: Completion, gpu_s: float) -> None:
        """What fits is final; what does not goes again. A check that may take long, and its words, come later."""
        checks = item.shard.output_schema
        if checks is not None:
            checks.answered(request)
        wanted = output_schema.demands(request, completion, item.schema, checks)
        answer = Answer(
            item=item,
            request=request,
            completion=completion,
            demands=wanted,
            gpu_s=gpu_s,
            was_alone=self._ready_queue.is_alone_running,
        )
        if not output_schema.are_here(wanted):
            self.checks.put(answer)
            return
        schema_mismatch = output_schema.first_mismatch(wanted)
        if schema_mismatch is None:
            self._finish(item, completion, gpu_s)
        elif schema_mismatch[1] == "mismatch" and item.attempt < output_schema.ATTEMPTS_MAX:
            self._next_attempt(answer)
        else:
            self.checks.put(answer)

    def _take_checked(self) -> None:
        for checked in self.checks.take():
            if not checked.answer.item.shard.is_dropped:
                self._conclude(checked)

    def _conclude(self, checked: Checked) -> None:
        answer, schema_mismatch = checked
        item, completion = answer.item, answer.completion
        if schema_mismatch is None:
            self._finish(item, completion, answer.gpu_s)
            return
        demand, verdict = schema_mismatch
        if verdict.kind == "mismatch" and item.attempt < output_schema.ATTEMPTS_MAX:
            self._next_attempt(answer)
            return
        if verdict.kind == "unusable" and not demand.is_own and item.shard.output_schema is not None:
            item.shard.output_schema.unusable(verdict.why)
        self._count_tokens(completion.usage)
        self._finish(item, output_schema.failure_of(demand, verdict, completion), answer.gpu_s)

    def _next_attempt(self, answer: Answer) -> None:
        self._count_tokens(answer.completion.usage)
        answer.item.attempt += 1
        self._again(answer.item, output_schema.next_try(answer.request), answer.gpu_s, is_alone=answer.was_alone)

    def _again(self, item: PendingRequest, request: Request, gpu_s: float, *, is_alone: bool) -> None:
        """Back into the ready queue, among the others; one that ran alone runs alone again.

        The prefetcher prepares what differs: a long prompt takes long, and the engine would wait. Only where it ran
        alone this thread does it, since nothing else may run before it.
        """
        if item.request is not request:
            if not is_alone:
                self._prepare_again(item, request)
                return
            self.calls.enter("prepare", item)
            try:
                batch_id = item.shard.held.batch.batch_id
                item.request, item.prepared = request, self._prepare(request, batch_id)
            except InvalidRequest as error:
                self._finish(item, Failure(type=error.type, message=str(error)), gpu_s)
                return
            finally:
                self.calls.leave()
        with self._changed:
            if is_alone:
                self._ready_queue.push_alone([item], is_next=True)
            else:
                self._ready_queue.push([item])

    def _count(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self._runner_stats.failed += 1
            return
        self._on_served()
        self._runner_stats.succeeded += 1
        self._count_tokens(outcome.usage)

    def _count_tokens(self, usage: Usage) -> None:
        """What was spent, also on answers that did not fit. A result's usage is that of its last attempt."""
        self._runner_stats.input_tokens += usage.input_tokens
        self._runner_stats.output_tokens += usage.output_tokens
        self._runner_stats.cached_tokens += usage.cached_tokens
        self._runner_stats.usage_unknown += usage.unknown
