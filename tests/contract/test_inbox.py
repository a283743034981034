"""Dropped files: each version is exactly one batch, whichever process looks, dies or races."""

import hashlib
import json
import os
import random
import sys
import threading
from pathlib import Path

import pytest
import structlog

from batchfile import Ledger
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from tests.contract.inbox_kit import POOLS, World, native, still, world
from tests.helpers.inbox import ClaimRecord, Inbox, Janitor, claim_key, scan
from tests.helpers.ledger import SetAside, decode, encode, retention
from tests.helpers.store import DirectoryStore

if sys.version_info >= (3, 14):
    pass
else:
    pass
from tests.contract.inbox_kit import Killed, made_and_died

__all__ = ["still", "world"]


def test_a_dropped_file_is_planned_where_it_lies_and_its_answers_lie_beside_its_path(world: World) -> None:
    data = world.drop("email/deep/a.jsonl", *(native(f"r{n}", f"text {n}") for n in range(70)))
    world.janitor.tick()
    batch = world.only()
    assert (batch.state, batch.stage, batch.total) == ("open", "email", 70)
    assert (batch.input.key, batch.input.sha256) == ("inbox/email/deep/a.jsonl", hashlib.sha256(data).hexdigest())
    assert [e.key for e in world.store.list(f"batches/{batch.batch_id}/input")] == []
    assert world.document("email/deep/a.jsonl.status.json")["state"] == "open"
    ended = world.run(batch)
    world.janitor.tick()
    results = world.out("email/deep/a.jsonl.results.jsonl")
    assert results is not None
    assert [json.loads(line)["custom_id"] for line in results.splitlines()] == [f"r{n}" for n in range(70)]
    receipt = world.document("email/deep/a.jsonl.receipt.json")
    assert receipt["batch_id"] == batch.batch_id
    assert receipt["results"] == {
        "path": "outbox/email/deep/a.jsonl.results.jsonl",
        "bytes": len(results),
        "sha256": hashlib.sha256(results).hexdigest(),
        "lines": 70,
    }
    assert receipt["errors"] is None
    assert receipt["input"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert receipt["counts"]["succeeded"] == 70
    assert receipt["usage"]["output_tokens"] == ended.usage.output_tokens > 0
    assert world.document("email/deep/a.jsonl.status.json")["state"] == "ended"
    assert world.outbox() == [f"email/deep/a.jsonl.{kind}" for kind in ("receipt.json", "results.jsonl", "status.json")]
    found = world.store.get("inbox/email/deep/a.jsonl")
    assert found is not None
    assert found.data == data


def test_a_file_is_one_batch_however_often_it_is_looked_at(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a"))
    for n in range(3):
        world.janitor.tick()
        world.new_janitor(f"new-{n}").tick()
    assert len(world.batches()) == 1


def test_janitors_that_race_over_many_files_make_one_batch_of_each(world: World) -> None:
    names = [f"mistral/{n % 3}/f{n}.jsonl" for n in range(40)]
    for name in names:
        world.drop(name, native(name))
    begin = threading.Barrier(2)
    failed: list[BaseException] = []

    def reconcile(seed: int) -> None:
        janitor = world.new_janitor(f"janitor-{seed}", world.new_ledger(seed))
        begin.wait(30)
        try:
            janitor.tick()
            janitor.tick()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=reconcile, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert failed == []
    made = world.batches()
    assert sorted(batch.input.key for batch in made) == sorted(f"inbox/{name}" for name in names)
    assert {batch.state for batch in made} == {"open"}


def test_a_file_that_is_replaced_while_it_runs_is_a_new_batch_and_nothing_mixes(world: World) -> None:
    world.drop("mistral/a.jsonl", native("old"))
    world.janitor.tick()
    old = world.only()
    world.drop("mistral/a.jsonl", native("new-1"), native("new-2"))
    world.janitor.tick()
    world.janitor.tick()
    first, second = world.batches()
    assert (first.batch_id, first.state, first.reason) == (old.batch_id, "ended", "input_changed")
    assert first.counts.errored == 1
    world.run(second)
    world.janitor.tick()
    results = world.out("mistral/a.jsonl.results.jsonl")
    assert results is not None
    assert [json.loads(line)["custom_id"] for line in results.splitlines()] == ["new-1", "new-2"]
    assert world.document("mistral/a.jsonl.receipt.json")["batch_id"] == second.batch_id
    assert world.document("mistral/a.jsonl.status.json")["batch_id"] == second.batch_id


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nowhere/a.jsonl", "is not a stage, pool or model; put it into one of email, llama, mistral"),
        ("a.jsonl", "is not in a folder"),
        ("mistral/a.docx", "its name must end with"),
        ("mistral/a.txt", "a.txt: is plain text, which `batchfile run a.txt -o answers.jsonl` runs"),
        ("mistral/empty.jsonl", "is empty"),
    ],
)
def test_a_file_in_the_wrong_place_is_rejected_with_the_reason(world: World, path: str, why: str) -> None:
    world.drop(path, *([] if "empty" in path else [native("a")]))
    world.janitor.tick()
    world.new_janitor("t").tick()
    assert world.batches() == []
    assert world.outbox() == [f"{path}.rejected.json"]
    told = world.document(f"{path}.rejected.json")
    assert why in told["message"]
    assert told["input"]["path"] == f"inbox/{path}"


