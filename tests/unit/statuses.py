"""Statuses of batches, for tests."""

from typing import Any

from batchfile import BatchStatus


def status(**known: Any) -> BatchStatus:
    """Of an open batch of 3 requests, one of which has succeeded, unless it is said otherwise."""
    usual: dict[str, Any] = dict.fromkeys(BatchStatus.__struct_fields__, None)
    usual |= {"rejected": 0, "failures": (), "waiting_for": ()}
    usual |= dict.fromkeys(("errored", "canceled", "expired", "input_tokens", "output_tokens", "cached_tokens"), 0)
    usual |= {"batch_id": "batch_a", "state": "open", "total": 3, "succeeded": 1, "pending": 2, "usage_unknown": 0}
    usual |= {"created_at": 0.0, "updated_at": 0.0, "expires_at": 86400.0, "metadata": {}, "pools": {}}
    return BatchStatus(**usual | {"priority": 5, "dialect": "native", "reused": {}} | known)
