"""Prepares requests for the engine: when they are prefetched, for another attempt, or once their schema is compiled.

Functions over the runner's state. `thread` is the calling thread's name in `SharedState.calls`.
"""

from dataclasses import replace

from batchfile.engine.base import Prepared, SchemaUnchecked
from batchfile.errors import InvalidRequest
from batchfile.lines.failures import is_rejected
from batchfile.lines.result import FinishedLine, encode_result
from batchfile.runner.output_schema import unguided
from batchfile.runner.queues import FairQueue
from batchfile.runner.state import ActiveShard, Job, SharedState
from batchfile.types import Failure


def prepare_next(state: SharedState, queue: FairQueue[Job], thread: str) -> bool:
    """Prepare one request of `state.attempts` or `state.unchecked`; False: none waits.

    Each queue has its own thread: the prefetcher may wait for the store, and a schema may take a minute.
    """
    job = queue.take() if state.may_prefetch else None
    if job is None:
        return False
    began_at = state.now()
    if not job.item.shard.is_dropped and make_ready(state, job, thread):
        state.push([job.item], is_alone=job.is_alone)
    queue.charge(job, state.now() - began_at)
    return True


def make_ready(state: SharedState, job: Job, thread: str) -> bool:
    """Prepare a request, unguided if the engine rejects the batch's schema.

    False: it now waits for its schema, or it was rejected, and is finished.
    """
    item, request, output_schema = job.item, job.request, job.item.shard.output_schema
    try:
        item.prepared = prepare(state, job, thread)
    except SchemaUnchecked:
        state.unchecked.add(job)
        return False
    except InvalidRequest as error:
        if output_schema is None or not output_schema.is_guided(request):
            fail(state, item.shard, item.line, item.custom_id, error)
            return False
        if not make_ready(state, replace(job, request=unguided(request)), thread):
            return False  # it is rejected for another reason
        output_schema.stop_guiding(str(error))
        return True
    if item.media_bytes:  # the engine may keep them in another form, or not at all
        item.size += item.prepared.media_bytes - item.media_bytes
        item.media_bytes = item.prepared.media_bytes
    if item.request is not None:  # its answer is checked: the next attempt starts from this one
        item.request = request
    return True


def prepare(state: SharedState, job: Job, thread: str) -> Prepared:
    """Raises: InvalidRequest; SchemaUnchecked, on a thread that must not wait for a schema."""
    assert state.engine is not None
    calls = state.calls[thread]
    calls.enter("prepare", job.item)
    try:
        return state.engine.prepare(job.request)
    except SchemaUnchecked as unchecked:
        if thread not in {"compiler", "loop"}:
            raise
        finish = unchecked.finish
    finally:
        calls.leave()
    return finish(job.batch_id)  # it has its own bounds


def count_failure(state: SharedState, failure: Failure) -> None:
    with state.changed:
        if is_rejected(failure.type):
            state.stats.rejected += 1
        else:
            state.stats.failed += 1


def fail(
    state: SharedState, shard: ActiveShard, line: int, custom_id: str | None, error: InvalidRequest | Failure
) -> None:
    """Finish a line as failed that the engine never gets."""
    failure = error if isinstance(error, Failure) else Failure(type=error.type, message=str(error))
    count_failure(state, failure)
    state.finish(shard, FinishedLine(line, failure.status, encode_result(custom_id, failure, "")))
