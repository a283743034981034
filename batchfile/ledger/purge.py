"""Remove a deleted batch now, rather than when the janitor would: its objects, and what its record says of it.

What stays until `tombstone_s` is that there was a batch of this id, whose, and when: it keeps a slow create of the same
id, a runner that slept and the cursors of listings from going wrong. Objects that such a process writes later are
removed with it.
"""

from dataclasses import replace

import structlog

from batchfile.ledger import batches, keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import update_batch
from batchfile.ledger.records import BatchRecord, InputRef
from batchfile.types import Counts, Defaults, RoutingTable, Usage

log = structlog.get_logger()


def purge(ledger: Ledger, batch_id: str) -> BatchRecord | None:
    """Of a deleted batch. Cut off anywhere, it is called again. None: there is no trace of it any more.

    Another batch, or one that is not deleted, stays as it is. Raises: StoreError.
    """

    def decide(record: BatchRecord) -> BatchRecord | None:
        bare = _bare(record)
        # A fence has nothing, and must stay known as such.
        return None if record.state != "deleted" or batches.is_fence(record) or bare == record else bare

    found = update_batch(ledger, keys.batch_key(batch_id), decide)
    if found is None:
        return None
    if found.record.state == "deleted":
        batches.remove_objects(ledger, found.record)
        log.info("batch.purged", batch_id=batch_id)
    return found.record


def _bare(record: BatchRecord) -> BatchRecord:
    """With nothing of what its user sent: no name of a file, no metadata, no digest, no message, no figures."""
    # With a key all the same: without one it would be the fence of a create that was given up.
    nothing = InputRef(key=keys.batch_prefix(record.batch_id), etag="", size=0, sha256="", format="native")
    return replace(
        record,
        input=nothing,
        plan_key="",
        total=0,
        routing=RoutingTable(),
        defaults=Defaults(),
        detail=None,
        stage=None,
        metadata={},
        origin=None,
        rules=None,
        problems=(),
        kept_s=None,
        results=None,
        errors=None,
        counts=Counts(),
        usage=Usage(),
        gpu_s=0.0,
    )
