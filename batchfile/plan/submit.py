"""Creates a batch: which batch a repeated create means, and how requests become a committed batch."""

from collections.abc import Callable, Iterable
from contextlib import suppress

from batchfile import tracing
from batchfile.errors import InvalidFile, OutputTaken, StoreError, StoreUnavailable
from batchfile.ledger import batches, idempotency, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Draft, Planned, attributes_of
from batchfile.ledger.idempotency import KeyedBatch
from batchfile.ledger.records import BatchRecord
from batchfile.plan.options import CreateOptions
from batchfile.plan.planner import plan_upload
from batchfile.plan.policy import REJECT, Policy
from batchfile.plan.reuse import Reuse

KEY_CHARS_MAX = 255
ANNOUNCED_SHARE = 0.1  # of `abandoned_s`: how often a long create is announced again
RETRY_OF = "retry_of"  # in the metadata of a rerun: the batch whose requests it repeats


def create_once(
    ledger: Ledger, options: CreateOptions, digest: str, batch_id: str, make: Callable[[KeyedBatch], BatchRecord]
) -> BatchRecord:
    """The batch of an earlier attempt of this create, else the result of `make`. `digest`: of the request.

    Raises: InvalidFile, KeyReused; what `make` does.
    """
    keyed = _get_or_create(ledger, options, digest, batch_id)
    standing = None if keyed.is_first else batches.read_batch(ledger, keyed.batch_id)
    return make(keyed) if standing is None else standing


def made_before(ledger: Ledger, options: CreateOptions, digest: str) -> BatchRecord | None:
    """The batch of an earlier attempt, if there is one. Changes nothing."""
    tenant, batch_id = options.tenant, None
    if options.idempotency_key:
        batch_id = idempotency.known(ledger, kind="key", tenant=tenant, value=options.idempotency_key, digest=digest)
    elif options.retry_count:
        batch_id = idempotency.known(ledger, kind="body", tenant=tenant, value=digest, digest=digest)
    return None if batch_id is None else batches.read_batch(ledger, batch_id)


def check_key(key: str) -> None:
    """Raises: InvalidFile."""
    if len(key) > KEY_CHARS_MAX:
        raise InvalidFile(f"Idempotency-Key: is longer than {KEY_CHARS_MAX} characters; use, for example, a UUID")


def _get_or_create(ledger: Ledger, options: CreateOptions, digest: str, batch_id: str) -> KeyedBatch:
    tenant, key = options.tenant, options.idempotency_key
    if key:
        check_key(key)
        return idempotency.get_or_create(ledger, kind="key", tenant=tenant, value=key, digest=digest, batch_id=batch_id)
    if options.retry_count is None:
        return KeyedBatch(batch_id=batch_id, created_at=ledger.clock.now())
    is_retry, arrived_at = options.retry_count > 0, options.arrived_at
    return idempotency.get_or_create_retry(
        ledger, tenant=tenant, digest=digest, batch_id=batch_id, is_retry=is_retry, arrived_at=arrived_at
    )


def submit(
    ledger: Ledger,
    draft: Draft,
    chunks: Iterable[bytes],
    *,
    size: int,
    policy: Policy,
    is_shared: bool = False,
    reuse: Reuse | None = None,
) -> BatchRecord:
    """Store, plan and commit JSONL of about `size` bytes, however long that takes. As `create` with `plan_upload`.

    Raises: what these do; whatever `chunks` raises.
    """

    def plan(beat: Callable[[], None]) -> Planned:
        return plan_upload(
            ledger,
            draft.batch_id,
            chunks,
            size=size,
            routing=draft.routing,
            stage=draft.stage,
            policy=policy,
            beat=beat,
            defaults=draft.defaults,
            reuse=reuse,
        )

    return create(ledger, draft, plan, is_shared=is_shared)


