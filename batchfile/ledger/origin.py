"""What a batch is made of, as those know it who make batches of their own kind: see `files/stored_files.py` and
`inbox/records.py`.
"""

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from batchfile.errors import BatchDamaged
from batchfile.ledger.records import BatchRecord, InputRef, Origin, PlanRules

Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What `plan.pending` makes a batch of. The fields are those of the BatchRecord."""

    input: InputRef
    origin: Origin
    rules: PlanRules
    kept_s: float | None = None


def origin_of(kind: str, name: str, facts: object) -> Origin:
    """`facts`: a dataclass."""
    return Origin(kind=kind, name=name, facts=msgspec.to_builtins(facts))


def facts_of(batch: BatchRecord, kind: str, shape: type[Facts]) -> Facts | None:
    """For who knows the origins of this kind; None where the batch has another. Raises: BatchDamaged."""
    if batch.origin is None or batch.origin.kind != kind:
        return None
    try:
        return msgspec.convert(batch.origin.facts, shape)
    except msgspec.ValidationError as error:
        raise BatchDamaged(f"{batch.batch_id}: its stored {shape.__name__} cannot be read: {error}") from error
