"""Earlier runs in the same store that have results for a new one: those of `batchfile.map` with other rows, or the run
of an output that the user names.
"""

import os
from contextlib import suppress

from batchfile.engine.identity import EngineIdentity
from batchfile.errors import BatchDamaged, InvalidFile, OutputTaken, SettingsError
from batchfile.ledger import batches, keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.idempotency import IdempotencyRecord
from batchfile.ledger.records import BatchRecord
from batchfile.local import outputs, previous_batch
from batchfile.local.merged_answers import merged_answers
from batchfile.local.options import OUTPUT
from batchfile.local.previous_batch import why_refused
from batchfile.plan.reuse_sources import SOURCES_MAX, latest
from batchfile.store.open import local_path
from batchfile.types import TENANT


def earlier_runs(ledger: Ledger, engine: EngineIdentity | None, *, is_asked: bool) -> tuple[BatchRecord, ...]:
    """The newest ones that `engine` has answered, each ended. `is_asked`: also those of which nobody knows the engine.

    In a directory, one that was interrupted is ended, so that its results can be read; the call that made it takes them
    over in its turn. In a bucket, another machine may be at work on it. Raises: StoreUnavailable.
    """
    found: list[BatchRecord] = []
    for batch in latest(ledger, TENANT):
        if len(found) == SOURCES_MAX:
            break
        if batch.state not in {"open", "ended"}:
            continue
        with suppress(BatchDamaged):
            known = previous_batch.previous_of(ledger, batch)
            if known.num_succeeded and why_refused(known.fingerprints, engine, is_asked=is_asked) is None:
                ended = batch if batch.state == "ended" else _ended(ledger, batch)
                found += [] if ended is None or ended.results is None else [ended]
    return tuple(found)


def run_of(ledger: Ledger, output: str, engine: EngineIdentity | None) -> list[BatchRecord]:
    """The run of another output, also if nobody knows what has made it, after the answers that were merged into it.

    Raises: InvalidFile, BatchDamaged.
    """
    pointer = load(ledger, keys.idempotency_key("output", os.path.realpath(output)), IdempotencyRecord)
    batch = None if pointer is None else batches.read_batch(ledger, pointer.record.batch_id)
    if batch is None:
        raise InvalidFile(
            f"reuse_from: {output} is not the output of a run in {ledger.store.url}; without --store, runs share a "
            "store if their outputs are in one folder"
        )
    if batch.state != "ended" or batch.results is None:
        raise InvalidFile(f"reuse_from: the run of {output} has not ended; finish it first")
    why = why_refused(batch.fingerprints, engine, is_asked=True)
    if why is not None:
        raise InvalidFile(f"reuse_from: no answer of {output} can be reused: {why}")
    merged = merged_answers(ledger, batch, os.path.realpath(output), previous_batch.POOL).source
    return [batch] if merged is None else [merged, batch]


def _ended(ledger: Ledger, batch: BatchRecord) -> BatchRecord | None:
    """None: a process works on it, or may do so."""
    if local_path(ledger.store.url) is None:
        return None
    with suppress(OutputTaken, SettingsError), outputs.lock_output(batch.metadata.get(OUTPUT)):
        return previous_batch.end(ledger, batch)
    return None
