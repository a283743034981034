"""Batches of a store, without a service: the interface over the ledger."""

import os
import time
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from batchfile.client.base import LOOK_AGAIN_S, BatchFile, BatchStatus, Download, until_old
from batchfile.client.upload import Upload, repeatable
from batchfile.errors import BatchDamaged, InvalidRequest, NotEnded, NotFound, RecordDamaged, StoreError
from batchfile.inbox.records import inbox_path
from batchfile.ledger import batches, damage, ending, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.batch_status import Pool, Waiting
from batchfile.ledger.batches import read_batch
from batchfile.ledger.cas import load
from batchfile.ledger.heartbeats import Kept, known_pools, pool_of, read_heartbeats, read_roster, read_scale
from batchfile.ledger.idempotency import IdempotencyRecord
from batchfile.ledger.records import BatchRecord, FileRef, HeartbeatRecord
from batchfile.ledger.retention import purge
from batchfile.ledger.status import BatchSnapshot, StatusReader
from batchfile.ledger.tail import Cursor, iter_live
from batchfile.ledger.waiting import waiting_for
from batchfile.local.options import EARLIER, OUTPUT
from batchfile.local.outputs import batch_at, is_being_written
from batchfile.plan import submit as verbs
from batchfile.plan.options import CreateOptions
from batchfile.plan.reuse_sources import reuse_for
from batchfile.routing import check_pool, check_stage
from batchfile.settings import Settings
from batchfile.types import Defaults, RoutingTable

LIVE_LINES = 256  # result lines that are passed on together

log = structlog.get_logger()


class StoreRemote:
    """A batch is named by its id, or by the path of a local run's output. Only batches of `tenant` exist here."""

    def __init__(self, ledger: Ledger, settings: Settings, tenant: str) -> None:
        self._ledger = ledger
        self._settings = settings
        self._tenant = tenant
        self._reader = StatusReader(ledger)
        self._roster = Kept(lambda: read_roster(ledger))
        self._known: set[str] = set()  # ids of batches of this tenant that were found before

    @property
    def place(self) -> str:
        return self._ledger.store.url

    def submit(self, upload: Upload, options: CreateOptions, on_bytes: Callable[[int], None]) -> BatchStatus:
        if options.stage is not None:
            check_stage(self._settings.stages, options.stage)
        options, routing = replace(options, tenant=self._tenant), self.routing()
        if options.pool is not None:
            check_pool(routing.pools, options.pool)
        defaults = Defaults(output_schema=self._settings.schema_of(options.stage))
        with repeatable(upload) as source:  # the size of a shard depends on the size of the whole input
            # Only once all of it is here: its completion window starts now.
            created_at = self._ledger.clock.now()
            draft = options.draft(f"batch_{self._ledger.new_id()[:12]}", created_at, routing, defaults)
            made = verbs.submit(
                self._ledger,
                draft,
                source.chunks(on_bytes),
                size=source.unpacked_size,
                policy=options.policy(),
                reuse=reuse_for(self._ledger, options),
            )
        if made.is_all_reused:  # perhaps no runner is alive, and none is needed
            ending.finish(self._ledger, made.batch_id, runner=f"submit-{self._ledger.new_id()[:12]}")
        return self.batch(made.batch_id)

    def batch(self, name: str) -> BatchStatus:
        try:
            found = self._reader.read(name if name in self._known else self._find(name).batch_id)
        except BatchDamaged as error:
            found = self._reader.look(self._place_of_damaged(name, error))
        if found is None:
            raise NotFound(f"{name}: the batch was deleted")
        return self._shown(found)

    def batches(self) -> Iterator[BatchStatus]:
        return (batch for batch in map(self._look_at, self._places()) if batch is not None)

    def new_batches(self, seen: Container[str]) -> Iterator[BatchStatus]:
        return until_old(
            None if keys.index_batch_id(place) in seen else self._look_at(place) for place in self._places()
        )

    def cancel(self, name: str) -> BatchStatus:
        try:
            batch_id = self._find(name).batch_id
            batches.end(self._ledger, batch_id, "canceled")
        except RecordDamaged as error:
            place = self._place_of_damaged(name, error)
            damage.cancel(self._ledger, error, place)
            batch_id = keys.index_batch_id(place)
        ending.finish(self._ledger, batch_id, runner=f"cancel-{self._ledger.new_id()[:12]}")
        return self.batch(batch_id)

    def delete(self, name: str, *, now: bool) -> str:
        batch_id = find_batch_id(self._ledger, name)
        kept = self._kept_by(batch_id)
        if not (now and self._is_deleted(batch_id)):
            self._delete(name)
        if kept is not None:
            retention.delete(self._ledger, kept)
        for one in (batch_id, kept) if now else ():
            if one is not None:
                purge(self._ledger, one)
        return batch_id

    def _kept_by(self, batch_id: str) -> str | None:
        """The batch of an earlier run of the same output, which this one keeps for its answers."""
        with suppress(BatchDamaged, InvalidRequest):
            batch = load(self._ledger, keys.batch_key(batch_id), BatchRecord)
            name = None if batch is None else batch.record.metadata.get(EARLIER)
            kept = None if name is None else load(self._ledger, keys.batch_key(name), BatchRecord)
            if batch is not None and kept is not None and _owner(batch.record) == _owner(kept.record):
                return name if batch.record.tenant == self._tenant else None
        return None

    def _is_deleted(self, batch_id: str) -> bool:
        """Was it a batch of this tenant, and is it deleted?"""
        with suppress(RecordDamaged):
            found = load(self._ledger, keys.batch_key(batch_id), BatchRecord)
            return found is not None and (found.record.state, found.record.tenant) == ("deleted", self._tenant)
        return False

    def _delete(self, name: str) -> None:
        try:
            standing = retention.delete(self._ledger, self._find(name).batch_id)
        except RecordDamaged as error:
            damage.delete(self._ledger, error, self._place_of_damaged(name, error))
            return
        if standing is not None and standing.state != "deleted":
            raise NotEnded(f"{name}: has not ended; end it with `batchfile cancel {name}`, then delete it")

    def rerun(self, name: str) -> BatchStatus:
        return self.batch(verbs.rerun(self._ledger, self._find(name)).batch_id)

    def download(self, batch: BatchStatus, file: BatchFile) -> Download | None:
        found: FileRef | None = getattr(self._find(batch.batch_id), file)
        if found is None:
            return None
        key, size = found.key, found.size
        return Download(size=size, sha256=found.sha256, read=lambda start: self._ledger.store.stream(key, start, size))

    def live(self, batch_id: str) -> Iterator[list[bytes]]:
        cursor = Cursor()
        while not cursor.is_over:
            lines: list[bytes] = []
            for line in iter_live(self._ledger, batch_id, cursor):
                lines.append(line.result)
                if len(lines) >= LIVE_LINES:
                    yield lines
                    lines = []
            yield lines
            if not cursor.is_over:
                time.sleep(LOOK_AGAIN_S)

    def routing(self) -> RoutingTable:
        return self._settings.routing()

    def runners(self) -> list[HeartbeatRecord]:
        return read_heartbeats(self._ledger)

    def pools(self) -> list[Pool]:
        """Those of the settings and those that the store knows. A built-in one that nobody uses is not a pool here."""
        settings, roster = self._settings, self._roster.now()
        found = []
        for name in sorted({*settings.own_pools, *known_pools(self._ledger, roster)}):
            pool = settings.pools.get(name)
            model, engine = ("", "") if pool is None else (pool.model, pool.engine)
            stages = [stage for stage, served_by in settings.stages.items() if served_by == name]
            found.append(pool_of(name, model, engine, stages, roster.live, read_scale(self._reader, name)))
        return found

    def close(self) -> None:
        """A store does not need to be closed."""

    def _places(self) -> Iterator[str]:
        """Keys of the index, newest first; some have no batch, because it is not created yet or was deleted."""
        return (entry.key for entry in self._ledger.store.list(keys.index_prefix(self._tenant)))

    def _look_at(self, place: str) -> BatchStatus | None:
        found = self._reader.look(place)
        return None if found is None else self._shown(found)

    def _shown(self, found: BatchSnapshot) -> BatchStatus:
        """The status for an operator, with the name of an object that cannot be read."""
        detail = found.status.detail if found.problem is None else str(found.problem)
        status = msgspec.structs.replace(found.status, detail=detail, inbox_path=inbox_path(found.batch))
        return _with_output(msgspec.structs.replace(status, waiting_for=self._waiting_for(status)))

    def _waiting_for(self, status: BatchStatus) -> tuple[Waiting, ...]:
        output = status.metadata.get(OUTPUT)
        if status.state != "open" or (output is not None and is_being_written(output)):
            return ()
        if output is not None:
            message = f"No process runs {output}; the command of the run resumes it"
            pool = next(iter(status.pools), "")
            return (Waiting(pool=pool, cause="no_runner", message=message, since=status.updated_at),)
        with suppress(StoreError):
            return waiting_for(status, self._roster.now(), is_operator=True)
        return ()

    def _place_of_damaged(self, name: str, error: BatchDamaged) -> str:
        """The index key of a damaged batch, which proves its tenant. Raises: `error` where it cannot be found."""
        try:
            batch_id = find_batch_id(self._ledger, name)
        except BatchDamaged:
            raise error from None
        place = damage.place_of(self._ledger, self._tenant, batch_id)
        if place is None:
            raise error
        return place

    def _find(self, name: str) -> BatchRecord:
        batch = find_batch(self._ledger, name)
        if batch.tenant != self._tenant:
            raise NotFound(f"{name}: not a batch of the tenant {self._tenant}; name the tenant that it belongs to")
        self._known.add(batch.batch_id)
        return batch


