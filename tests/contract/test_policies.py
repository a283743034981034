"""The bucket policies in deploy/policies: valid, about keys that exist, and enough for each role, of which nothing else
is allowed. Each role's real code runs over a store that refuses what its policy does not allow.
"""

import gzip
import inspect
import json
import random
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest
from moto.iam.policy_validation import IAMPolicyDocumentValidator

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import StoreError
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import RoutingTable
from tests.helpers.engine import engine_factory
from tests.helpers.inbox import Inbox, Janitor, files_keys, inbox_keys, stored_files, uploads
from tests.helpers.ledger import HeartbeatRecord, idempotency, retention, write_heartbeat
from tests.helpers.ledger import keys as ledger_keys
from tests.helpers.service import webhooks
from tests.helpers.store import PREFIX as PROOF_PREFIX
from tests.helpers.store import Store, WrappedStore, Writer, prove_conditions

T = TypeVar("T")

FOLDER = Path(__file__).parents[2] / "deploy" / "policies"
KEYS = (ledger_keys, inbox_keys, files_keys)  # the modules that build keys of their own folders
ROLES = ("api", "move-done", "reader", "runner", "uploader")
BUCKET = "arn:aws:s3:::BUCKET"
POOLS = RoutingTable(pools={"mistral": ("m",)})
ACTIONS = {
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
}


def statements(role: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{role}.json").read_text())["Statement"]
    return found


def resources(role: str) -> set[str]:
    return {resource for one in statements(role) for resource in one["Resource"]}


def allows(roles: tuple[str, ...], action: str, key: str) -> bool:
    """As IAM decides it, for statements that only allow; `key` is a prefix where names are listed."""
    is_list = action.startswith("s3:ListBucket")
    resource = BUCKET if is_list else f"{BUCKET}/PREFIX/{key}"
    for one in (one for role in roles for one in statements(role)):
        patterns = one.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (
            action in one["Action"]
            and any(fnmatchcase(resource, pattern) for pattern in one["Resource"])
            and (not is_list or any(fnmatchcase(f"PREFIX/{key}", pattern) for pattern in patterns))
        ):
            return True
    return False


ACTION_OF = {
    "get": "s3:GetObject",
    "head": "s3:GetObject",
    "stream": "s3:GetObject",
    "put": "s3:PutObject",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
}


class Guarded(WrappedStore):
    """A store in a bucket where only these roles' policies allow anything."""

    def __init__(self, inner: Store, *roles: str) -> None:
        super().__init__(inner)
        self._roles = roles

    def _check(self, action: str, key: str) -> None:
        if not allows(self._roles, action, key):
            raise StoreError(f"{action} of {key} is not allowed to {' and '.join(self._roles)}")

    def _call(self, verb: str, key: str, do: Callable[[], T]) -> T:
        if verb in ACTION_OF:
            self._check(ACTION_OF[verb], key)
        return do()

    def writer(self, key: str, *, is_new: bool = False) -> Writer:
        self._check("s3:PutObject", key)
        self._check("s3:AbortMultipartUpload", key)
        return self._inner.writer(key, is_new=is_new)

    def abort_uploads(self, prefix: str, *, older_s: float) -> int:
        self._check("s3:ListBucketMultipartUploads", prefix)
        return self._inner.abort_uploads(prefix, older_s=older_s)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)


class World:
    def __init__(self, *roles: str) -> None:
        self.clock = ManualClock()
        self.bucket = MemoryStore(self.clock)
        self.ledger = Ledger(store=Guarded(self.bucket, *roles), clock=self.clock, rng=random.Random(7))
        self.ended: list[str] = []

    def reconcile(self) -> None:
        janitor = Janitor(
            self.ledger,
            runner="s",
            inbox=Inbox(self.ledger, POOLS),
            on_ended=lambda batch: self.ended.append(batch.batch_id),
        )
        self.clock.sleep(10.0)
        janitor.tick()
        janitor.tick()

    def run(self) -> None:
        (entry,) = self.bucket.list(ledger_keys.queue_prefix("mistral"))
        batch_id = ledger_keys.queue_batch_id(entry.key)
        options = RunnerOptions(runner_id="r", pool="mistral", only=batch_id, is_janitor=False)
        Runner(self.ledger, engine_factory("echo", model="echo"), options).run()

    def names(self) -> list[str]:
        return [entry.key for entry in self.bucket.list("")]


