"""Runs the batches of local runs with one engine. Knows no file, no output and no terminal."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from batchfile.engine.base import Engine, EngineFactory, EngineInfo
from batchfile.errors import EngineDead
from batchfile.ledger import ending, keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import update_batch
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord
from batchfile.local.options import COMMITS, ENGINE_VERSION, fingerprint_of
from batchfile.local.past_runs import remember_speed
from batchfile.local.previous_batch import POOL
from batchfile.media.rules import MediaRules
from batchfile.runner.runner import Runner, RunnerOptions


def work(
    ledger: Ledger,
    found: Sequence[BatchRecord],
    factory: EngineFactory,
    runner_id: str,
    on_runner: Callable[[Runner], None],
    on_ended: Callable[[BatchRecord], None],
    *,
    grace_s: float | None = None,
    media_rules: Callable[[BatchRecord], MediaRules] = lambda _: MediaRules(),
) -> None:
    """Run the rest of the batches with one engine, in their order, without draining it between two of them.

    No engine is built if nothing is left. `on_runner` gets the runner before it starts; `on_ended` each batch as it
    ends, in any thread. Those that were stopped before remain open. Raises: EngineDead, BatchDamaged, StoreError.
    """
    left: list[str] = []
    with ledger.store.hold_process_lock(f"{runner_id}-opening"):
        for batch in found:
            ended = ending.finish(ledger, batch.batch_id, runner=f"{runner_id}-opening")
            if ended is None:
                left.append(batch.batch_id)
            else:
                on_ended(ended)
    if not left:
        return

    startup_s = 0.0

    def build() -> Engine:
        nonlocal startup_s
        started_at = ledger.clock.monotonic()
        engine = factory()
        for batch in found:
            _check_engine(batch, engine)
        startup_s = ledger.clock.monotonic() - started_at
        for _ in in_order(ledger, lambda batch_id: _remember_engine(ledger, batch_id, engine.info), tuple(left)):
            pass
        return engine

    def measured(batch_id: str) -> BatchRecord | None:
        if runner.info is None:
            return None
        return remember_speed(ledger, batch_id, startup_s, runner.info, runner.runner_stats)

    def end(ended: BatchRecord) -> None:
        left.remove(ended.batch_id)
        on_ended(measured(ended.batch_id) or ended)

    options = RunnerOptions(runner_id=runner_id, pool=POOL, only=tuple(left), grace_s=grace_s, media_rules=media_rules)
    runner = Runner(ledger, build, options, on_ended=end)
    on_runner(runner)
    runner.run()
    for batch_id in left:
        measured(batch_id)


def _check_engine(batch: BatchRecord, engine: Engine) -> None:
    """Raises: EngineDead where the batch has reused results of another model than the one that was loaded."""
    planned, loaded = fingerprint_of(batch.metadata), engine.info.fingerprint
    if batch.reused and None not in {planned, loaded} and planned != loaded:
        engine.close()
        raise EngineDead("the model changed between the reading of the input and its loading; run the command again")


def _remember_engine(ledger: Ledger, batch_id: str, info: EngineInfo) -> None:
    """Store the versions of engine and model with the batch, so that any process can write them to the receipt."""
    versions = {ENGINE_VERSION: info.version, COMMITS: msgspec.json.encode(info.commits, order="sorted").decode()}

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state != "open" or versions.items() <= record.metadata.items():
            return None
        return replace(record, metadata={**record.metadata, **versions})

    update_batch(ledger, keys.batch_key(batch_id), decide)
