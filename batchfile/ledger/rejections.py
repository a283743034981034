"""Why the lines of a planned file were rejected, read back from what the planner stored of them."""

import re
from collections.abc import Iterator
from itertools import islice

from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.records import LineError, Plan, ShardRecord
from batchfile.lines.result import decode_part, decode_result

TOLD_MAX = 100

_PLACE = re.compile(r"line (\d+): ")


def told(ledger: Ledger, batch_id: str, plan: Plan) -> tuple[LineError, ...]:
    """The first rejected lines, in order, with the reason of each. Raises: StoreUnavailable, BatchDamaged."""
    return tuple(islice(_all(ledger, batch_id, plan), TOLD_MAX))


def _all(ledger: Ledger, batch_id: str, plan: Plan) -> Iterator[LineError]:
    for n in sorted(plan.pools.get(keys.REJECTED_POOL, {})):
        found = load(ledger, keys.shard_key(batch_id, keys.REJECTED_POOL, n), ShardRecord)
        lines = []
        for part in () if found is None else found.record.parts:
            stored = ledger.store.get(part.key)
            lines += [] if stored is None else decode_part(stored.data)
        for line in sorted(lines, key=lambda item: item.line):
            error = decode_result(line.result).error
            message = "" if error is None else error.message
            place = _PLACE.match(message)
            yield LineError(
                code="invalid_line",
                message=message[place.end() :] if place else message,
                line=int(place[1]) if place else None,
            )
