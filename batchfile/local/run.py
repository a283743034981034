"""Creates or resumes the batch of a local run, and runs it with one engine.

The same command resumes the batch of its output. Knows no terminal and no output format.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import structlog

from batchfile.engine.identity import EngineIdentity
from batchfile.errors import BatchDamaged, InvalidFile, InvalidRequest, OutputTaken, RecordDamaged
from batchfile.ledger import batches, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.cas import Lost, Stored, load, must_know, swap, update_batch
from batchfile.ledger.idempotency import IdempotencyRecord
from batchfile.ledger.records import BatchRecord
from batchfile.lines.envelope import decode_envelope
from batchfile.lines.framing import NUL_TAIL, iter_lines
from batchfile.local import inputs, outputs, previous_batch
from batchfile.local.earlier_runs import earlier_runs, run_of
from batchfile.local.inputs import Source
from batchfile.local.media_files import FileDigests
from batchfile.local.merged_answers import with_whole_batches
from batchfile.local.options import (
    EARLIER,
    INPUT,
    LINKED,
    OUTPUT,
    REPLACES,
    SHA256,
    STAMP,
    STDOUT,
    TABLE,
    RunOptions,
    changes,
)
from batchfile.local.previous_batch import CUT_OFF, POOL, Previous, throw_away
from batchfile.media.rules import MediaRules
from batchfile.plan import submit
from batchfile.plan.options import CreateOptions
from batchfile.plan.planner import plan_input
from batchfile.plan.policy import CHECK, REJECT, LinesRefused
from batchfile.plan.reuse import Reuse
from batchfile.types import Defaults, RoutingTable

FIRST_BYTES = 256 * 1024  # enough for a line or two
_SPOOLED_AGAIN = "again"  # what was on stdin, until a batch has it or it is known to be the same

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An existing batch. `notes`: messages for its user, one sentence each."""

    batch: BatchRecord
    is_new: bool
    notes: tuple[str, ...] = ()


def open_batch(
    ledger: Ledger,
    source: Source,
    options: RunOptions,
    before_plan: Callable[[], None] = lambda: None,
    engine: EngineIdentity | None = None,
    *,
    rules: MediaRules | None = None,
    shares_results: bool = False,
) -> Opened:
    """The output's batch: the existing one if nothing has changed, else a new one, which takes over results of it.

    `before_plan` is called before a new one is created, and may raise. `engine`: what will answer; None: unknown.
    `rules`: for the files that requests name; None: they are not read. `shares_results`: a new one takes over those of
    the runs of other outputs in this store too.
    Raises: OutputTaken, InvalidFile; then no new batch was created.
    """
    run = _Run(
        ledger=ledger,
        source=source,
        options=options,
        engine=engine,
        before_plan=before_plan,
        digest_of=None if rules is None else FileDigests(rules),
        shares_results=shares_results and not options.restart,
    )
    try:
        return _open(run)
    finally:
        if run.spooled is not None:
            ledger.store.delete(run.spooled)


def _open(run: "_Run") -> Opened:
    ledger, options = run.ledger, run.options
    if options.output is None:
        run.before_plan()
        return run.create(None)
    key = keys.idempotency_key("output", options.output)
    try:
        pointer = load(ledger, key, IdempotencyRecord)
    except RecordDamaged as error:
        if not options.restart:
            raise _restart_instead(options.output, error) from error
        return run.create(error)  # the id of the old batch is lost with the pointer
    pointer = pointer and previous_batch.repaired(ledger, key, pointer)
    if pointer is not None and options.restart:
        _check_replaceable(ledger, pointer.record.batch_id)
        # The old run is removed only once the new one exists: if the new input is rejected, nothing is lost.
        run.before_plan()
        old = previous_batch.names_of(ledger, pointer.record.batch_id)
        opened = run.create(pointer)
        for batch_id in old:
            throw_away(ledger, batch_id)
        return opened
    if pointer is not None:
        try:
            batch = batches.read_batch(ledger, pointer.record.batch_id)
            if batch is not None:
                return _continue(run, batch, pointer)
        except RecordDamaged as error:
            raise _restart_instead(options.output, error) from error
        if not pointer.record.digest:
            retention.fence(ledger, pointer.record.batch_id, CUT_OFF)
    is_ours = pointer is not None and not pointer.record.digest
    if not options.restart and not is_ours and _holds_something(options.output):
        raise OutputTaken(
            f"{options.output} exists and does not belong to a run of this store; "
            "choose another output, or add --restart to replace it"
        )
    run.before_plan()
    return run.create(pointer)