def _owner(batch: BatchRecord) -> tuple[str, str | None]:
    return batch.tenant, batch.metadata.get(OUTPUT)


def find_batch_id(ledger: Ledger, name: str) -> str:
    """The batch id of `name`, which is an id or the path of an output."""
    path = os.path.realpath(name)
    pointer = load(ledger, keys.idempotency_key("output", path), IdempotencyRecord)
    return name if pointer is None else pointer.record.batch_id


def find_batch(ledger: Ledger, name: str) -> BatchRecord:
    """A batch by its id or by the path of its output. Raises: NotFound, BatchDamaged."""
    try:
        batch = read_batch(ledger, find_batch_id(ledger, name))
    except InvalidRequest:
        batch = None
    if batch is None:
        raise NotFound(f"{name}: no such batch in {ledger.store.url}; `batchfile ls` lists them")
    return batch


def _with_output(batch: BatchStatus) -> BatchStatus:
    """A local run ends when its output is written: until then its batch is shown as ending."""
    output = batch.metadata.get(OUTPUT, "")
    if not batch.has_ended or not Path(output).is_absolute() or batch_at(output) == batch.batch_id:
        return batch
    if is_being_written(output):
        return msgspec.structs.replace(batch, state="ending", detail=f"{output} is being written")
    if batch.detail is not None or Path(output).exists() or not Path(output).parent.is_dir():
        return batch
    how = f"`batchfile results {batch.batch_id} -o FILE`, or the command of the run, writes the results"
    return msgspec.structs.replace(batch, detail=f"{output} does not exist: {how}")
