"""The span of a shard in the trace of its batch: what this runner did under its lease."""

from batchfile import tracing
from batchfile.ledger.batches import attributes_of
from batchfile.runner.state import ActiveShard, SharedState

OPERATIONS = {"embed": "embeddings", "classify": "classification"}  # of GenAI's conventions; else `chat`


def trace_shard(state: SharedState, shard: ActiveShard, problem: str = "") -> None:
    """Call it when the shard is done, released or lost. The names are those of GenAI's semantic conventions."""
    batch, record, before, info = shard.held.batch, shard.held.record, shard.claimed, state.info
    if not batch.traceparent:
        return
    usage, counts = record.usage - before.usage, record.counts - before.counts
    attributes: dict[str, str | int | float] = {
        **attributes_of(batch),
        "batchfile.pool": record.pool,
        "batchfile.shard": shard.held.name,
        "batchfile.epoch": record.epoch,
        "batchfile.runner_id": state.options.runner_id,
        "batchfile.requests.succeeded": counts.succeeded,
        "batchfile.requests.failed": counts.failed,
        "batchfile.requests.rejected": counts.rejected,
        "gen_ai.operation.name": OPERATIONS.get(batch.routing.tasks.get(record.pool, ""), "chat"),
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    if info is not None:
        attributes |= {"gen_ai.provider.name": info.name, "gen_ai.request.model": info.model}
    tracing.record(
        "batchfile.shard",
        attributes,
        of=batch.traceparent,
        started_at=shard.claimed_at,
        ended_at=state.ledger.clock.now(),
        problem=problem,
    )
