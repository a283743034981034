"""Turns the files under `inbox/` into batches: each version of each file becomes exactly one batch.

A claim, a conditional write of a new object, gives a version its batch id. The batch is then created as `planning` from
the object in place, pinned by its etag. Any process may scan. Nothing in the inbox is written or removed here.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import structlog

from batchfile.errors import BatchDamaged, InvalidFile, NotFound, StoreError, StoreUnavailable
from batchfile.inbox import outbox
from batchfile.inbox.keys import CLAIMS_PREFIX, INBOX_PREFIX, claim_key
from batchfile.inbox.options import OPTIONS_BYTES_MAX, OPTIONS_ENDING, InboxOptions, read_options
from batchfile.inbox.records import ClaimRecord, DroppedFile, source
from batchfile.ledger import keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import Lost, load, must_know, swap
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import UNANSWERED_MAX, SetAside, do_each
from batchfile.lines.kinds import CSV_ENDINGS, JSON_ENDINGS, PACKED, TEXT_ENDINGS, detect, ending_of, refusal
from batchfile.plan import pending
from batchfile.plan.options import AUTO, CreateOptions
from batchfile.plan.reuse import Reuse
from batchfile.plan.reuse_sources import named, reuse_for, with_reuse
from batchfile.store.base import Entry
from batchfile.types import Defaults, RoutingTable

log = structlog.get_logger()

QUIET_S = 5.0  # a file modified more recently may be incomplete (in a directory; objects are complete)
ID_DIGITS = 24  # of a batch id, in hex
LOOKS_MAX = 500  # files handled in one look, the newest first
CLAIM_KEPT_S = 7 * 24 * 3600.0  # how long a claim outlives its file, because the file may only be out of sight

NAME_BYTES_MAX = 239  # of the 255 that a file system allows, without `.results.parquet`
PATH_BYTES_MAX = 900  # below inbox/; of the 1,024 that S3 allows, without what comes before and after
ENDINGS = (*(ending + packing for ending in (*JSON_ENDINGS, *CSV_ENDINGS) for packing in ("", *PACKED)), ".parquet")
# What other programs call a file until it is complete.
_UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload", "~")

# What requests name by the URL of the bucket (docs/media.md).
_MEDIA = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".wav", ".mp3")

SchemaOf = Callable[[str | None], dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class _File:
    """A file of requests, and the options file next to it."""

    entry: Entry
    options: Entry | None

    @property
    def stamp(self) -> str:
        """The version of both: a file that was rejected may be accepted with other options."""
        other = "" if self.options is None else self.options.etag
        return f"{self.entry.etag} {self.entry.size} {self.entry.modified_at} {other}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The destination of a file by its folder and options: a stage, or one pool for everything."""

    create: CreateOptions
    options: InboxOptions


