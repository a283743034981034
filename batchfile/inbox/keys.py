"""The keys of dropped files and their results.

inbox/{where}/    dropped files; never written by us, and removed only to move a file to `done/`
inbox-claims/     which version of a dropped file became which batch
outbox/{where}/   the results, under the full name of the file
done/{where}/     files moved out of the inbox after they ran, if that was requested
"""

import hashlib

from batchfile.ledger.keys import batch_prefix

INBOX_PREFIX = "inbox/"
CLAIMS_PREFIX = "inbox-claims/"
OUTBOX_PREFIX = "outbox/"
DONE_PREFIX = "done/"

OUTBOX_POOL = "_outbox"  # the pseudo-pool of the record that says which process writes to the outbox


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


def outbox_task_key(batch_id: str) -> str:
    """Of the record that says which process writes to the outbox; it is deleted with the batch."""
    return f"{batch_prefix(batch_id)}outbox.json"