def _restart_instead(output: str, error: RecordDamaged) -> BatchDamaged:
    return BatchDamaged(f"{error}; restore that object, or add --restart to run {output} from the start")


def _check_replaceable(ledger: Ledger, batch_id: str) -> None:
    """Raises: RecordNewer where a newer version of batchfile wrote this batch."""
    key = keys.batch_key(batch_id)
    with suppress(RecordDamaged):
        found = load(ledger, key, BatchRecord)
        if found is not None:
            must_know(ledger, key, found)


def _continue(run: "_Run", batch: BatchRecord, pointer: Stored[IdempotencyRecord]) -> Opened:
    """The batch, if the command is the one that made it; else a new one that takes over its results."""
    ledger, source = run.ledger, run.source
    is_untouched = bool(source.stamp) and batch.metadata.get(STAMP) == f"{source.stamp} {source.name}"
    if is_untouched:
        digest = batch.metadata[SHA256]
    elif source.path is not None:
        digest = inputs.digest_of(source)
    else:
        digest = run.spool(batch.batch_id)
    wanted = run.options.identity(digest, run.engine)
    is_same = not changes(batch.metadata, wanted)
    if is_same and batch.reason != "input_changed":
        if not is_untouched and source.path is not None and batch.state != "ended":
            batch = _repin(ledger, source, batch)
        return Opened(batch=batch, is_new=False)
    outputs.check_not_taken(ledger, batch, batch.metadata[OUTPUT])
    previous = previous_batch.previous_of(ledger, batch)
    previous = previous_batch.with_merged(ledger, previous, batch.metadata[OUTPUT])
    sources = previous_batch.sources_of(previous, wanted, run.engine, is_asked=run.options.reuse, is_same=is_same)
    run.before_plan()
    if batch.state != "ended":
        previous = replace(previous, batch=previous_batch.end(ledger, batch))
    return run.create(pointer, previous, sources)


def _repin(ledger: Ledger, source: Source, batch: BatchRecord) -> BatchRecord:
    """Repin the batch to another file with the same bytes (moved, copied, touched).

    Raises: InvalidFile where the file has changed since it was read.
    """
    assert source.path is not None
    is_linked = batch.metadata.get(LINKED) == batch.input.key
    etag = ledger.store.link(batch.input.key, source.path) if is_linked else None
    inputs.check_untouched(source)

    def decide(record: BatchRecord) -> BatchRecord | None:
        pinned = record.input if etag is None else replace(record.input, etag=etag)
        return replace(record, input=pinned, metadata={**record.metadata, STAMP: f"{source.stamp} {source.name}"})

    found = update_batch(ledger, keys.batch_key(batch.batch_id), decide)
    return batch if found is None else found.record


