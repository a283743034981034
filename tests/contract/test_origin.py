"""What a batch was made of: kept by every process that writes its record, read by those whose it is."""

import json
from dataclasses import replace

import pytest

from batchfile import Ledger
from batchfile.errors import BatchDamaged
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.inbox import (
    DroppedFile,
    FileInput,
    FileRecord,
    dropped_file,
    file_input,
    inbox_path,
    source_of_dropped,
    source_of_file,
)
from tests.helpers.ledger import (
    BatchRecord,
    InputRef,
    Origin,
    PendingInput,
    PlanRules,
    batches,
    ending,
    keys,
    load,
    purge,
    retention,
)
from tests.helpers.plan import pending

LINE = b'{"custom_id":"a","params":{"messages":[{"role":"user","content":"x"}]}}\n'
DROPPED = DroppedFile(key="inbox/m/a.jsonl", etag="e", modified_at=0.0, wants_parquet=True, callback="http://c/")
FILE = FileRecord(
    file_id="file-1",
    tenant="acme",
    filename="f",
    purpose="batch",
    key="files/a",
    size=1,
    sha256="s",
    created_at=0.0,
    expires_at=1.0,
)


@pytest.fixture
def ledger() -> Ledger:
    clock = ManualClock()
    return Ledger(store=MemoryStore(clock), clock=clock)


def make(ledger: Ledger, source: PendingInput) -> BatchRecord:
    draft = batches.Draft(
        batch_id="b", routing=RoutingTable(everything="m"), defaults=Defaults(), created_at=ledger.clock.now()
    )
    return pending.create(ledger, draft, source)


def stored(ledger: Ledger) -> BatchRecord:
    found = load(ledger, keys.batch_key("b"), BatchRecord)
    assert found is not None
    assert found.newer is None, "it may be rewritten"
    return found.record


def test_an_origin_that_no_code_knows_is_kept_through_all_of_a_batch_and_purged_with_it(ledger: Ledger) -> None:
    etag = ledger.store.put("elsewhere/a", LINE)
    origin = Origin(kind="mail", name="a", facts={"from": {"parts": [1, 2.5, None, {"deep": "er"}]}, "new": True})
    pinned = InputRef(key="elsewhere/a", etag=etag, size=len(LINE), sha256="", format="native")
    made = make(ledger, PendingInput(input=pinned, origin=origin, rules=PlanRules()))
    assert (file_input(made), dropped_file(made), inbox_path(made)) == (None, None, None)
    steps = [
        pending.plan(ledger, "b", runner="p"),
        batches.end(ledger, "b", "canceled"),
        ending.finish(ledger, "b", runner="r"),
    ]
    assert [step is not None for step in steps] == [True] * 3
    assert (stored(ledger).state, stored(ledger).origin) == ("ended", origin)
    assert retention.delete(ledger, "b") is not None
    assert stored(ledger).origin == origin
    purge(ledger, "b")
    assert (stored(ledger).origin, stored(ledger).rules) == (None, None)


def test_what_a_newer_process_adds_to_the_facts_is_kept_by_an_older_one(ledger: Ledger) -> None:
    batch = make(ledger, source_of_dropped(DROPPED, 9))
    document = json.loads(ledger.store.get(keys.batch_key("b")).data)  # type: ignore[union-attr]
    document["origin"]["facts"]["sent_by"] = {"name": "someone"}
    ledger.store.put(keys.batch_key("b"), json.dumps(document).encode())
    assert dropped_file(stored(ledger)) == DROPPED
    batches.end(ledger, "b", "canceled")
    assert batch.origin is not None
    assert stored(ledger).origin == replace(batch.origin, facts=document["origin"]["facts"])


def test_each_kind_of_origin_is_read_by_its_own_side_alone(ledger: Ledger) -> None:
    batch = make(ledger, source_of_dropped(DROPPED, 9))
    assert (dropped_file(batch), inbox_path(batch), file_input(batch)) == (DROPPED, DROPPED.key, None)
    ledger.store.put(FILE.key, b"x")
    made_of = source_of_file(ledger, FILE, endpoint="/v1/embeddings", requests_max=9, kept_s=5.0)
    batch = replace(batch, origin=made_of.origin)
    assert (dropped_file(batch), inbox_path(batch)) == (None, None)
    assert file_input(batch) == FileInput(file_id="file-1", endpoint="/v1/embeddings")


def test_facts_that_cannot_be_read_are_damage_to_who_acts_on_them_and_are_shown_all_the_same(ledger: Ledger) -> None:
    batch = make(ledger, source_of_dropped(DROPPED, 9))
    torn = replace(batch, origin=Origin(kind="inbox", name=DROPPED.key, facts={"key": 7}))
    with pytest.raises(BatchDamaged, match="b: its stored DroppedFile cannot be read"):
        dropped_file(torn)
    assert inbox_path(torn) == DROPPED.key
    torn = replace(batch, origin=Origin(kind="file", name="file-1", facts={}))
    assert file_input(torn) == FileInput(file_id="file-1", endpoint="")
