"""The batches that an output had before: what a new one may take over from them, and how they end and are removed.

The pointer of the output names the previous batch and the new one until that is committed, so that a process may die at
any point. The caller holds the lock of the output.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from batchfile.engine.identity import CONTEXT_LENGTH, EngineIdentity
from batchfile.errors import OutputTaken, RecordDamaged, StoreUnavailable
from batchfile.ledger import batches, damage, ending, keys, retention
from batchfile.ledger.assemble import fingerprints_of
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.cas import Lost, Stored, load, swap, update_batch
from batchfile.ledger.idempotency import IdempotencyRecord
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, ShardRecord
from batchfile.local.display import counted, from_here
from batchfile.local.merged_answers import NOT_MERGED, MergedAnswers, merged_answers
from batchfile.local.options import (
    ANSWERS_BY,
    EARLIER,
    ENGINE,
    INPUT_CHANGED,
    MERGED,
    MODEL,
    OF_EVERY_REQUEST,
    OUTPUT,
    TABLE,
    changes,
)
from batchfile.plan.reuse import by_url
from batchfile.plan.reuse_sources import UNKNOWN_NOW, UNKNOWN_THEN, Fingerprints, why_not
from batchfile.types import TENANT

POOL = "local"
CUT_OFF = "its run was interrupted, and another one replaced it"
DETAIL = "its input or its options have changed; another batch has taken over its results"
OF_ENDPOINT = "nobody knows whether the HTTP endpoint has answered with the model that would answer now"
_NONE_SAME = "no request is the same as one that has succeeded"
_BYTE_BY_BYTE = (
    "Requests are compared byte by byte: a file that was written anew with other spaces or key order counts as changed"
)
_MERGE = (
    "To keep them, finish the run with the length of before, run its errors file with the new one into another output, "
    "and join both with `batchfile merge`"
)
KEPT_SHARE = 0.1  # a batch with so many results that were not taken over is kept until it expires
_TRIES = 90  # to end a batch that another process may hold: one a second, for longer than a lease


@dataclass(frozen=True, slots=True)
class Previous:
    """What a new batch of an output replaces: `batch`, and one that was kept for results that `batch` has not.

    `num_succeeded`: results of `batch`; `fingerprints`: of the engines that made them. `merged`: answers at the output.
    """

    batch: BatchRecord
    earlier: BatchRecord | None
    num_succeeded: int
    fingerprints: Fingerprints
    merged: MergedAnswers = NOT_MERGED

    @property
    def all(self) -> tuple[BatchRecord, ...]:
        return (self.batch,) if self.earlier is None else (self.batch, self.earlier)

    @property
    def sources(self) -> tuple[BatchRecord, ...]:
        """Of results: of two for the same request, the first wins."""
        return self.all if self.merged.source is None else (self.merged.source, *self.all)


def names_of(ledger: Ledger, batch_id: str) -> tuple[str, ...]:
    """The id, and that of the batch which was kept for it."""
    with suppress(RecordDamaged):
        batch = batches.read_batch(ledger, batch_id)
        if batch is not None and EARLIER in batch.metadata:
            return batch_id, batch.metadata[EARLIER]
    return (batch_id,)


def previous_of(ledger: Ledger, batch: BatchRecord) -> Previous:
    """Changes nothing. Raises: StoreUnavailable, BatchDamaged."""
    name = batch.metadata.get(EARLIER)
    earlier = None if name is None else batches.read_batch(ledger, name)
    if batch.state == "ended":
        return Previous(batch, earlier, batch.counts.succeeded, batch.fingerprints)
    shards = (entry.key for entry in ledger.store.list(keys.shards_prefix(batch.batch_id)))
    found = in_order(ledger, lambda key: load(ledger, key, ShardRecord), shards)
    records = [one.record for one in found if one is not None]
    num = sum(record.counts.succeeded for record in records)
    return Previous(batch, earlier, num, fingerprints_of(batch, records))


def sources_of(
    previous: Previous, wanted: Mapping[str, str], engine: EngineIdentity | None, *, is_asked: bool, is_same: bool
) -> tuple[str, ...]:
    """The ids of the batches whose results may be taken over. `is_asked`: also if nobody knows what has made them.
    `is_same`: the run is only resumed.

    Raises: OutputTaken that says what changed, where there are results and none may be taken over.
    """
    why = None if is_same else why_refused(previous.fingerprints, engine, is_asked=is_asked)
    if why is not None and previous.num_succeeded:
        raise nothing_reused(previous, wanted, why)
    earlier, merged = previous.earlier, previous.merged.source
    found = () if why is not None else (previous.batch.batch_id,)
    if merged is not None:
        if why_refused(merged.fingerprints, engine, is_asked=is_asked) is not None:
            told = f"{counted(merged.counts.succeeded, 'merged answer')} that another model may have made"
            raise NothingReused(previous.batch.metadata[OUTPUT], told, can_ask=True)
        found = (merged.batch_id, *found)
    if earlier is None or why_refused(earlier.fingerprints, engine, is_asked=is_asked) is not None:
        return found
    return (*found, earlier.batch_id)


def why_refused(made: Fingerprints, engine: EngineIdentity | None, *, is_asked: bool) -> str | None:
    """Why results of engines with these fingerprints may not be taken over, as a clause; None: they may."""
    why = why_not(made, {POOL: None if engine is None else engine.fingerprint})
    return None if is_asked and why in {UNKNOWN_THEN, UNKNOWN_NOW} else why


class NothingReused(OutputTaken):
    """`answers`: the finished ones; `can_ask`: are they kept if that is asked for? `how_to_keep`: by commands."""

    def __init__(self, output: str, answers: str, *, can_ask: bool, how_to_keep: str = "") -> None:
        self._answers, self._can_ask = answers, can_ask
        super().__init__(self._advised(from_here(output), "choose another output", how_to_keep))

    def of_map(self) -> OutputTaken:
        """As `batchfile.map` says it, whose output is a folder of the cache."""
        return OutputTaken(self._advised("an earlier call for the same rows", "pass another folder as store"))

    def _advised(self, who: str, elsewhere: str, how_to_keep: str = "") -> str:
        first = f"{how_to_keep}. Or {elsewhere}, or" if how_to_keep else f"{elsewhere.capitalize()}, or"
        if self._can_ask:
            first = f"Add --reuse to keep the answers to equal requests, {elsewhere}, or"
        return f"{who} has {self._answers}. {first} add --restart to discard them"


def nothing_reused(previous: Previous, wanted: Mapping[str, str], why: str) -> NothingReused:
    """`why`: a clause about the results."""
    old = previous.batch.metadata
    differs = "; ".join(changes(old, wanted))
    can_ask = why in {UNKNOWN_THEN, UNKNOWN_NOW}
    why = OF_ENDPOINT if can_ask and wanted.get(ENGINE) == "http" else why
    of_engine = changes(old, {ANSWERS_BY: wanted.get(ANSWERS_BY, "")})
    is_longer = len(of_engine) == 1 and of_engine[0].startswith(f"{CONTEXT_LENGTH} ")
    answers = (
        f"{counted(previous.num_succeeded, 'finished answer')} of "
        f"{f'a run that differs: {differs}' if differs else 'an earlier run'}. None of them can be reused: {why}"
    )
    return NothingReused(old[OUTPUT], answers, can_ask=can_ask, how_to_keep=_MERGE if is_longer else "")


def with_merged(ledger: Ledger, previous: Previous, output: str) -> Previous:
    """With the answers that were merged into the output. Raises: OSError, StoreError."""
    return replace(previous, merged=merged_answers(ledger, previous.batch, output, POOL))


def metadata_of(previous: Previous, planned: Planned, wanted: Mapping[str, str]) -> dict[str, str]:
    """What the new batch remembers of those that it replaces.

    Raises: OutputTaken where it would discard results of which it has taken none.
    """
    if previous.num_succeeded and not planned.num_reused:
        why = planned.unusable.get(previous.batch.batch_id) or _none_equal(previous, planned, wanted)
        raise nothing_reused(previous, wanted, why)
    left = {one.batch_id: _num_left(one, planned) for one in previous.all if _is_worth_keeping(one, planned)}
    found = {EARLIER: max(left, key=lambda name: left[name])} if left else {}
    merged = previous.merged
    if merged.source is not None:
        is_whole = planned.reused_from.get(merged.source.batch_id, 0) == merged.source.counts.succeeded
        return found | ({MERGED: merged.sha256} if is_whole else {})
    return found | {name: text for name, text in previous.batch.metadata.items() if name == MERGED}


def _none_equal(previous: Previous, planned: Planned, wanted: Mapping[str, str]) -> str:
    old, none_same = previous.batch.metadata, _NONE_SAME
    if any(old.get(name, "") != wanted.get(name, "") for name in OF_EVERY_REQUEST):
        return f"{none_same}, because a changed default or stage makes every request a different one"
    if planned.num_by_url == planned.total:
        return by_url(planned.num_by_url)
    if planned.num_by_url:
        return f"{by_url(planned.num_by_url)}; {none_same.replace('no request', 'no other request')}"
    if TABLE in old or changes(old, wanted) != [INPUT_CHANGED]:
        return none_same
    return f"{none_same}. {_BYTE_BY_BYTE}"


def reuse_notes(planned: Planned, asked: str | None) -> Iterator[str]:
    """For the user, one sentence each. `asked`: the other output from which answers are wanted."""
    if planned.reuse_note:
        yield planned.reuse_note
    if planned.num_reused:
        yield f"{planned.num_reused:,} of {planned.total:,} reused"
    elif asked is not None and not planned.reuse_note:
        yield f"nothing was reused: {_NONE_SAME} in {asked}"


def notes(previous: Previous, planned: Planned, wanted: Mapping[str, str]) -> Iterator[str]:
    """For the user, one sentence each."""
    if previous.merged.note:
        yield previous.merged.note
    old = previous.batch.metadata
    differs = changes(old, {name: wanted[name] for name in (ENGINE, MODEL) if name in wanted})
    if planned.num_reused and differs and why_refused(previous.fingerprints, None, is_asked=False) == UNKNOWN_THEN:
        yield f"{'; '.join(differs)}: --reuse has kept the answers from before"
    num = _num_left(previous.batch, planned)
    if num:
        belong = "belongs to a request that is" if num == 1 else "belong to requests that are"
        kept = planned.metadata.get(EARLIER)
        if kept == previous.batch.batch_id:
            rest = "; it is kept in the store, and reused if its request comes back"
            rest = rest if num == 1 else "; they are kept in the store, and reused if their requests come back"
        elif previous.earlier is not None and kept == previous.earlier.batch_id:
            rest = f"; {counted(_num_left(previous.earlier, planned), 'answer')} of an earlier run stay in the store"
        else:
            rest = ""
        yield f"{counted(num, 'finished answer')} {belong} not in the input now{rest}"


def _is_worth_keeping(batch: BatchRecord, planned: Planned) -> bool:
    return 0 < _num_left(batch, planned) >= KEPT_SHARE * batch.counts.succeeded


def _num_left(batch: BatchRecord, planned: Planned) -> int:
    """How many results the new batch has no request for. Of the earlier batch perhaps too many, by those that failed:
    which of its requests succeeded is not read where the previous batch has the same.
    """
    num_reused = planned.reused_from.get(batch.batch_id, 0)
    num_by_url = min(planned.num_by_url, planned.num_unhashed.get(batch.batch_id, 0))
    num_foreign = batch.total - planned.num_equal.get(batch.batch_id, 0) - num_by_url
    return min(batch.counts.succeeded - num_reused, num_foreign)


def end(ledger: Ledger, batch: BatchRecord) -> BatchRecord:
    """End it with its finished results, so that these can be read. Raises: StoreUnavailable, BatchDamaged."""
    batches.end(ledger, batch.batch_id, "input_changed", DETAIL)
    runner = f"local-{ledger.new_id()[:12]}-opening"
    with ledger.store.hold_process_lock(runner):
        for _ in range(_TRIES):
            ended = ending.finish(ledger, batch.batch_id, runner=runner)
            if ended is not None and ended.results is not None:
                return ended
            ledger.clock.sleep(1.0)
    raise StoreUnavailable(f"{batch.batch_id} could not be ended: another process holds it; run the command again")


def repaired(ledger: Ledger, key: str, pointer: Stored[IdempotencyRecord]) -> Stored[IdempotencyRecord]:
    """Repair the pointer of an output after a process was killed while it replaced the batch: it names one batch again,
    the new one if that was committed.
    """
    record = pointer.record
    if record.digest:
        return pointer
    try:
        made = batches.read_batch(ledger, record.batch_id)
        old = batches.read_batch(ledger, record.replaces) if record.replaces else None
    except RecordDamaged:
        return pointer  # the next read reports it
    if made is not None:
        if old is not None and old.batch_id != made.metadata.get(EARLIER):
            throw_away(ledger, old.batch_id)
        wanted = replace(record, digest=made.input.sha256, replaces="")
    elif record.replaces:
        retention.fence(ledger, record.batch_id, CUT_OFF)
        wanted = IdempotencyRecord(batch_id=record.replaces, digest="" if old is None else old.input.sha256)
    else:
        return pointer
    written = swap(ledger, key, wanted, pointer)
    return pointer if isinstance(written, Lost) else written


def throw_away(ledger: Ledger, batch_id: str) -> None:
    """Remove a batch in any state; no process works on it."""
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        return None if record.state == "deleted" else replace(record, state="deleted", deleted_at=now)

    try:
        found = update_batch(ledger, keys.batch_key(batch_id), decide)
    except RecordDamaged:
        _remove_damaged(ledger, batch_id)
        return
    if found is None:
        retention.fence(ledger, batch_id, CUT_OFF)
        return
    record = found.record
    ledger.store.delete(keys.queue_key(POOL, record.priority, record.created_at, batch_id))
    retention.remove_objects(ledger, record)
    retention.remove_tombstone(ledger, record)


def _remove_damaged(ledger: Ledger, batch_id: str) -> None:
    """Remove a batch whose record cannot be read, by the keys of its index and queue entries."""
    for entry in list(ledger.store.list(keys.queue_prefix(POOL))):
        if keys.queue_batch_id(entry.key) == batch_id:
            ledger.store.delete(entry.key)
    for entry in list(ledger.store.list(keys.batch_prefix(batch_id))):
        ledger.store.delete(entry.key)
    place = damage.place_of(ledger, TENANT, batch_id)
    if place is not None:
        ledger.store.delete(place)
