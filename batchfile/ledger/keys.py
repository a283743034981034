"""Builds the keys of the protocol; it knows no store. `inbox/keys.py` and `files/keys.py` build those of their parts.

batches/{batch_id}/    batch.json, the input, the plan, shard records, parts, results, errors, reasons
queue/{pool}/          an entry for each batch with open shards: a hint that can be rebuilt
index/{tenant}/        an entry for each batch, newest first
notifications/{pool}   changes when something happened: a hint
idempotency/           the batch of an idempotency key, a body or a local output
runners/{pool}/        the live runners: a hint, rewritten every few seconds
expiring/{time}/       the prefix (the rest of the key) to remove at that time
"""

import hashlib
import re

from batchfile.errors import InvalidRequest

REJECTED_POOL = "_rejected"  # the pseudo-pool whose shards hold what the planner rejected
REUSED_POOL = "_reused"  # and of those with results taken over from another batch
PSEUDO_POOLS = frozenset({REJECTED_POOL, REUSED_POOL})  # no runner claims their shards
ASSEMBLY_POOL = "_assembly"  # the pseudo-pool of the record that says which process assembles
PLANNING_POOL = "_planning"  # and of the one that says which process plans

_POOL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_TIME_MS_DIGITS = 13
_TIME_MS_MAX = 10**_TIME_MS_DIGITS - 1


def check_batch_id(batch_id: str) -> str:
    """Return the id if it can be part of a key. Raises: InvalidRequest for anything else (say, a path)."""
    if not _BATCH_ID.fullmatch(batch_id):
        raise InvalidRequest(f"{batch_id[:80]!r} is not a batch id", type="not_found_error")
    return batch_id


def is_pool_name(name: str) -> bool:
    """Lower-case letters, digits, dots, underscores and dashes; at most 63; starts with a letter or digit."""
    return _POOL.fullmatch(name) is not None


def batch_prefix(batch_id: str) -> str:
    return f"batches/{check_batch_id(batch_id)}/"


def batch_key(batch_id: str) -> str:
    return f"{batch_prefix(batch_id)}batch.json"


def input_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}input-{nonce}.jsonl"


def custom_ids_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}custom-ids-{nonce}.jsonl"


def hashes_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}hashes-{nonce}.bin"


def plan_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}plan-{nonce}.json"


def shards_prefix(batch_id: str, pool: str | None = None) -> str:
    """Of one pool, or of all."""
    return f"{batch_prefix(batch_id)}shards/" + (f"{pool}/" if pool else "")


def shard_key(batch_id: str, pool: str, n: int) -> str:
    return f"{shards_prefix(batch_id, pool)}{n:06d}.json"


def parts_prefix(batch_id: str) -> str:
    return f"{batch_prefix(batch_id)}parts/"


def part_key(batch_id: str, pool: str, n: int, lease: str, k: int) -> str:
    return f"{parts_prefix(batch_id)}{pool}/{n:06d}/{lease}-{k}.jsonl"


def assembly_key(batch_id: str) -> str:
    return f"{batch_prefix(batch_id)}assembly.json"


def planning_key(batch_id: str) -> str:
    return f"{batch_prefix(batch_id)}planning.json"


def results_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}results-{nonce}.jsonl"


def errors_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}errors-{nonce}.jsonl"


def reasons_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}reasons-{nonce}.jsonl"


QUEUE_PREFIX = "queue/"


def queue_prefix(pool: str) -> str:
    return f"{QUEUE_PREFIX}{pool}/"


def queue_key(pool: str, priority: int, created_at: float, batch_id: str) -> str:
    """`priority` 0 (first) to 9 (last); entries list by priority, then oldest first."""
    return f"{queue_prefix(pool)}{priority}-{_millis(created_at):0{_TIME_MS_DIGITS}d}-{batch_id}"


def queue_pool(key: str) -> str:
    return key.removeprefix(QUEUE_PREFIX).partition("/")[0]


def queue_batch_id(key: str) -> str:
    return key.rsplit("/", 1)[1].split("-", 2)[2]


def queue_priority(key: str) -> int:
    return int(key.rsplit("/", 1)[1].split("-", 1)[0])


def notification_key(pool: str) -> str:
    return f"notifications/{pool}"


def index_prefix(tenant: str) -> str:
    return f"index/{tenant}/"


INDEX_PREFIX = "index/"


def index_key(tenant: str, created_at: float, batch_id: str) -> str:
    """Lists newest first."""
    return f"{index_prefix(tenant)}{newest_first(created_at):0{_TIME_MS_DIGITS}d}-{batch_id}"


def index_batch_id(key: str) -> str:
    return key.rsplit("/", 1)[1].split("-", 1)[1]


def index_tenant(key: str) -> str:
    return key.split("/", 2)[1]


def index_created_at(key: str) -> float:
    """Epoch seconds that give the same key again: the middle of the millisecond, so that no rounding changes it."""
    millis: int = _TIME_MS_MAX - int(key.rsplit("/", 1)[1].split("-", 1)[0])
    return (millis + 0.5) / 1000


IDEMPOTENCY_PREFIX = "idempotency/"


def idempotency_key(kind: str, value: str) -> str:
    """`kind` keeps a client's key, a body's hash and a local output path apart."""
    digest = hashlib.sha256(f"{kind}\n{value}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"{IDEMPOTENCY_PREFIX}{digest}.json"


RUNNERS_PREFIX = "runners/"


def heartbeat_prefix(pool: str | None = None) -> str:
    """Of one pool's runners, or of all."""
    return RUNNERS_PREFIX if pool is None else f"{RUNNERS_PREFIX}{pool}/"


def heartbeat_key(pool: str, runner_id: str) -> str:
    return f"{heartbeat_prefix(pool)}{runner_id}.json"


def heartbeat_pool(key: str) -> str:
    return key.removeprefix(RUNNERS_PREFIX).partition("/")[0]


EXPIRING_PREFIX = "expiring/"


def expiring_key(at: float, prefix: str) -> str:
    """Sorts by time, the earliest first."""
    return f"{EXPIRING_PREFIX}{_millis(at):0{_TIME_MS_DIGITS}d}/{prefix}"


def expiring_at(key: str) -> float:
    """Epoch seconds."""
    return int(key.split("/", 2)[1]) / 1000


def expiring_prefix(key: str) -> str:
    return key.split("/", 2)[2]


def newest_first(created_at: float) -> int:
    """Decreases with time, so that keys that contain it list newest first. At most 13 digits."""
    left: int = _TIME_MS_MAX - _millis(created_at)
    return left


def _millis(seconds: float) -> int:
    return int(seconds * 1000)