def request(custom_id: str) -> bytes:
    params = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    return json.dumps({"custom_id": custom_id, "params": params}).encode() + b"\n"


def live(world: World) -> None:
    """From a dropped file to the end of its retention, by one role's janitors."""
    world.bucket.put("inbox/mistral/a.batch.toml", b'results = "parquet"')
    world.bucket.put("inbox/mistral/a.jsonl", request("a") + b"rubbish\n")
    world.bucket.put("inbox/nowhere/b.jsonl", request("b"))
    world.reconcile()
    world.run()
    world.reconcile()
    assert "outbox/mistral/a.jsonl.receipt.json" in world.names()
    assert "outbox/nowhere/b.jsonl.rejected.json" in world.names()
    world.bucket.delete("inbox/mistral/a.jsonl")
    for _ in range(12):
        world.clock.sleep(86400.0)
        world.reconcile()
    left = {key.split("/")[0] for key in world.names()}
    assert left <= {"inbox", "outbox", "notifications"}, left


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_is_valid_and_grants_no_more_than_whole_folders_of_objects(role: str) -> None:
    IAMPolicyDocumentValidator((FOLDER / f"{role}.json").read_text()).validate()
    for one in statements(role):
        assert one["Effect"] == "Allow"
        assert set(one["Action"]) <= ACTIONS
        is_list = all(action.startswith("s3:ListBucket") for action in one["Action"])
        assert is_list == (one["Resource"] == [BUCKET])


def folders_of_layout() -> set[str]:
    """The first segment of every key, as the modules that build them document it."""
    rows = [row for module in KEYS for row in (inspect.getdoc(module) or "").splitlines()]
    return {row.split("/")[0] for row in rows if "/" in row.split(" ")[0]}


def test_the_policies_are_about_the_folders_of_the_layout_and_about_all_of_them() -> None:
    wanted = folders_of_layout() | {PROOF_PREFIX.rstrip("/")}
    assert len(wanted) > 12
    granted = {path.split("/")[2] for role in ROLES for path in resources(role) if path != BUCKET}
    assert granted == wanted
    assert {
        name.split("/")[0]
        for module in KEYS
        for name in vars(module).values()
        if isinstance(name, str) and name.endswith("/")
    } < {*wanted}
    assert all(path == BUCKET or path.endswith("/*") for role in ROLES for path in resources(role))


@pytest.mark.parametrize("role", ["api", "runner"])
def test_the_policy_of_a_role_is_enough_for_the_life_of_a_dropped_file(role: str) -> None:
    live(World(role))


@pytest.mark.parametrize("role", ["api", "runner"])
def test_the_policy_of_a_role_is_enough_to_prove_the_store(role: str) -> None:
    prove_conditions(World(role).ledger.store)


def test_a_runner_may_announce_itself_and_sweep_what_others_left() -> None:
    world = World("runner")
    told = HeartbeatRecord(pool="mistral", runner_id="r", model="m", engine="echo", state="idle", started_at=1.0)
    write_heartbeat(world.ledger, told)
    leave_files(Ledger(store=world.bucket, clock=world.clock))
    world.clock.sleep(40 * 86400.0)
    world.reconcile()
    assert world.names() == []


def test_the_api_may_store_files_and_sweep_them() -> None:
    world = World("api")
    leave_files(world.ledger)
    world.clock.sleep(40 * 86400.0)
    world.reconcile()
    assert world.names() == []


def leave_files(ledger: Ledger) -> None:
    stored_files.store_file(ledger, "t", [b"{}"], filename="f", purpose="batch", kept_s=9.0, bytes_max=9)
    uploads.begin(ledger, "t", filename="f", mime_type="text/plain", purpose="batch", size=9, file_kept_s=9.0)
    idempotency.get_or_create(ledger, kind="key", tenant="t", value="v", digest="d", batch_id="batch_never")


