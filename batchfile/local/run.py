"""Creates or resumes the batch of a local run, and runs it with one engine.

The same command resumes the batch of its output. Knows no terminal and no output format.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from batchfile.engine.base import Engine, EngineFactory, EngineInfo
from batchfile.errors import BatchDamaged, InvalidFile, InvalidRequest, OutputTaken, RecordDamaged
from batchfile.ledger import batches, ending, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.cas import Lost, Stored, load, must_know, swap, update_batch
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, IdempotencyRecord
from batchfile.lines.envelope import decode_envelope
from batchfile.lines.framing import NUL_TAIL, iter_lines
from batchfile.local import inputs, outputs, previous_batch
from batchfile.local.inputs import Source
from batchfile.local.options import (
    COMMITS,
    ENGINE_VERSION,
    INPUT,
    LINKED,
    OUTPUT,
    REPLACES,
    REUSED,
    REUSED_FROM,
    SHA256,
    STAMP,
    STDOUT,
    TABLE,
    RunOptions,
    check_same,
)
from batchfile.local.past_runs import remember_speed
from batchfile.local.previous_batch import CUT_OFF, POOL, throw_away
from batchfile.plan import submit
from batchfile.plan.options import CreateOptions
from batchfile.plan.planner import plan_input
from batchfile.plan.policy import CHECK, REJECT, LinesRefused
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.types import Defaults, RoutingTable

FIRST_BYTES = 256 * 1024  # enough for a line or two

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An existing batch. `notes`: messages for its user, one sentence each."""

    batch: BatchRecord
    is_new: bool
    notes: tuple[str, ...] = ()


def open_batch(
    ledger: Ledger, source: Source, options: RunOptions, before_plan: Callable[[], None] = lambda: None
) -> Opened:
    """The output's batch: the existing one if the options are the same, else a new one.

    `before_plan` is called before a new one is created, and may raise. Raises: OutputTaken, InvalidFile; then no new
    batch was created.
    """
    if options.output is None:
        before_plan()
        return _create(ledger, source, options, None)
    key = keys.idempotency_key("output", options.output)
    try:
        pointer = load(ledger, key, IdempotencyRecord)
    except RecordDamaged as error:
        if not options.restart:
            raise _restart_instead(options.output, error) from error
        return _create(ledger, source, options, error)  # the id of the old batch is lost with the pointer
    pointer = pointer and previous_batch.repaired(ledger, key, pointer)
    if pointer is not None and options.restart:
        _check_replaceable(ledger, pointer.record.batch_id)
        # The old run is removed only once the new one exists: if the new input is rejected, nothing is lost.
        before_plan()
        opened = _create(ledger, source, options, pointer)
        throw_away(ledger, pointer.record.batch_id)
        return opened
    if pointer is not None:
        try:
            batch = batches.read_batch(ledger, pointer.record.batch_id)
        except RecordDamaged as error:
            raise _restart_instead(options.output, error) from error
        if batch is not None:
            return _continue(ledger, source, options, batch, pointer, before_plan)
        if not pointer.record.digest:
            retention.fence(ledger, pointer.record.batch_id, CUT_OFF)
    is_ours = pointer is not None and not pointer.record.digest
    if not options.restart and not is_ours and _holds_something(options.output):
        raise OutputTaken(
            f"{options.output} exists and does not belong to a run of this store; "
            "choose another output, or add --restart to replace it"
        )
    before_plan()
    return _create(ledger, source, options, pointer)


def _restart_instead(output: str, error: RecordDamaged) -> BatchDamaged:
    return BatchDamaged(f"{error}; restore that object, or add --restart to run {output} from the start")


def _check_replaceable(ledger: Ledger, batch_id: str) -> None:
    """Raises: RecordNewer where a newer version of batchfile wrote this batch."""
    key = keys.batch_key(batch_id)
    with suppress(RecordDamaged):
        found = load(ledger, key, BatchRecord)
        if found is not None:
            must_know(ledger, key, found)