def create(
    ledger: Ledger, draft: Draft, plan: Callable[[Callable[[], None]], Planned], *, is_shared: bool = False
) -> BatchRecord:
    """Plan and commit a batch. `plan` calls its argument from time to time.

    A draft without a creation time is not announced, because its caller finds an interrupted create again: a local run
    by its output. Nothing is left of a create that was rejected or interrupted. `is_shared`: other attempts may be
    creating the same batch now; a batch that one of them has committed stays, and once one was rejected no other can
    commit it.
    Raises: InvalidFile, its kinds RequestRefused and TooLarge; BatchDamaged if it was abandoned, or another attempt was
    rejected; StoreUnavailable; what `plan` raises.
    """
    with tracing.span("batchfile.create", attributes_of(draft)):
        return _create(ledger, draft, plan, is_shared=is_shared)


def _create(
    ledger: Ledger, draft: Draft, plan: Callable[[Callable[[], None]], Planned], *, is_shared: bool
) -> BatchRecord:
    beat = _announced(ledger, draft) if draft.created_at is not None else lambda: None
    try:
        with tracing.span("batchfile.plan", attributes_of(draft)):
            planned = plan(beat)
    except (InvalidFile, OutputTaken, OSError, KeyboardInterrupt) as error:
        if not is_shared:
            _remove(ledger, draft)
        elif isinstance(error, InvalidFile):
            if retention.fence(ledger, draft.batch_id, "another attempt of its create was rejected"):
                batches.withdraw(ledger, draft)
            elif (standing := batches.read_batch(ledger, draft.batch_id)) is not None:
                return standing
        raise
    return batches.create(ledger, draft, planned)


def rerun(ledger: Ledger, batch: BatchRecord, *, idempotency_key: str | None = None) -> BatchRecord:
    """A batch of the requests of `batch` that did not succeed, with its options. The same key gives the same batch.

    Raises: InvalidFile if there is nothing to rerun, or not yet; KeyReused; StoreUnavailable.
    """
    errors = batch.errors
    if batch.state != "ended":
        raise InvalidFile(f"{batch.batch_id} has not ended; wait until it ends, or cancel it first")
    if not batch.routing.pools:  # one engine ran everything, and no service has a pool for it
        raise InvalidFile(f"{batch.batch_id} was run on one machine; give its errors file to `batchfile run`")
    if errors is None:
        raise InvalidFile(f"{batch.batch_id} ended before its file was read; fix the file and submit it again")
    if not errors.num_lines:
        raise InvalidFile(f"{batch.batch_id} has nothing to rerun; every request succeeded")
    options = CreateOptions(
        tenant=batch.tenant,
        stage=batch.stage,
        priority=batch.priority,
        metadata={**batch.metadata, RETRY_OF: batch.batch_id},
        idempotency_key=idempotency_key,
    )
    # An id of Anthropic's form keeps that form, because the id says in which API format the batch is answered.
    is_messages = batch.batch_id.startswith("msgbatch_")
    batch_id = f"msgbatch_{ledger.new_id()[:24]}" if is_messages else f"batch_{ledger.new_id()[:12]}"

    def make(keyed: KeyedBatch) -> BatchRecord:
        draft = options.draft(keyed.batch_id, keyed.created_at, batch.routing, batch.defaults)
        chunks = ledger.store.stream(errors.key)
        return submit(ledger, draft, chunks, size=errors.size, policy=REJECT, is_shared=keyed.is_shared)

    return create_once(ledger, options, f"rerun {batch.batch_id}", batch_id, make)


def rerun_before(ledger: Ledger, batch: BatchRecord, idempotency_key: str | None) -> BatchRecord | None:
    """The batch of an earlier rerun with this key, if there is one."""
    options = CreateOptions(tenant=batch.tenant, idempotency_key=idempotency_key)
    return made_before(ledger, options, f"rerun {batch.batch_id}")


def _announced(ledger: Ledger, draft: Draft) -> Callable[[], None]:
    """Announce the create. The function returned is called while it lasts, and announces it again when that is due."""
    batches.announce(ledger, draft)
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
    """Best effort: the janitor removes what is left, as long as the create is announced."""
    with suppress(StoreError):
        for entry in list(ledger.store.list(keys.batch_prefix(draft.batch_id))):
            ledger.store.delete(entry.key)
        if draft.created_at is not None:
            batches.withdraw(ledger, draft)
