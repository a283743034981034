"""Which earlier batches a new one may take results from: one that its user names, or those that the same model made."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice

from batchfile.errors import BatchDamaged, InvalidFile, InvalidRequest, NotFound, RecordDamaged
from batchfile.ledger import batches, keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.heartbeats import read_heartbeats
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, PlanRules
from batchfile.plan.options import AUTO, CreateOptions
from batchfile.plan.reuse import Reuse

SOURCES_MAX = 10
LOOKED_AT_MAX = 100  # of a tenant's latest batches

UNKNOWN_THEN = "it is unknown which model made them"
UNKNOWN_NOW = "it is unknown which model would run now"
CHANGED = "the model or its settings have changed since"

Fingerprints = Mapping[str, tuple[str, ...]]  # as in a batch: pool -> distinct ones, an empty one is unknown


def why_not(made: Fingerprints, now: Mapping[str, str | None]) -> str | None:
    """Why nobody can know that the same engine would give these results again; None: it is certain.

    `now`: pool -> the fingerprint of what would run there; None: unknown.
    """
    known = {one for prints in made.values() for one in prints}
    if not known or "" in known:
        return UNKNOWN_THEN
    if any(len(prints) > 1 for prints in made.values()):
        return "they were made by several models, or with several settings"
    if any(now.get(pool) is None for pool in made):
        return UNKNOWN_NOW
    if any((now[pool],) != prints for pool, prints in made.items()):
        return CHANGED
    return None


def reuse_for(ledger: Ledger, options: CreateOptions) -> Reuse | None:
    """What a create with these options may reuse.

    Raises: NotFound or InvalidFile, where it names a batch that cannot be used; StoreError.
    """
    if options.reuse is None:
        return None
    if options.reuse == AUTO:
        return automatic(ledger, options)
    return Reuse(sources=(named(ledger, options.tenant, options.reuse),), is_sampled_too=True)


def with_reuse(rules: PlanRules, reuse: Reuse | None) -> PlanRules:
    """For a batch that is planned later."""
    if reuse is None:
        return rules
    names = tuple(source.batch_id for source in reuse.sources)
    return replace(rules, reuse_from=names, is_sampled_reused=reuse.is_sampled_too, reuse_notes=reuse.notes)


def named(ledger: Ledger, tenant: str, batch_id: str) -> BatchRecord:
    """Raises: NotFound where the tenant has no such batch; InvalidFile where nothing can be taken from it."""
    shown = batch_id[:80]
    try:
        found = load(ledger, keys.batch_key(batch_id), BatchRecord)
    except RecordDamaged as error:  # whose it is cannot be known
        raise NotFound(f"reuse: the record of {shown!r} is damaged") from error
    except InvalidRequest:
        found = None
    if found is None or found.record.tenant != tenant:
        raise NotFound(f"reuse: there is no batch {shown!r}; `batchfile ls` lists them")
    batch = found.record
    if why := _unusable(ledger, batch):
        raise InvalidFile(f"reuse: nothing can be reused from {shown}: {why}")
    return batch


def _unusable(ledger: Ledger, batch: BatchRecord) -> str | None:
    if batch.state == "deleted":
        return "it was deleted, or its results have expired"
    if batch.state != "ended":
        return "it has not ended; wait until it ends, or cancel it first"
    if batch.results is None:
        return "it ended before it had results"
    try:
        hashes = batches.read_plan(ledger, batch).hashes
    except BatchDamaged:
        return "its plan is damaged"
    return None if hashes is not None else "it was planned by a version that kept no hashes of its requests"


@dataclass(slots=True)
class _Search:
    sources: list[BatchRecord] = field(default_factory=list)
    first_reason: str | None = None


def automatic(ledger: Ledger, options: CreateOptions) -> Reuse:
    """From the latest batches of the same tenant and stage that were made by what runs in their pools now.

    Only for requests that are answered the same each time. Raises: StoreError.
    """
    now = _live(ledger)
    search = _Search()
    for batch in latest(ledger, options.tenant):
        if batch.state != "ended" or batch.stage != options.stage or not batch.counts.succeeded:
            continue
        if options.pool and {*batch.fingerprints} != {options.pool}:
            continue
        why = why_not(batch.fingerprints, now)
        if why is None and len(search.sources) < SOURCES_MAX:
            search.sources.append(batch)
        elif why is not None:
            search.first_reason = search.first_reason or f"the results of {batch.batch_id} were not used: {why}"
    note = None if search.sources else search.first_reason or "there is no earlier batch of this kind with results"
    return Reuse(sources=tuple(search.sources), notes=() if note is None else (f"nothing was reused: {note}",))


def latest(ledger: Ledger, tenant: str) -> Iterator[BatchRecord]:
    """The latest batches of a tenant, newest first, without those that are damaged. Raises: StoreUnavailable."""
    entries = islice(ledger.store.list(keys.index_prefix(tenant)), LOOKED_AT_MAX)
    ids = [keys.index_batch_id(entry.key) for entry in entries]

    def read(batch_id: str) -> BatchRecord | None:
        with suppress(BatchDamaged):
            return batches.read_batch(ledger, batch_id)
        return None

    yield from filter(None, in_order(ledger, read, ids))


def _live(ledger: Ledger) -> dict[str, str | None]:
    """Pool -> the fingerprint of its live runners, if it is the same for all."""
    found: dict[str, set[str]] = {}
    for runner in read_heartbeats(ledger):
        if runner.state != "loading":
            found.setdefault(runner.pool, set()).add(runner.fingerprint)
    return {pool: next(iter(known)) or None if len(known) == 1 else None for pool, known in found.items()}
