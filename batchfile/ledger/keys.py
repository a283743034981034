"""Builds every key in the store. No other module does, and this one knows no store.

batches/{batch_id}/    batch.json, the input, the plan, shard records, parts, results, errors
queue/{pool}/          a marker for each batch with open shards: a hint that can be rebuilt
index/{tenant}/        a marker for each batch, newest first
bell/{pool}            changes when something happened: a hint
idempotency/           the batch of an idempotency key, a body or a local output
runners/{pool}/        the live runners: a hint, rewritten every few seconds
files/{tenant}/        stored files, newest first: a document and the bytes of each
uploads/{tenant}/      files that are uploaded in parts
inbox/{where}/         dropped files; never written by us, and removed only to move a file to `done/`
inbox-claims/          which version of a dropped file became which batch
outbox/{where}/        the results, under the full name of the file
done/{where}/          files moved out of the inbox after they ran, if that was requested
expiring/{time}/       the prefix (the rest of the key) to remove at that time
"""

import hashlib
import re

from batchfile.errors import InvalidRequest

REJECTED_POOL = "_rejected"  # the pseudo-pool whose shards hold what the planner rejected
REUSED_POOL = "_reused"  # and of those with results taken over from another batch
SETTLED_POOLS = frozenset({REJECTED_POOL, REUSED_POOL})  # no runner claims their shards
ASSEMBLY_POOL = "_assembly"  # the pseudo-pool of the record that says which process assembles
PLANNING_POOL = "_planning"  # and of the one that says which process plans
OUTBOX_POOL = "_outbox"  # and of the one that says which process writes to the outbox

_POOL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_UPLOAD_ID = re.compile(r"upload_[0-9a-f]{32}")
_PART_ID = re.compile(r"part_[0-9a-f]{32}")
_TIME_MS_DIGITS = 13
_NEWEST_FIRST = 10**_TIME_MS_DIGITS - 1


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


def outbox_turn_key(batch_id: str) -> str:
    return f"{batch_prefix(batch_id)}outbox.json"


def webhook_key(batch_id: str) -> str:
    """Under the batch's prefix, so that it is deleted with the batch."""
    return f"{batch_prefix(batch_id)}webhook.json"


def results_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}results-{nonce}.jsonl"


def errors_key(batch_id: str, nonce: str) -> str:
    return f"{batch_prefix(batch_id)}errors-{nonce}.jsonl"


QUEUE_PREFIX = "queue/"


def queue_prefix(pool: str) -> str:
    return f"{QUEUE_PREFIX}{pool}/"


def queue_key(pool: str, priority: int, created_at: float, batch_id: str) -> str:
    """`priority` 0 (first) to 9 (last); markers list by priority, then oldest first."""
    return f"{queue_prefix(pool)}{priority}-{_millis(created_at):0{_TIME_MS_DIGITS}d}-{batch_id}"


def queue_batch_id(key: str) -> str:
    return key.rsplit("/", 1)[1].split("-", 2)[2]


def queue_priority(key: str) -> int:
    return int(key.rsplit("/", 1)[1].split("-", 1)[0])


def notification_key(pool: str) -> str:
    return f"bell/{pool}"


def index_prefix(tenant: str) -> str:
    return f"index/{tenant}/"


INDEX_PREFIX = "index/"


def index_key(tenant: str, created_at: float, batch_id: str) -> str:
    """Lists newest first."""
    return f"{index_prefix(tenant)}{_NEWEST_FIRST - _millis(created_at):0{_TIME_MS_DIGITS}d}-{batch_id}"


def index_batch_id(key: str) -> str:
    return key.rsplit("/", 1)[1].split("-", 1)[1]


def index_tenant(key: str) -> str:
    return key.split("/", 2)[1]


def index_created_at(key: str) -> float:
    """Epoch seconds that give the same key again: the middle of the millisecond, so that no rounding changes it."""
    millis: int = _NEWEST_FIRST - int(key.rsplit("/", 1)[1].split("-", 1)[0])
    return (millis + 0.5) / 1000


IDEMPOTENCY_PREFIX = "idempotency/"


