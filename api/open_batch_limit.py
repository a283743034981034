"""Has a tenant room for one more batch? Counts what it has open, planned or not, and looks at no other tenant.

What has ended is remembered, so that only the records of batches that may be open are read, and only near the limit.
"""

import threading
from contextlib import suppress

from batchfile.errors import BatchDamaged, StoreError
from batchfile.ledger import keys
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord

from .http.errors import Refusal

FULL_S = 2.0  # for so long a tenant that has reached its limit is refused without another look
RETRY_AFTER_S = 30


class Room:
    """`limit`: open batches of one tenant. Others may create at the same moment, so it may be passed by a few."""

    def __init__(self, ledger: Ledger, limit: int) -> None:
        self._ledger = ledger
        self._limit = limit
        self._lock = threading.Lock()
        self._ended: dict[str, set[str]] = {}  # tenant -> batches of its index that have ended
        self._full_until: dict[str, float] = {}  # monotonic

    def hear(self, batch: BatchRecord) -> None:
        """A batch has ended."""
        with self._lock:
            self._ended.setdefault(batch.tenant, set()).add(batch.batch_id)
            self._full_until.pop(batch.tenant, None)

    def check(self, tenant: str) -> None:
        """Raises: Refusal 429 where the tenant has its share of open batches; StoreError."""
        now = self._ledger.clock.monotonic()
        with self._lock:
            is_full = now < self._full_until.get(tenant, now)
        if not is_full and self._num_open(tenant) >= self._limit:
            is_full = True
            with self._lock:
                self._full_until[tenant] = now + FULL_S
        if is_full:
            raise Refusal(
                429,
                f"{self._limit} batches are open already, which is the limit; wait for one to end",
                {"Retry-After": str(RETRY_AFTER_S)},
            )

    def _num_open(self, tenant: str) -> int:
        """As far as the limit."""
        index = [keys.index_batch_id(entry.key) for entry in self._ledger.store.list(keys.index_prefix(tenant))]
        with self._lock:
            ended = self._ended[tenant] = self._ended.get(tenant, set()) & set(index)
            may_be_open = [batch_id for batch_id in index if batch_id not in ended]
        num_open = 0
        if len(may_be_open) < self._limit:
            return 0
        for batch_id, found in zip(may_be_open, in_order(self._ledger, self._read, may_be_open), strict=False):
            if found is not None and found.state in {"ended", "deleted"}:
                with self._lock:
                    self._ended.setdefault(tenant, set()).add(batch_id)
            elif found is not None:  # one without a record is being created, or was given up
                num_open += 1
                if num_open >= self._limit:
                    break
        return num_open

    def _read(self, batch_id: str) -> BatchRecord | None:
        """None: there is none, or it cannot be read, which must not keep its tenant from creating others."""
        with suppress(BatchDamaged, StoreError):
            found = load(self._ledger, keys.batch_key(batch_id), BatchRecord)
            return None if found is None else found.record
        return None