def test_a_file_without_a_request_is_rejected_and_accepted_once_it_has_one(world: World) -> None:
    world.drop("mistral/a.jsonl", b"\n\n")
    world.janitor.tick()
    told = world.document("mistral/a.jsonl.rejected.json")
    assert "contains no requests" in told["message"]
    assert told["batch_id"] == world.only().batch_id
    world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    world.run(world.batches()[-1])
    assert world.out("mistral/a.jsonl.rejected.json") is None
    assert world.document("mistral/a.jsonl.receipt.json")["counts"]["succeeded"] == 1


def test_what_is_hidden_or_not_yet_whole_by_its_name_is_passed_over(world: World) -> None:
    for path in (
        "mistral/.a.jsonl.Xy12",
        "mistral/.hidden/a.jsonl",
        "mistral/a.jsonl.part",
        "mistral/b.jsonl.tmp",
        "mistral/p/a.JPG",
    ):
        world.drop(path, native("a"))
    world.janitor.tick()
    assert (world.batches(), world.outbox()) == ([], [])


def test_a_file_that_is_still_being_written_waits_until_it_is_quiet(still: World) -> None:
    still.drop("mistral/a.jsonl", native("a"))
    still.janitor.tick()
    assert still.batches() == []
    assert still.clock is not None
    still.clock.sleep(scan.QUIET_S - 1)
    still.drop("mistral/a.jsonl", native("a"), native("b"))
    still.clock.sleep(scan.QUIET_S - 1)
    still.janitor.tick()
    assert still.batches() == []
    still.clock.sleep(1)
    still.janitor.tick()
    assert still.only().total == 2


def test_a_file_from_the_future_waits_by_our_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ahead = ManualClock(), ManualClock()
    ahead.sleep(3600.0)
    world = World(MemoryStore(ahead), clock)
    world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    assert world.batches() == []
    clock.sleep(scan.QUIET_S)
    world.janitor.tick()
    assert world.only().state == "open"