def test_the_api_may_tell_of_an_end() -> None:
    world = World("api")
    world.bucket.put("inbox/mistral/a.jsonl", b"rubbish\n")
    world.reconcile()
    (batch_id,) = world.ended
    assert webhooks.deliver(world.ledger, batch_id, lambda event: None) is None
    assert retention.delete(world.ledger, batch_id) is not None


@pytest.mark.parametrize("role", ["api", "runner"])
def test_nothing_leaves_the_inbox_without_the_policy_that_lets_it(role: str) -> None:
    for roles, is_left in (((role,), True), ((role, "move-done"), False)):
        world = World(*roles)
        world.bucket.put("inbox/mistral/a.batch.toml", b"move_done = true")
        world.bucket.put("inbox/mistral/a.jsonl", request("a"))
        world.reconcile()
        world.run()
        world.reconcile()
        assert ("inbox/mistral/a.jsonl" in world.names()) == is_left
        assert ("done/mistral/a.jsonl" in world.names()) == (not is_left)
        assert "outbox/mistral/a.jsonl.receipt.json" in world.names()


class Killed(BaseException):
    """Where a process died."""


@pytest.mark.parametrize("roles", [("api",), ("runner",), ("api", "move-done"), ("runner", "move-done")])
def test_a_receipt_is_written_however_the_file_left_the_inbox(
    roles: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of ours, killed right after it; or by its owner, once all was read."""
    for is_owner in (False, True):
        world = World(*roles)
        world.bucket.put("inbox/mistral/a.batch.toml", b"move_done = true")
        world.bucket.put("inbox/mistral/a.jsonl.gz", gzip.compress(request("a")))
        world.reconcile()
        if is_owner:
            world.bucket.delete("inbox/mistral/a.jsonl.gz")
        with monkeypatch.context() as patched:
            patched.setattr(world.bucket, "put", dying_at_receipts(world.bucket.put))
            with pytest.raises(Killed):
                world.run()
        world.clock.sleep(world.ledger.limits.lease_ttl_s)
        world.reconcile()
        found = world.bucket.get("outbox/mistral/a.jsonl.gz.receipt.json")
        assert found is not None
        is_moved = "move-done" in roles and not is_owner
        assert json.loads(found.data)["input"]["moved_to"] == ("done/mistral/a.jsonl.gz" if is_moved else None)


def dying_at_receipts(put: Callable[..., str]) -> Callable[..., str]:
    def dying(key: str, data: bytes, **more: Any) -> str:
        if key.endswith("receipt.json"):
            raise Killed
        return put(key, data, **more)

    return dying


def test_who_drops_files_sees_nothing_and_who_collects_changes_nothing() -> None:
    every = [f"{folder}/x" for folder in folders_of_layout()]
    asked = [(action, key) for action in ACTIONS for key in every]
    may = {role: {one for one in asked if allows((role,), *one)} for role in ("uploader", "reader")}
    assert {action for action, _ in may["uploader"]} == {
        "s3:PutObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    }
    assert {key for _, key in may["uploader"]} == {"inbox/x"}
    assert may["reader"] == {("s3:GetObject", "outbox/x"), ("s3:ListBucket", "outbox/x")}
    assert not any(allows((role,), "s3:PutObject", "inbox/x") for role in ("api", "runner", "move-done"))
    assert not any(allows(("runner",), "s3:PutObject", f"{folder}/x") for folder in ("files", "uploads", "idempotency"))


def test_a_server_takes_the_lifecycle_rules_and_none_of_them_removes_what_is_in_work(moto_url: str) -> None:
    rules = json.loads((FOLDER / "lifecycle.json").read_text())
    client = boto3.client("s3", endpoint_url=moto_url, region_name="us-east-1")
    client.create_bucket(Bucket="rules")
    client.put_bucket_lifecycle_configuration(Bucket="rules", LifecycleConfiguration=rules)
    taken = client.get_bucket_lifecycle_configuration(Bucket="rules")["Rules"]
    client.close()
    assert [rule["ID"] for rule in taken] == [rule["ID"] for rule in rules["Rules"]]
    expired = {rule["Filter"]["Prefix"] for rule in taken if "Expiration" in rule}
    assert expired == {f"PREFIX/{name}" for name in (inbox_keys.OUTBOX_PREFIX, inbox_keys.DONE_PREFIX, PROOF_PREFIX)}