def work(
    ledger: Ledger,
    found: Sequence[BatchRecord],
    factory: EngineFactory,
    runner_id: str,
    on_runner: Callable[[Runner], None],
    on_ended: Callable[[BatchRecord], None],
    *,
    grace_s: float | None = None,
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
        startup_s = ledger.clock.monotonic() - started_at
        for _ in in_order(ledger, lambda batch_id: _remember_engine(ledger, batch_id, engine.info), tuple(left)):
            pass
        return engine

    def measured(batch_id: str) -> BatchRecord | None:
        if runner.info is None or found[0].metadata.get("run.engine") == "echo":  # says nothing about other engines
            return None
        return remember_speed(ledger, batch_id, startup_s, runner.info, runner.runner_stats)

    def end(ended: BatchRecord) -> None:
        left.remove(ended.batch_id)
        on_ended(measured(ended.batch_id) or ended)

    options = RunnerOptions(runner_id=runner_id, pool=POOL, only=tuple(left), grace_s=grace_s)
    runner = Runner(ledger, build, options, on_ended=end)
    on_runner(runner)
    runner.run()
    for batch_id in left:
        measured(batch_id)


def _remember_engine(ledger: Ledger, batch_id: str, info: EngineInfo) -> None:
    """Store the versions of engine and model with the batch, so that any process can write them to the receipt."""
    versions = {ENGINE_VERSION: info.version, COMMITS: msgspec.json.encode(info.commits, order="sorted").decode()}

    def decide(record: BatchRecord) -> BatchRecord | None:
        if record.state != "open" or versions.items() <= record.metadata.items():
            return None
        return replace(record, metadata={**record.metadata, **versions})

    update_batch(ledger, keys.batch_key(batch_id), decide)


def _continue(
    ledger: Ledger,
    source: Source,
    options: RunOptions,
    batch: BatchRecord,
    pointer: Stored[IdempotencyRecord],
    before_plan: Callable[[], None],
) -> Opened:
    assert options.output is not None
    is_untouched = bool(source.stamp) and batch.metadata.get(STAMP) == f"{source.stamp} {source.name}"
    if is_untouched:
        digest = batch.metadata[SHA256]
    elif source.path is not None:
        digest = inputs.digest_of(source)
    else:
        digest = inputs.digest_of_requests(source)
    wanted = options.identity(digest)
    if previous_batch.is_reusable(source, batch, wanted):
        outputs.check_not_taken(ledger, batch, options.output)
        before_plan()
        if batch.state != "ended":
            batch = previous_batch.end(ledger, _repin(ledger, source, batch, is_same=False))
        return _create(ledger, source, options, pointer, reuse=batch)
    check_same(batch.metadata, wanted, options.output)
    if not is_untouched and source.path is not None and batch.state != "ended":
        batch = _repin(ledger, source, batch, is_same=True)
    return Opened(batch=batch, is_new=False)


def _repin(ledger: Ledger, source: Source, batch: BatchRecord, *, is_same: bool) -> BatchRecord:
    """Repin the batch to another file with the same bytes (moved, copied, touched).

    Not `is_same`: the file has further lines, so the next command must not mistake it for the input of this batch.
    Raises: InvalidFile where the file has changed since it was read.
    """
    if source.path is None:
        return batch
    stamp = {STAMP: f"{source.stamp} {source.name}"} if is_same else {}
    is_linked = batch.metadata.get(LINKED) == batch.input.key
    etag = ledger.store.link(batch.input.key, source.path) if is_linked else None
    inputs.check_untouched(source)

    def decide(record: BatchRecord) -> BatchRecord | None:
        pinned = record.input if etag is None else replace(record.input, etag=etag)
        return replace(record, input=pinned, metadata={**record.metadata, **stamp})

    found = update_batch(ledger, keys.batch_key(batch.batch_id), decide)
    return batch if found is None else found.record


def _create(
    ledger: Ledger,
    source: Source,
    options: RunOptions,
    previous: Stored[IdempotencyRecord] | RecordDamaged | None,
    reuse: BatchRecord | None = None,
) -> Opened:
    """`reuse`: the previous batch of the output; the new one takes over its succeeded results."""
    batch_id = f"batch_{ledger.new_id()[:12]}"
    pointer_key = None if options.output is None else keys.idempotency_key("output", options.output)
    pointer = IdempotencyRecord(batch_id=batch_id, digest="", replaces="" if reuse is None else reuse.batch_id)
    ours: Stored[IdempotencyRecord] | None = None
    if pointer_key is not None:
        written = swap(ledger, pointer_key, pointer, previous)
        if isinstance(written, Lost):
            raise OutputTaken(f"{options.output}: another process has just started a run of it; try again")
        ours = written
    try:
        opened = _plan_and_commit(ledger, source, options, batch_id, reuse)
    except InvalidFile:
        if pointer_key is not None and isinstance(previous, Stored) and (previous.record.digest or reuse):
            swap(ledger, pointer_key, previous.record, ours)
        elif pointer_key is not None:
            ledger.store.delete(pointer_key)
        raise
    if reuse is not None:
        throw_away(ledger, reuse.batch_id)
    if pointer_key is not None:
        swap(ledger, pointer_key, replace(pointer, digest=opened.batch.input.sha256, replaces=""), ours)
    return opened


def _plan_and_commit(
    ledger: Ledger, source: Source, options: RunOptions, batch_id: str, reuse: BatchRecord | None
) -> Opened:
    key = keys.input_key(batch_id, ledger.new_id()[:12])
    defaults = Defaults(max_tokens=options.max_tokens or Defaults().max_tokens, temperature=options.temperature)
    draft = CreateOptions(stage=options.stage).draft(batch_id, None, RoutingTable(everything=POOL), defaults)
    notes: list[str] = []

    def plan(beat: Callable[[], None]) -> Planned:
        is_linked = inputs.bring_in(ledger.store, source, key)
        planned = plan_input(
            ledger,
            batch_id,
            key,
            routing=draft.routing,
            stage=draft.stage,
            policy=replace(CHECK if options.strict else REJECT, id_name=source.id_name),
            beat=beat,
            name=f"{source.shown}:",
            keeps_ids=is_linked,
            reuse=reuse,
        )
        inputs.check_untouched(source)
        notes.extend(
            _notes(
                planned, _first_model(ledger, planned), options.model or "", "line" if source.table is None else "row"
            )
        )
        notes.extend(_tail_note(ledger, planned))
        is_own_bytes = is_linked or source.path is None
        digest = planned.input.sha256 if is_own_bytes else inputs.digest_of(source)
        metadata = _metadata(source, options, digest)
        if is_linked:
            metadata[LINKED] = key
        if reuse is not None:
            metadata |= {REUSED: str(planned.num_reused), REUSED_FROM: reuse.batch_id}
        return replace(planned, metadata=metadata)

    try:
        batch = submit.create(ledger, draft, plan)
    except LinesRefused as error:
        first, more = error.errors[0], f" ({error.num:,} such lines)" if error.num > 1 else ""
        raise InvalidFile(
            f"{source.shown}: line {first.line}: {first.message}{more}; nothing ran (--strict). "
            "`batchfile validate` lists all problems"
        ) from None
    return Opened(batch=batch, is_new=True, notes=tuple(notes))


def _metadata(source: Source, options: RunOptions, digest: str) -> dict[str, str]:
    metadata = options.identity(digest) | {INPUT: source.name, OUTPUT: options.output or STDOUT}
    if options.output is not None and (replaced := outputs.batch_at(options.output)) is not None:
        metadata[REPLACES] = replaced
    if source.stamp:
        metadata[STAMP] = f"{source.stamp} {source.name}"
    if source.table is not None:
        metadata[TABLE] = source.table.answered.encode()
    return metadata


def _notes(planned: Planned, named: str | None, model: str, noun: str) -> Iterator[str]:
    if planned.num_reused:
        yield f"{planned.num_reused:,} of {planned.total:,} requests have already finished and do not run again"
    if planned.num_hints:
        yield f"requests with a model_hint: {planned.num_hints:,}; a local run ignores it and uses its one engine"
    if named not in {None, model, Path(model).name}:
        yield f"the first request has the model {named!r}; a local run ignores it and uses its one engine"
    if planned.num_rejected:
        first = planned.first_problem
        many = f"{planned.num_rejected:,} {noun}s are rejected and get failed results; the first"
        yield f"{f'1 {noun} is rejected and gets a failed result' if planned.num_rejected == 1 else many}: {first}"


def _tail_note(ledger: Ledger, planned: Planned) -> Iterator[str]:
    last = ledger.store.stream(planned.input.key, max(0, planned.input.size - 1), match=planned.input.etag)
    if b"".join(last) == b"\0":
        yield f"the file {NUL_TAIL}"


def _first_model(ledger: Ledger, planned: Planned) -> str | None:
    """The model of the first readable line."""
    chunks = ledger.store.stream(planned.input.key, 0, FIRST_BYTES, match=planned.input.etag)
    for line in iter_lines(chunks):
        with suppress(InvalidRequest):
            return decode_envelope(line.data or b"").model
    return None


def _holds_something(path: str) -> bool:
    with suppress(OSError):
        return Path(path).stat().st_size > 0
    return False
