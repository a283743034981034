"""Requests that stream in become a batch; those of an ended batch that got no answer become one once more."""

from collections.abc import Callable, Iterable
from contextlib import suppress

from batchfile.errors import InvalidFile, StoreError, StoreUnavailable
from batchfile.ledger import batches, idempotency, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Draft
from batchfile.ledger.idempotency import KeyedBatch
from batchfile.ledger.records import BatchRecord
from batchfile.plan.planner import plan_upload
from batchfile.plan.policy import REJECT, Policy

ANNOUNCED_SHARE = 0.1  # of `abandoned_s`: how often a create that lasts is announced again
RETRY_OF = "retry_of"  # in the metadata of a retry: the batch whose requests it repeats


def submit(
    ledger: Ledger,
    draft: Draft,
    chunks: Iterable[bytes],
    *,
    size: int,
    policy: Policy,
    is_shared: bool = False,
) -> BatchRecord:
    """Store, plan and commit JSONL of `size` bytes, about: see `plan_upload`. However long that takes.

    Nothing is left of what was refused or broken off. `is_shared`: other attempts may be making the same batch now;
    what one of them has committed stands, and once one was refused no other can commit it.
    Raises: InvalidFile, of it RequestRefused and TooLarge; BatchDamaged where it was given up, or refused to another
    attempt; StoreUnavailable; whatever `chunks` raises.
    """
    batches.announce(ledger, draft)
    try:
        planned = plan_upload(
            ledger,
            draft.batch_id,
            chunks,
            size=size,
            routing=draft.routing,
            stage=draft.stage,
            policy=policy,
            beat=_announcing(ledger, draft),
        )
    except (InvalidFile, OSError, KeyboardInterrupt) as error:
        if not is_shared:
            _remove(ledger, draft)
        elif isinstance(error, InvalidFile):
            if retention.fence(ledger, draft.batch_id, "another attempt of its create was refused"):
                batches.withdraw(ledger, draft)
            elif (standing := batches.read_batch(ledger, draft.batch_id)) is not None:
                return standing
        raise
    return batches.create(ledger, draft, planned)


def retry(ledger: Ledger, batch: BatchRecord, *, idempotency_key: str | None = None) -> BatchRecord:
    """A batch of the requests of `batch` that did not succeed, as it was asked for. The same key: the same batch.

    Raises: InvalidFile where there is nothing to repeat, or not yet; KeyReused; StoreUnavailable.
    """
    errors = batch.errors
    if batch.state != "ended":
        raise InvalidFile(f"{batch.batch_id} has not ended: wait for its end, or cancel it first")
    if not batch.routing.pools:  # one engine took everything, and no service has a pool for it
        raise InvalidFile(f"{batch.batch_id} was run on one machine: give its errors file to `batchfile run`")
    if errors is None:
        raise InvalidFile(f"{batch.batch_id} ended before its file was read; mend the file and submit it again")
    if not errors.num_lines:
        raise InvalidFile(f"{batch.batch_id} has nothing to repeat: every request succeeded")
    keyed = _get_or_create(ledger, batch, idempotency_key)
    standing = None if keyed.is_first else batches.read_batch(ledger, keyed.batch_id)
    if standing is not None:
        return standing
    draft = Draft(
        batch_id=keyed.batch_id,
        routing=batch.routing,
        defaults=batch.defaults,
        stage=batch.stage,
        priority=batch.priority,
        tenant=batch.tenant,
        metadata={**batch.metadata, RETRY_OF: batch.batch_id},
        created_at=keyed.created_at,
    )
    chunks = ledger.store.stream(errors.key)
    return submit(ledger, draft, chunks, size=errors.size, policy=REJECT, is_shared=keyed.is_shared)


def _get_or_create(ledger: Ledger, batch: BatchRecord, key: str | None) -> KeyedBatch:
    """Ids of Anthropic's form stay of that form: they tell in which API format a batch is answered."""
    kind = batch.batch_id.partition("_")[0]
    batch_id = f"msgbatch_{ledger.new_id()[:24]}" if kind == "msgbatch" else f"batch_{ledger.new_id()[:12]}"
    if key is None:
        return KeyedBatch(batch_id=batch_id, created_at=ledger.clock.now())
    digest = f"retry {batch.batch_id}"
    return idempotency.get_or_create(
        ledger, kind="key", tenant=batch.tenant, value=key, digest=digest, batch_id=batch_id
    )


def _announcing(ledger: Ledger, draft: Draft) -> Callable[[], None]:
    """To be called while the create goes on; announces it again when that is due."""
    announced_at = ledger.clock.monotonic()

    def beat() -> None:
        nonlocal announced_at
        now = ledger.clock.monotonic()
        if now - announced_at >= ledger.limits.abandoned_s * ANNOUNCED_SHARE:
            with suppress(StoreUnavailable):  # the next beat tries again
                batches.announce(ledger, draft)
                announced_at = now

    return beat


def _remove(ledger: Ledger, draft: Draft) -> None:
    """Best effort: a janitor sweeps what stays, as long as it is announced."""
    with suppress(StoreError):
        for entry in list(ledger.store.list(keys.batch_prefix(draft.batch_id))):
            ledger.store.delete(entry.key)
        batches.withdraw(ledger, draft)
