"""Decides what becomes of a request that has left the engine: a result, a failure, or another attempt.

Functions over the runner's state, for the loop's thread; only `check_next` is for another thread. An answer that may
take long to check is checked there, in a separate process, so that the engine never waits for a check.
"""

from functools import partial

from batchfile.engine.base import Finished
from batchfile.errors import InvalidRequest
from batchfile.lines.result import REFUSALS, FinishedLine, encode_result, refusal_failure
from batchfile.runner import output_schema, preparer
from batchfile.runner.state import Job, PendingRequest, SharedState, UncheckedAnswer
from batchfile.schemas.check import CheckProcess
from batchfile.types import Completion, Failure, Outcome, Request, Usage

CHECKING_CHARS_MAX = 64 * 1024 * 1024  # of answers that wait to be checked; at this size the engine gets nothing new


def complete(state: SharedState, finished: Finished) -> None:
    item, outcome = state.in_flight.pop(finished.key, None), finished.outcome
    if item is None:
        return
    took_s = (state.steps.ended_at or item.added_at) - item.added_at
    item.engine_s += took_s
    if isinstance(outcome, Completion):
        state.stats.request_s.add(took_s)
    if item.shard.is_dropped:
        return
    gpu_s = state.steps.gpu_s_each - item.gpu_s_before
    if item.shard.needs_answer:
        outcome = _answered(state, outcome)
    if item.request is None:
        _finish(state, item, outcome, gpu_s)
    elif isinstance(outcome, Completion):
        _judge(state, item, item.request, outcome, gpu_s)
    else:
        _try_unguided(state, item, item.request, outcome, gpu_s)


def take_checked(state: SharedState) -> None:
    """Handle the answers that have been checked."""
    if not state.checked:
        return
    with state.changed:
        answers, state.checked = state.checked, []
        state.num_checking -= len(answers)
        state.checking_chars -= sum(answer.size for answer in answers)
    for answer in answers:
        if not answer.item.shard.is_dropped:
            _conclude(state, answer)


def check_next(state: SharedState, process: CheckProcess) -> bool:
    """Check one answer; False: none waits. Runs on its own thread."""
    answer = state.to_check.take()
    if answer is None:
        return False
    began_at = state.now()
    if not answer.item.shard.is_dropped:
        check = partial(process.check, owner=answer.batch_id)
        answer.schema_mismatch = output_schema.first_mismatch(answer.demands, check)
    state.to_check.charge(answer, state.now() - began_at)
    with state.changed:
        state.checked.append(answer)
        state.changed.notify_all()
    return True


def _finish(state: SharedState, item: PendingRequest, outcome: Outcome, gpu_s: float) -> None:
    model = item.prepared.model or (state.info.model if state.info else "")
    result = encode_result(item.custom_id, outcome, model, media=item.media)
    if isinstance(outcome, Completion):
        state.num_builds = 0  # the engine works: earlier failed builds no longer count
        state.stats.succeeded += 1
        _count_tokens(state, outcome.usage)
        line = FinishedLine(item.line, "succeeded", result, outcome.usage, gpu_s, item.engine_s)
    else:
        preparer.count_failure(state, outcome)
        line = FinishedLine(item.line, outcome.status, result, Usage(), gpu_s, item.engine_s)
    state.finish(item.shard, line)


def _try_unguided(state: SharedState, item: PendingRequest, request: Request, failure: Failure, gpu_s: float) -> None:
    """Run it again unguided, because the engine may reject the schema of the request's batch."""
    checks = item.shard.output_schema
    if checks is None or failure.type != "invalid_request_error" or not checks.is_guided(request):
        _finish(state, item, failure, gpu_s)
    else:
        _again(state, item, output_schema.unguided(request), gpu_s, is_alone=state.ready.is_alone_running)


def _answered(state: SharedState, outcome: Outcome) -> Outcome:
    """Turn a refusal into a failure where an answer is needed."""
    if isinstance(outcome, Failure):
        return outcome
    for choice in outcome.choices:
        if choice.stop_reason in REFUSALS:
            _count_tokens(state, outcome.usage)
            return refusal_failure(choice.stop_reason, choice.text)
    return outcome


def _judge(state: SharedState, item: PendingRequest, request: Request, completion: Completion, gpu_s: float) -> None:
    """An answer that fits is final; another is attempted again. A slow check, and its message, come later."""
    checks = item.shard.output_schema
    if checks is not None:
        checks.answered(request)
    answer = UncheckedAnswer(
        item=item,
        request=request,
        completion=completion,
        demands=output_schema.demands(request, completion, item.schema, checks),
        gpu_s=gpu_s,
        was_alone=state.ready.is_alone_running,
    )
    if output_schema.are_here(answer.demands):
        answer.schema_mismatch = output_schema.first_mismatch(answer.demands, output_schema.judged_here)
        if answer.schema_mismatch is None or _is_tried_again(answer):
            _conclude(state, answer)
            return
    with state.changed:
        state.num_checking += 1
        state.checking_chars += answer.size
    state.to_check.add(answer)


def _conclude(state: SharedState, answer: UncheckedAnswer) -> None:
    item, completion = answer.item, answer.completion
    if answer.schema_mismatch is None:
        _finish(state, item, completion, answer.gpu_s)
        return
    _count_tokens(state, completion.usage)
    if _is_tried_again(answer):
        item.attempt += 1
        _again(state, item, output_schema.next_try(answer.request), answer.gpu_s, is_alone=answer.was_alone)
        return
    demand, verdict = answer.schema_mismatch
    if verdict.kind == "unusable" and not demand.is_own and item.shard.output_schema is not None:
        item.shard.output_schema.unusable(verdict.why)
    _finish(state, item, output_schema.failure_of(demand, verdict, completion), answer.gpu_s)


def _is_tried_again(answer: UncheckedAnswer) -> bool:
    is_mismatch = answer.schema_mismatch is not None and answer.schema_mismatch[1].kind == "mismatch"
    return is_mismatch and answer.item.attempt < output_schema.ATTEMPTS_MAX


def _again(state: SharedState, item: PendingRequest, request: Request, gpu_s: float, *, is_alone: bool) -> None:
    """Put it back into the ready queue with the others; a request that ran alone runs alone again.

    The preparer prepares the difference, because the engine would wait for a long prompt. Only a request that ran alone
    is prepared on this thread, since nothing else may run before it.
    """
    if item.request is not request:
        job = Job(item, request)
        if not is_alone:
            state.attempts.add(job)
            return
        try:
            item.request, item.prepared = request, preparer.prepare(state, job, "loop")
        except InvalidRequest as error:
            _finish(state, item, Failure(type=error.type, message=str(error)), gpu_s)
            return
    state.push([item], is_alone=is_alone, is_next=True)


def _count_tokens(state: SharedState, usage: Usage) -> None:
    """Counts all tokens spent, also on answers that did not fit. A result's usage is that of its last attempt."""
    stats = state.stats
    stats.input_tokens += usage.input_tokens
    stats.output_tokens += usage.output_tokens
    stats.cached_tokens += usage.cached_tokens
    stats.usage_unknown += usage.unknown
