"""A batch that exists before it is planned: made of a stored file at once, planned by whoever comes first.

It opens, or it fails with what is wrong in the file; one conditional write decides, however many try.
"""

from dataclasses import replace

import structlog

from batchfile import layout
from batchfile.errors import (
    BatchDamaged,
    BatchfileError,
    InvalidFile,
    LeaseLost,
    ObjectChanged,
    ObjectMissing,
    TooLarge,
)
from batchfile.ledger import batches
from batchfile.ledger.base import Ledger, Limits
from batchfile.ledger.batches import Draft
from batchfile.ledger.cas import Lost, swap, update_batch
from batchfile.ledger.line_problems import LineProblems
from batchfile.ledger.planner import Planned, plan_input
from batchfile.ledger.turn import Turn
from batchfile.records import BatchRecord, FileInput, FileRecord, InputRef, LineError

log = structlog.get_logger()


def create(ledger: Ledger, draft: Draft, file: FileRecord, wanted: FileInput) -> BatchRecord:
    """Make a batch of a stored file exist. The same draft again finds its own batch.

    Raises: InvalidFile where the bytes are gone; BatchDamaged where another batch has this id; StoreUnavailable.
    """
    entry = ledger.store.head(file.key)
    if entry is None:
        raise InvalidFile(f"the bytes of {file.file_id} are gone; upload the file again")
    assert draft.created_at is not None, "what is announced has a time"
    record = BatchRecord(
        batch_id=draft.batch_id,
        created_at=draft.created_at,
        expires_at=draft.created_at + ledger.limits.completion_window_s,
        input=InputRef(key=file.key, etag=entry.etag, size=file.size, sha256=file.sha256, dialect="openai"),
        plan_key="",
        total=0,
        routing=draft.routing,
        defaults=draft.defaults,
        state="planning",
        stage=draft.stage,
        priority=draft.priority,
        tenant=draft.tenant,
        metadata=draft.metadata,
        file=wanted,
        seq=1,
        write_id=ledger.new_id(),
    )
    batches.announce(ledger, draft)
    written = swap(ledger, layout.batch_key(draft.batch_id), record, None)
    if not isinstance(written, Lost):
        log.info("batch.created", batch_id=draft.batch_id, file_id=file.file_id)
        return written.record
    found = None if written.found is None else written.found.record
    if found is None or (found.tenant, found.created_at, found.input.key) != (
        draft.tenant,
        record.created_at,
        file.key,
    ):
        raise BatchDamaged(f"another batch {draft.batch_id} exists already, or did; send this one again")
    return found


def plan(ledger: Ledger, batch_id: str, *, runner: str) -> BatchRecord | None:
    """Open a batch that is planning, or let it fail or expire. The record as it stands; None: someone else is at it.

    Raises: StoreUnavailable, BatchDamaged.
    """
    batch = batches.read_batch(ledger, batch_id)
    if batch is None or batch.state != "planning":
        return batch
    if ledger.clock.now() >= batch.expires_at:
        batches.end(ledger, batch_id, "expired")
        return batches.finish(ledger, batch_id, runner=runner)
    turn = Turn.take(ledger, layout.planning_key(batch_id), layout.PLANNING_POOL, runner)
    if turn is None:
        return None
    assert batch.file is not None, "only batches of files are made before they are planned"
    problems = LineProblems(batch.file.endpoint)
    try:
        planned = plan_input(
            ledger,
            batch_id,
            batch.input.key,
            routing=batch.routing,
            stage=batch.stage,
            requests_max=batch.file.requests_max,
            problems=problems,
            beat=turn.beat,
        )
        if planned.input.etag != batch.input.etag:
            raise ObjectChanged(f"{batch.input.key} is another than the batch was made of")
    except (InvalidFile, ObjectChanged, ObjectMissing) as error:
        return _fail(ledger, batch, tuple(problems.found) or (_of_file(error),))
    except LeaseLost:
        return None
    except BatchfileError:
        turn.give_back()
        raise
    return _open(ledger, batch, planned)


def kept_s(batch: BatchRecord, limits: Limits) -> float:
    """For how long an ended batch and its results stay, at least; its user may have asked for more."""
    return max(limits.retention_s, (batch.file and batch.file.output_kept_s) or 0.0)


def _open(ledger: Ledger, batch: BatchRecord, planned: Planned) -> BatchRecord | None:
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state != "planning":
            return None
        return replace(
            record,
            state="open",
            input=planned.input,
            plan_key=planned.plan_key,
            total=planned.total,
            planned_at=now,
        )

    batches.mark(ledger, batch, planned.plan)
    opened = update_batch(ledger, layout.batch_key(batch.batch_id), decide)
    if opened is None:
        return None
    batches.ring(ledger, planned.plan.pools)
    log.info("batch.planned", batch_id=batch.batch_id, requests=planned.total, pools=sorted(planned.plan.pools))
    return opened.record


def _fail(ledger: Ledger, batch: BatchRecord, errors: tuple[LineError, ...]) -> BatchRecord | None:
    now = ledger.clock.now()

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state != "planning" or record.file is None:
            return None
        return replace(
            record,
            state="ended",
            reason="failed",
            detail=errors[0].message,
            ended_at=now,
            file=replace(record.file, errors=errors),
        )

    failed = update_batch(ledger, layout.batch_key(batch.batch_id), decide)
    if failed is None:
        return None
    log.info("batch.failed", batch_id=batch.batch_id, num_errors=len(errors), code=errors[0].code)
    return failed.record


def _of_file(error: Exception) -> LineError:
    if isinstance(error, TooLarge):
        return LineError(code="too_many_tasks", message=str(error))
    if isinstance(error, InvalidFile):
        return LineError(code="empty_file", message=str(error))
    return LineError(code="input_file_missing", message="The input file was removed or replaced before it was read.")