@dataclass(slots=True, kw_only=True)
class _Run:
    """One call of `open_batch`. `spooled`: the key of what was on stdin, once it was read."""

    ledger: Ledger
    source: Source
    options: RunOptions
    engine: EngineIdentity | None
    before_plan: Callable[[], None]
    digest_of: FileDigests | None
    shares_results: bool
    spooled: str | None = None

    def spool(self, batch_id: str) -> str:
        """The digest of the content of stdin or of an address; the content is kept next to the batch."""
        self.spooled = keys.input_key(batch_id, f"{_SPOOLED_AGAIN}-{self.ledger.new_id()[:12]}")
        inputs.bring_in(self.ledger.store, self.source, self.spooled)
        digest = sha256()
        for chunk in self.ledger.store.stream(self.spooled):
            digest.update(chunk)
        return digest.hexdigest()

    def create(
        self,
        pointer: Stored[IdempotencyRecord] | RecordDamaged | None,
        previous: Previous | None = None,
        sources: tuple[str, ...] = (),
    ) -> Opened:
        """A new batch of the output. `previous`: what it replaces; `sources`: the ids of those to take results from."""
        ledger, output, other = self.ledger, self.options.output, self.options.reuse_from
        others = [] if other is None else run_of(ledger, other, self.engine)
        if self.shares_results:
            others += earlier_runs(ledger, self.engine, is_asked=self.options.reuse)
        batch_id = f"batch_{ledger.new_id()[:12]}"
        key = None if output is None else keys.idempotency_key("output", output)
        replaces = "" if previous is None else previous.batch.batch_id
        record = IdempotencyRecord(batch_id=batch_id, digest="", replaces=replaces)
        ours: Stored[IdempotencyRecord] | None = None
        if key is not None:
            written = swap(ledger, key, record, pointer)
            if isinstance(written, Lost):
                raise OutputTaken(f"{output}: another process has just started a run of it; try again")
            ours = written
        try:
            opened = self._plan_and_commit(batch_id, previous, sources, others)
        except (InvalidFile, OutputTaken):
            if key is not None and isinstance(pointer, Stored) and (pointer.record.digest or previous):
                swap(ledger, key, pointer.record, ours)
            elif key is not None:
                ledger.store.delete(key)
            raise
        for old in () if previous is None else previous.all:
            if old.batch_id != opened.batch.metadata.get(EARLIER):
                throw_away(ledger, old.batch_id)
        if key is not None:
            swap(ledger, key, replace(record, digest=opened.batch.input.sha256, replaces=""), ours)
        return opened

    def _plan_and_commit(
        self, batch_id: str, previous: Previous | None, sources: tuple[str, ...], others: list[BatchRecord]
    ) -> Opened:
        ledger, source, options = self.ledger, self.source, self.options
        key = keys.input_key(batch_id, ledger.new_id()[:12])
        defaults = Defaults(max_tokens=options.max_tokens or Defaults().max_tokens, temperature=options.temperature)
        # Of an endpoint's model, nobody knows the task.
        routing = RoutingTable(everything=POOL, tasks={} if options.engine == "http" else {POOL: options.task})
        draft = CreateOptions(stage=options.stage).draft(batch_id, None, routing, defaults)
        old = () if previous is None else tuple(one for one in previous.sources if one.batch_id in sources)
        old += tuple(one for one in others if one.batch_id not in sources)
        notes: list[str] = []

        def plan(beat: Callable[[], None]) -> Planned:
            is_linked = self._bring_in(key)
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
                defaults=defaults,
                reuse=Reuse(sources=old, is_sampled_too=True) if old else None,
                digest_of=self.digest_of,
            )
            inputs.check_untouched(source)
            is_own_bytes = is_linked or source.path is None
            digest = planned.input.sha256 if is_own_bytes else inputs.digest_of(source)
            wanted = options.identity(digest, self.engine)
            metadata = wanted | _metadata(source, options)
            if is_linked:
                metadata[LINKED] = key
            if previous is not None:
                metadata |= previous_batch.metadata_of(previous, planned, wanted)
            planned = replace(planned, metadata=metadata)
            notes.extend(previous_batch.reuse_notes(planned, options.reuse_from))
            if previous is not None:
                notes.extend(previous_batch.notes(previous, planned, wanted))
            noun = "line" if source.table is None else "row"
            notes.extend(_notes(planned, _first_model(ledger, planned), options.model or "", noun))
            notes.extend(_tail_note(ledger, planned))
            return with_whole_batches(planned)

        try:
            batch = submit.create(ledger, draft, plan)
        except LinesRefused as error:
            first, more = error.errors[0], f" ({error.num:,} such lines)" if error.num > 1 else ""
            raise InvalidFile(
                f"{source.shown}: line {first.line}: {first.message}{more}; nothing ran (--strict). "
                "`batchfile validate` lists all problems"
            ) from None
        return Opened(batch=batch, is_new=True, notes=tuple(notes))

    def _bring_in(self, key: str) -> bool:
        """Store the input. True: as a reference to the file itself."""
        store = self.ledger.store
        if self.spooled is None:
            return inputs.bring_in(store, self.source, key)
        with store.writer(key, is_new=True) as writer:
            for chunk in store.stream(self.spooled):
                writer.write(chunk)
            writer.commit()
        return False


def _metadata(source: Source, options: RunOptions) -> dict[str, str]:
    """What does not identify the run."""
    metadata = {INPUT: source.name, OUTPUT: options.output or STDOUT}
    if options.output is not None and (replaced := outputs.batch_at(options.output)) is not None:
        metadata[REPLACES] = replaced
    if source.stamp:
        metadata[STAMP] = f"{source.stamp} {source.name}"
    if source.table is not None:
        metadata[TABLE] = source.table.answered.encode()
    return metadata


def _notes(planned: Planned, named: str | None, model: str, noun: str) -> Iterator[str]:
    if planned.num_hints:
        yield f"requests with a model_hint: {planned.num_hints:,}; a local run ignores it and uses its one engine"
    if named not in {None, model, Path(model).name}:
        yield f"the first request has the model {named!r}; a local run ignores it and uses its one engine"
    if planned.num_rejected:
        first = planned.first_problem
        many = f"{planned.num_rejected:,} {noun}s are rejected and do not run; the first"
        yield f"{f'1 {noun} is rejected and does not run' if planned.num_rejected == 1 else many}: {first}"


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
