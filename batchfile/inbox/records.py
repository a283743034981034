"""The stored records of files in the inbox, and what a batch keeps of its file."""

from dataclasses import dataclass

from batchfile.ledger.records import VERSION, BatchRecord, InputRef, PendingInput, PlanRules, facts_of, origin_of

_KIND = "inbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedFile:
    """The file in the inbox that a batch is made from, as it was claimed.

    `modified_at`: epoch seconds, by the store's clock. `wants_parquet`, `callback`, `move_done`: from its options.
    """

    key: str
    etag: str
    modified_at: float
    wants_parquet: bool = False
    callback: str | None = None
    move_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord:
    """The batch of one version of a file in the inbox. `created_at`: the batch's.

    `is_made`: the batch has existed; this version never becomes a batch again, whatever happened to it since.
    """

    key: str
    etag: str
    modified_at: float
    batch_id: str
    created_at: float
    is_made: bool = False
    version: int = VERSION


def dropped_file(batch: BatchRecord) -> DroppedFile | None:
    """None if the batch was not made from a file in the inbox. Raises: BatchDamaged."""
    return facts_of(batch, _KIND, DroppedFile)


def inbox_path(batch: BatchRecord) -> str | None:
    """The key of that file."""
    return batch.origin.name if batch.origin is not None and batch.origin.kind == _KIND else None


def source(dropped: DroppedFile, size: int) -> PendingInput:
    """The source of a batch. `size`: of the file, in bytes."""
    return PendingInput(
        input=InputRef(key=dropped.key, etag=dropped.etag, size=size, sha256="", format="native"),
        origin=origin_of(_KIND, dropped.key, dropped),
        rules=PlanRules(),
    )
