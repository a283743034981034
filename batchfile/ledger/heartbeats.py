"""Who works now: each runner rewrites its own document every few seconds. Read it, write it, sweep it.

A hint for people, autoscalers and dashboards; no claim depends on it. Ages are by the store's own clock.
"""

from contextlib import suppress

from batchfile.errors import BatchDamaged, StoreError
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import PresenceRecord, decode, encode
from batchfile.ledger.set_aside import UNANSWERED_MAX
from batchfile.store.base import Entry

PRESENCE_S = 60.0  # a document not rewritten for this long is nobody's
SWEEP_AFTER_S = 24 * 3600.0


def write_presence(ledger: Ledger, record: PresenceRecord) -> None:
    """Raises: StoreError; nothing is lost by ignoring it."""
    ledger.store.put(keys.presence_key(record.pool, record.runner_id), encode(record))


def remove_presence(ledger: Ledger, pool: str, runner_id: str) -> None:
    """At a clean end. Best effort: what stays is nobody's after a minute."""
    with suppress(StoreError):
        ledger.store.delete(keys.presence_key(pool, runner_id))


def read_presence(ledger: Ledger, pool: str | None = None) -> list[PresenceRecord]:
    """The living runners, by pool and id. Costs a listing and a read for each.

    Left out: those whose document cannot be read. Raises: StoreError where none of them can.
    """
    found, refusals = list[PresenceRecord](), list[StoreError]()
    store_now = float("-inf")
    for entry in _newest_first(ledger, pool):
        if store_now - entry.modified_at > PRESENCE_S:
            break
        try:
            document = ledger.store.get(entry.key)
        except StoreError as error:
            refusals.append(error)
            if len(refusals) == UNANSWERED_MAX and not found:
                break
            continue
        if document is None:
            continue
        store_now = max(store_now, document.read_at)
        if document.age_s <= PRESENCE_S:
            with suppress(BatchDamaged):  # a newer version's, or no presence at all
                found.append(decode(document.data, PresenceRecord))
    if refusals and not found:
        raise refusals[0]
    return sorted(found, key=lambda record: (record.pool, record.runner_id))


def sweep_presence(ledger: Ledger) -> int:
    """Remove what runners that were killed left behind a day ago; how many. Raises: StoreUnavailable."""
    entries = _newest_first(ledger, None)
    newest = ledger.store.get(entries[0].key) if entries else None
    if newest is None:
        return 0
    old = [entry for entry in entries if newest.read_at - entry.modified_at > SWEEP_AFTER_S]
    for entry in old:
        ledger.store.delete(entry.key)
    return len(old)


def _newest_first(ledger: Ledger, pool: str | None) -> list[Entry]:
    entries = ledger.store.list(keys.presence_prefix(pool))
    return sorted(entries, key=lambda entry: entry.modified_at, reverse=True)