def idempotency_key(kind: str, value: str) -> str:
    """`kind` keeps a client's key, a body's hash and a local output path apart."""
    digest = hashlib.sha256(f"{kind}\n{value}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"{IDEMPOTENCY_PREFIX}{digest}.json"


RUNNERS_PREFIX = "runners/"


def presence_prefix(pool: str | None = None) -> str:
    """Of one pool's runners, or of all."""
    return RUNNERS_PREFIX if pool is None else f"{RUNNERS_PREFIX}{pool}/"


def presence_key(pool: str, runner_id: str) -> str:
    return f"{presence_prefix(pool)}{runner_id}.json"


def new_file_id(created_at: float, random: str) -> str:
    """`random`: 32 hex digits. Ids sort newest first."""
    return f"file-{_NEWEST_FIRST - _millis(created_at):011x}{random[:21]}"


def is_file_id(name: str) -> bool:
    return _FILE_ID.fullmatch(name) is not None


def is_upload_id(name: str) -> bool:
    return _UPLOAD_ID.fullmatch(name) is not None


def is_part_id(name: str) -> bool:
    return _PART_ID.fullmatch(name) is not None


def files_prefix(tenant: str) -> str:
    return f"files/{tenant}/"


def file_prefix(tenant: str, file_id: str) -> str:
    """Of the document and the bytes of a file. All ids have one length, so none is a prefix of another."""
    return f"{files_prefix(tenant)}{file_id}"


def file_key(tenant: str, file_id: str) -> str:
    return f"{file_prefix(tenant, file_id)}.json"


def file_data_key(tenant: str, file_id: str, nonce: str) -> str:
    return f"{file_prefix(tenant, file_id)}.data-{nonce}"


def file_id_of(key: str) -> str | None:
    """The id of the file whose document is `key`; None for any other key."""
    name, _, kind = key.rsplit("/", 1)[1].partition(".")
    return name if kind == "json" else None


def upload_prefix(tenant: str, upload_id: str) -> str:
    return f"uploads/{tenant}/{upload_id}"


def upload_key(tenant: str, upload_id: str) -> str:
    return f"{upload_prefix(tenant, upload_id)}/upload.json"


def upload_published_key(tenant: str, upload_id: str) -> str:
    """Says that the file's document was written: if the document is missing, it was deleted."""
    return f"{upload_prefix(tenant, upload_id)}/published"


def upload_part_key(tenant: str, upload_id: str, part_id: str) -> str:
    return f"{upload_prefix(tenant, upload_id)}/{part_id}"


EXPIRING_PREFIX = "expiring/"


def expiring_key(at: float, prefix: str) -> str:
    """Sorts by time, the earliest first."""
    return f"{EXPIRING_PREFIX}{_millis(at):0{_TIME_MS_DIGITS}d}/{prefix}"


def expiring_at(key: str) -> float:
    """Epoch seconds."""
    return int(key.split("/", 2)[1]) / 1000


def expiring_prefix(key: str) -> str:
    return key.split("/", 2)[2]


INBOX_PREFIX = "inbox/"
CLAIMS_PREFIX = "inbox-claims/"
OUTBOX_PREFIX = "outbox/"
DONE_PREFIX = "done/"


def claim_key(key: str, etag: str, modified_at: float) -> str:
    """Of one version of the file `key`. In whole seconds, the resolution that every request to a store reports."""
    digest = hashlib.sha256(f"{key}\n{etag}\n{int(modified_at)}".encode()).hexdigest()
    return f"{CLAIMS_PREFIX}{digest}.json"


def outbox_key(inbox_key: str, kind: str) -> str:
    """`inbox/a/b.jsonl` and `receipt.json` make `outbox/a/b.jsonl.receipt.json`."""
    return f"{OUTBOX_PREFIX}{inbox_key.removeprefix(INBOX_PREFIX)}.{kind}"


def done_key(inbox_key: str) -> str:
    """The key to which a file is moved after it ran."""
    return f"{DONE_PREFIX}{inbox_key.removeprefix(INBOX_PREFIX)}"


def _millis(seconds: float) -> int:
    return int(seconds * 1000)
