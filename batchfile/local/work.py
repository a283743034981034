"""Runs the batches of local runs with one engine. Knows no file, no output and no terminal."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec

from batchfile.engine.base import Engine, EngineFactory, EngineInfo
from batchfile.engine.identity import EngineIdentity
from batchfile.errors import RecordDamaged
from batchfile.ledger import batches, ending, keys
from batchfile.ledger.assemble import fingerprints_of
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load, update_batch
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, ShardRecord
from batchfile.local.options import ANSWERS_BY, CHOSEN, COMMITS, ENGINE_VERSION, parts_of
from batchfile.local.past_runs import remember_speed
from batchfile.local.previous_batch import POOL, nothing_reused, previous_of
from batchfile.media.rules import MediaRules
from batchfile.plan.reuse_sources import CHANGED
from batchfile.runner.runner import Runner, RunnerOptions


def work(
    ledger: Ledger,
    batch_ids: Sequence[str],
    factory: EngineFactory,
    runner_id: str,
    on_runner: Callable[[Runner], None],
    on_ended: Callable[[BatchRecord], None],
    *,
    grace_s: float | None = None,
    media_rules: Callable[[BatchRecord], MediaRules] = lambda _: MediaRules(),
    num_runners: int = 1,
) -> None:
    """Run the rest of these batches with one engine, in their order, without draining it between two of them.

    `on_runner` gets the runner before it starts; `on_ended` each batch as it
    ends, in any thread. Those that were stopped before remain open. Raises: EngineDead, BatchDamaged, StoreError;
    OutputTaken where a batch has results that another model made.
    """
    left = list(batch_ids)
    startup_s = 0.0

    def build() -> Engine:
        nonlocal startup_s
        started_at = ledger.clock.monotonic()
        engine = factory()
        try:
            for batch_id in tuple(left):
                _check_engine(ledger, batch_id, engine.info.identity)
        except BaseException:
            engine.close()
            raise
        startup_s = ledger.clock.monotonic() - started_at
        for _ in in_order(ledger, lambda batch_id: _remember_engine(ledger, batch_id, engine.info), tuple(left)):
            pass
        return engine

    def measured(batch_id: str) -> BatchRecord | None:
        if runner.info is None:
            return None
        return remember_speed(ledger, batch_id, startup_s, runner.info.num_slots, runner.runner_stats)

    def end(ended: BatchRecord) -> None:
        left.remove(ended.batch_id)
        on_ended(measured(ended.batch_id) or ended)

    options = RunnerOptions(
        runner_id=runner_id,
        pool=POOL,
        only=tuple(left),
        num_runners=num_runners,
        grace_s=grace_s,
        media_rules=media_rules,
    )
    runner = Runner(ledger, build, options, on_ended=end)
    on_runner(runner)
    runner.run()
    for batch_id in left:
        measured(batch_id)


def unfinished(
    ledger: Ledger, found: Sequence[BatchRecord], runner_id: str, on_ended: Callable[[BatchRecord], None]
) -> list[str]:
    """The ids of the batches that need an engine. The others are ended, without one."""
    left: list[str] = []
    with ledger.store.hold_process_lock(f"{runner_id}-opening"):
        for batch in found:
            ended = ending.finish(ledger, batch.batch_id, runner=f"{runner_id}-opening")
            if ended is None:
                left.append(batch.batch_id)
            else:
                on_ended(ended)
    return left


def _check_engine(ledger: Ledger, batch_id: str, loaded: EngineIdentity | None) -> None:
    """Raises: OutputTaken where the batch has results, reused or its own, that are known to be of another model."""
    batch = None if loaded is None else batches.read_batch(ledger, batch_id)
    if batch is None or loaded is None:
        return

    def record_at(key: str) -> ShardRecord | None:
        with suppress(RecordDamaged):  # the runner reports it
            found = load(ledger, key, ShardRecord)
            return None if found is None else found.record
        return None

    shards = (entry.key for entry in ledger.store.list(keys.shards_prefix(batch_id, POOL)))
    records = [record for record in in_order(ledger, record_at, shards) if record is not None]
    known = {one for prints in fingerprints_of(batch, records).values() for one in prints}
    if known - {"", loaded.fingerprint}:
        raise nothing_reused(previous_of(ledger, batch), {ANSWERS_BY: parts_of(loaded)}, CHANGED)


def _remember_engine(ledger: Ledger, batch_id: str, info: EngineInfo) -> None:
    """Store the versions of engine and model with the batch, so that any process can write them to the receipt, and
    what decides the answers, so that a later run can say what has changed.
    """
    versions = {ENGINE_VERSION: info.version, COMMITS: msgspec.json.encode(info.commits, order="sorted").decode()}
    if info.arguments:
        versions[CHOSEN] = msgspec.json.encode(info.arguments, order="sorted").decode()
    if info.identity is not None:
        versions[ANSWERS_BY] = parts_of(info.identity)

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state != "open" or versions.items() <= record.metadata.items():
            return None
        return replace(record, metadata={**record.metadata, **versions})

    update_batch(ledger, keys.batch_key(batch_id), decide)