class Inbox:
    """For one thread. Remembers what it has handled, so that a look costs a listing and what is new.

    `move_done`: for files whose options do not set it.
    """

    def __init__(
        self,
        ledger: Ledger,
        routing: RoutingTable,
        schema_of: SchemaOf = lambda stage: None,
        *,
        move_done: bool = False,
    ) -> None:
        self._ledger = ledger
        self._move_done = move_done
        self._routing = routing
        self._schema_of = schema_of
        self._known: dict[str, str] = {}  # key -> the version that was handled
        self._waiting: dict[str, tuple[str, float]] = {}  # key -> a version that may be incomplete, and since when

    def look(self, aside: SetAside) -> None:
        """Create batches from everything new. Files that the store rejects are set `aside` and hold up no others.

        Raises: StoreError if the inbox cannot be listed, or several files get no answer; the next look continues.
        """
        known, waiting, new = dict[str, str](), dict[str, tuple[str, float]](), list[_File]()
        options = dict[str, Entry]()  # a listing has them before their file
        for entry in self._ledger.store.list(INBOX_PREFIX):
            if _is_skipped(entry.key):
                continue
            if entry.key.endswith(OPTIONS_ENDING):
                options[entry.key] = entry
                continue
            file = _File(entry, options.get(_stem(entry.key) + OPTIONS_ENDING))
            if self._known.get(entry.key) == file.stamp:
                known[entry.key] = file.stamp
            elif self._is_quiet(file, waiting) and not aside.left_s(entry.key):
                new.append(file)
        self._known, self._waiting = known, waiting
        new.sort(key=lambda file: -file.entry.modified_at)
        num_unanswered = 0
        for file in new[:LOOKS_MAX]:
            key = file.entry.key
            try:
                if self._take(file):
                    self._known[key] = file.stamp
                num_unanswered = 0
                aside.worked(key, "plan")
            except (StoreError, BatchDamaged) as error:  # perhaps of this file alone: say, a name that is too long
                if key not in aside.reasons():
                    log.error("inbox.failed", key=key, error=str(error))
                aside.put(key, "plan", error)
                num_unanswered = num_unanswered + 1 if isinstance(error, StoreUnavailable) else 0
                if num_unanswered == UNANSWERED_MAX:
                    raise

    def sweep(self) -> int:
        """Remove old claims of files that are gone from the inbox; returns how many. Call it about once an hour.

        The store's clock decides; the local one, which may be wrong, only saves requests.
        """
        store, now = self._ledger.store, self._ledger.clock.now()
        there = {claim_key(e.key, e.etag, e.modified_at) for e in store.list(INBOX_PREFIX)}

        def remove(entry: Entry) -> bool:
            with suppress(BatchDamaged):  # an unreadable claim stays
                found = load(self._ledger, entry.key, ClaimRecord)
                if found is None or found.age_s < CLAIM_KEPT_S:
                    return False
                if not outbox.is_there(self._ledger, found.record):
                    must_know(self._ledger, entry.key, found)
                    store.delete(entry.key)
                    return True
            return False

        old = [entry for entry in store.list(CLAIMS_PREFIX) if now - entry.modified_at >= CLAIM_KEPT_S]
        return do_each((entry for entry in old if entry.key not in there), remove, "inbox.failed")

    def _is_quiet(self, file: _File, waiting: dict[str, tuple[str, float]]) -> bool:
        """Unmodified for long enough, by the file's own time or, if clocks differ, by how long we have seen it."""
        now, entry = self._ledger.clock.monotonic(), file.entry
        version, since = self._waiting.get(entry.key, (file.stamp, now))
        since = since if version == file.stamp else now
        if self._ledger.clock.now() - entry.modified_at >= QUIET_S or now - since >= QUIET_S:
            return True
        waiting[entry.key] = (file.stamp, since)
        return False

    def _take(self, file: _File) -> bool:
        """False: the file is changing while we read it; look again."""
        entry = file.entry
        target: _Target | InvalidFile
        try:
            target = self._target(file)
        except InvalidFile as error:
            target = error
        found = self._ledger.store.head(entry.key)
        if found is None or (found.etag, found.size) != (entry.etag, entry.size):
            return False
        problem = self._problem_of(entry.key, target)
        # A process with other pools may have accepted it, or one that found the batch to reuse.
        is_claimed = problem is not None and self._is_claimed(found)
        if problem is not None and not is_claimed:
            return outbox.refuse(self._ledger, found, str(problem))
        return self._claim(found, target) if isinstance(target, _Target) else True

    def _problem_of(self, key: str, target: _Target | InvalidFile) -> InvalidFile | None:
        """Why the file cannot become a batch now."""
        if isinstance(target, InvalidFile):
            return target
        create = target.create
        if create.reuse is None or create.reuse == AUTO:
            return None
        try:
            named(self._ledger, create.tenant, create.reuse)
        except (InvalidFile, NotFound) as error:
            return InvalidFile(
                f"{key}: in its options, {error}. The file is read again once its options are written again"
            )
        return None

    def _is_claimed(self, entry: Entry) -> bool:
        return self._ledger.store.head(claim_key(entry.key, entry.etag, entry.modified_at)) is not None

    def _claim(self, entry: Entry, target: _Target) -> bool:
        """False: the file is gone, or is another version.

        A claim is removed only when its version is gone for good. So the file is checked once more after its claim was
        read or written: if it is still this version, no claim of it was removed while this process slept.
        """
        key = claim_key(entry.key, entry.etag, entry.modified_at)
        found = load(self._ledger, key, ClaimRecord)
        while True:
            if found is None:
                written = swap(self._ledger, key, self._new_claim(entry), None)
                found = written.found if isinstance(written, Lost) else written
                continue
            claim = found.record
            if claim.is_made:
                return True
            if not outbox.is_there(self._ledger, claim):
                return False
            try:
                batch = self._create(claim, entry.size, target)
            except BatchDamaged:
                standing = load(self._ledger, keys.batch_key(claim.batch_id), BatchRecord)
                if standing is None:
                    raise
                # The create was abandoned, or the batch existed and was deleted.
                is_fence = retention.is_fence(standing.record)
                wanted = self._new_claim(entry) if is_fence else replace(claim, is_made=True)
            else:
                outbox.accept(self._ledger, batch)
                wanted = replace(claim, is_made=True)
            written = swap(self._ledger, key, wanted, found)
            found = written.found if isinstance(written, Lost) else written

    def _new_claim(self, entry: Entry) -> ClaimRecord:
        return ClaimRecord(
            key=entry.key,
            etag=entry.etag,
            modified_at=entry.modified_at,
            # Shorter than ids of batches of uploaded files, so that listings of those can skip it unread.
            batch_id=f"batch_{self._ledger.new_id()[:ID_DIGITS]}",
            created_at=self._ledger.clock.now(),
        )

    def _create(self, claim: ClaimRecord, size: int, target: _Target) -> BatchRecord:
        options = target.options
        defaults = Defaults(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            output_schema=self._schema_of(target.create.stage),
        )
        draft = target.create.draft(claim.batch_id, claim.created_at, self._routing, defaults)
        dropped = DroppedFile(
            key=claim.key,
            etag=claim.etag,
            modified_at=claim.modified_at,
            wants_parquet=options.results == "parquet",
            callback=options.callback,
            move_done=self._move_done if options.move_done is None else options.move_done,
        )
        made_of = source(dropped, size)
        rules = with_reuse(made_of.rules, self._reuse(target.create))
        return pending.create(self._ledger, draft, replace(made_of, rules=rules))

    def _reuse(self, create: CreateOptions) -> Reuse | None:
        try:
            return reuse_for(self._ledger, create)
        except (InvalidFile, NotFound):  # it was there when the file was claimed
            return Reuse(sources=(), notes=(f"no result of {create.reuse} was reused: it has expired or was deleted",))

    def _target(self, file: _File) -> _Target:
        """Raises: InvalidFile that says what is wrong with the name or the options."""
        key = file.entry.key
        path = key.removeprefix(INBOX_PREFIX)
        if len(path.rpartition("/")[2].encode()) > NAME_BYTES_MAX or len(path.encode()) > PATH_BYTES_MAX:
            raise InvalidFile(
                f"{key}: the name is too long for its results; rename it to at most {NAME_BYTES_MAX} bytes, "
                f"and {PATH_BYTES_MAX} with its folders"
            )
        if not path.lower().endswith(ENDINGS):
            if ending_of(key) in TEXT_ENDINGS:
                raise InvalidFile(refusal(detect(key, b""), PurePath(key).name, key))
            known = ".jsonl, .ndjson, .json, .csv or .tsv (also with .gz or .zst), or .parquet"
            raise InvalidFile(f"{key}: is not a request file; its name must end with {known}")
        if file.entry.size == 0:
            raise InvalidFile(f"{key}: is empty; it needs at least one request line")
        options = self._options(file.options)
        folder, slash, _ = path.partition("/")
        stage = options.stage or (folder if slash else None)
        deadline = None if options.deadline is None else options.deadline.timestamp()
        create = CreateOptions(priority=options.priority, deadline=deadline, reuse=options.reuse)
        if stage in self._routing.stages:
            return _Target(create=replace(create, stage=stage), options=options)
        if options.stage is not None:
            known = ", ".join(sorted(self._routing.stages))
            raise InvalidFile(f"{key}: stage {options.stage!r} in its options is unknown; use one of {known}")
        if not slash:
            raise InvalidFile(f"{key}: is not in a folder; put it into one of {self._folders()} under inbox/")
        for pool, models in self._routing.pools.items():
            if folder == pool or path.startswith(tuple(f"{model}/" for model in models)):
                return _Target(create=replace(create, pool=pool), options=options)
        raise InvalidFile(f"{key}: {folder!r} is not a stage, pool or model; put it into one of {self._folders()}")

    def _options(self, entry: Entry | None) -> InboxOptions:
        """Raises: InvalidFile."""
        if entry is None:
            return InboxOptions()
        if entry.size > OPTIONS_BYTES_MAX:
            raise InvalidFile(f"{entry.key}: is larger than {OPTIONS_BYTES_MAX:,} bytes; options need only a few lines")
        found = self._ledger.store.get(entry.key)
        return InboxOptions() if found is None else read_options(entry.key, found.data)

    def _folders(self) -> str:
        return ", ".join(sorted({*self._routing.stages, *self._routing.pools}))


def _is_skipped(key: str) -> bool:
    """Hidden; incomplete by its name: its writer will rename it; or an image or a recording of some request."""
    return (
        key.endswith(_UNFINISHED)
        or key.lower().endswith(_MEDIA)
        or any(segment.startswith(".") for segment in key.split("/"))
    )


def _stem(key: str) -> str:
    """The name without the ending of its format."""
    return next((key[: -len(ending)] for ending in ENDINGS if key.lower().endswith(ending)), key)