def test_retention_never_makes_an_old_file_a_new_batch(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", b"\n")
    for _ in range(20):
        still.clock.sleep(86400.0)
        still.janitor.tick()
        still.new_janitor("new").tick()
    assert list(still.store.list("batches/")) == list(still.store.list("index/")) == []
    assert len(list(still.store.list("inbox-claims/"))) == 1
    assert still.outbox() == ["mistral/a.jsonl.rejected.json", "mistral/a.jsonl.status.json"]


def test_a_claim_goes_only_when_its_file_is_gone_for_days(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    still.store.delete("inbox/mistral/a.jsonl")
    still.clock.sleep(6 * 86400.0)
    still.janitor.tick()
    assert len(list(still.store.list("inbox-claims/"))) == 1
    still.clock.sleep(2 * 86400.0)
    still.janitor.tick()
    assert list(still.store.list("inbox-claims/")) == []


def test_a_crash_at_any_write_leaves_one_batch_and_the_same_outbox() -> None:
    def play(kill_at: int | None) -> tuple[list[str], dict[str, bytes], bool]:
        clock = ManualClock()
        inner = MemoryStore(clock)
        world = World(inner, clock)
        world.drop("mistral/a.jsonl", b"\n")
        clock.sleep(10.0)

        def die(number: int, verb: str, key: str, phase: str) -> None:
            if number == kill_at and phase == "after":
                raise Killed

        faulty = FaultyStore(inner, on_call=die)
        was_killed = False
        try:
            ledger = Ledger(store=faulty, clock=clock, rng=random.Random(3))
            Janitor(ledger, runner="dies", inbox=Inbox(ledger, POOLS)).tick()
        except Killed:
            was_killed = True
        after = world.new_janitor("after")
        for _ in range(3):
            clock.sleep(world.ledger.limits.lease_ttl_s)
            after.tick()
        made = [f"{batch.state} {batch.reason}" for batch in world.batches()]
        (claim,) = inner.list("inbox-claims/")
        found = inner.get(claim.key)
        assert found is not None
        assert decode(found.data, ClaimRecord).is_made
        outs = {}
        for entry in inner.list("outbox/"):
            read = inner.get(entry.key)
            assert read is not None
            outs[entry.key] = json.dumps({**json.loads(read.data), "batch_id": ""}).encode()
        return made, outs, was_killed

    made, outs, _ = play(None)
    assert made == ["ended failed"]
    kill_at, was_killed = 1, True
    while was_killed:
        again, outs_again, was_killed = play(kill_at)
        assert (again, sorted(outs_again)) == (made, sorted(outs)), kill_at
        kill_at += 1
    assert kill_at > 8


def test_a_create_that_was_given_up_before_it_came_to_be_is_made_again(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    entry = still.store.head("inbox/mistral/a.jsonl")
    assert entry is not None
    claim = ClaimRecord(
        key=entry.key, etag=entry.etag, modified_at=entry.modified_at, batch_id="batch_lost", created_at=1.0
    )
    key = claim_key(entry.key, entry.etag, entry.modified_at)
    retention.fence_abandoned(still.ledger, "batch_lost")

    still.store.put(key, encode(claim))
    still.janitor.tick()
    assert still.only().state == "open"
    assert still.only().batch_id != "batch_lost"


def test_a_batch_that_can_not_be_read_is_not_made_again(still: World) -> None:
    """A newer version of ours wrote it, say, and was cut off before its claim said that it was made."""
    made_and_died(still)
    (batch,) = (entry.key for entry in still.store.list("batches/"))
    still.store.put(batch, b'{"version": 99}')
    still.new_janitor("older").tick()
    assert [entry.key for entry in still.store.list("batches/")] == [batch]


@pytest.mark.parametrize(
    ("path", "fits"), [(f"mistral/{'n' * 233}.jsonl", True), (f"mistral/{'n' * 234}.jsonl", False)]
)
def test_a_name_that_leaves_no_room_for_what_comes_of_it_does_not_run(world: World, path: str, fits: bool) -> None:
    world.store.put(f"inbox/{path.removesuffix('.jsonl')}.batch.toml", b'results = "parquet"')
    world.drop(path, native("a"))
    world.janitor.tick()
    if not fits:
        assert world.batches() == []
        assert "at most 239 bytes" in world.document(f"{path}.rejected.json")["message"]
        return
    world.run(world.only())
    world.janitor.tick()
    assert world.out(f"{path}.results.parquet") is not None
    assert world.out(f"{path}.receipt.json") is not None


def test_a_name_for_which_not_even_a_rejection_fits_does_not_run(tmp_path: Path) -> None:
    world = World(DirectoryStore(tmp_path / "store", fsync=False))
    path = f"mistral/{'n' * 245}.jsonl"
    world.drop(path, native("a"))
    os.utime(tmp_path / "store" / "inbox" / path, (1.0, 1.0))
    with structlog.testing.capture_logs() as events:
        for _ in range(2):
            world.janitor.tick()
    assert world.batches() == []
    assert [event["key"] for event in events if event["event"] == "inbox.failed"] == [f"inbox/{path}"]


def test_a_file_that_the_store_refuses_is_counted_among_what_its_process_has_set_aside(tmp_path: Path) -> None:
    world = World(DirectoryStore(tmp_path / "store", fsync=False))
    path = f"mistral/{'n' * 245}.jsonl"
    world.drop(path, native("a"))
    os.utime(tmp_path / "store" / "inbox" / path, (1.0, 1.0))
    aside = SetAside(world.ledger)
    Janitor(world.ledger, runner="s", inbox=Inbox(world.ledger, POOLS), aside=aside).tick()
    assert list(aside.reasons()) == [f"inbox/{path}"]
