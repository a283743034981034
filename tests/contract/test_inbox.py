"""Dropped files: each version is exactly one batch, whoever looks, dies or races."""

import gzip
import hashlib
import io
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog

from batchfile.clock import ManualClock
from batchfile.errors import RecordDamaged, StoreUnavailable
from batchfile.inbox import scan
from batchfile.inbox.records import ClaimRecord
from batchfile.inbox.scan import Inbox
from batchfile.janitor import Janitor
from batchfile.ledger import batches, damage, ending, keys, retention
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import Planned
from batchfile.ledger.records import decode, encode
from batchfile.ledger.retention import purge
from batchfile.ledger.set_aside import SetAside
from batchfile.lines import converter
from batchfile.plan import pending
from batchfile.plan.planner import plan_input
from batchfile.store.directory import DirectoryStore
from batchfile.store.memory import MemoryStore
from batchfile.testing.faulty_store import FaultyStore
from tests.contract.inbox_kit import POOLS, World, native, still, world

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["still", "world"]


class Killed(BaseException):
    """Where a process died."""


def test_a_dropped_file_is_planned_where_it_lies_and_its_answers_lie_beside_its_path(world: World) -> None:
    data = world.drop("email/deep/a.jsonl", *(native(f"r{n}", f"text {n}") for n in range(70)))
    world.janitor.tick()
    batch = world.only()
    assert (batch.state, batch.stage, batch.total) == ("open", "email", 70)
    assert (batch.input.key, batch.input.sha256) == ("inbox/email/deep/a.jsonl", hashlib.sha256(data).hexdigest())
    assert [e.key for e in world.store.list(f"batches/{batch.batch_id}/input")] == []
    assert world.told("email/deep/a.jsonl.status.json")["state"] == "open"
    ended = world.run(batch)
    world.janitor.tick()
    results = world.out("email/deep/a.jsonl.results.jsonl")
    assert results is not None
    assert [json.loads(line)["custom_id"] for line in results.splitlines()] == [f"r{n}" for n in range(70)]
    receipt = world.told("email/deep/a.jsonl.receipt.json")
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
    assert world.told("email/deep/a.jsonl.status.json")["state"] == "ended"
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
    assert world.told("mistral/a.jsonl.receipt.json")["batch_id"] == second.batch_id
    assert world.told("mistral/a.jsonl.status.json")["batch_id"] == second.batch_id


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nowhere/a.jsonl", "is no stage, pool or model; put it into one of email, llama, mistral"),
        ("a.jsonl", "lies in no folder"),
        ("mistral/a.csv", "its name must end with"),
        ("mistral/empty.jsonl", "is empty"),
    ],
)
def test_a_file_in_the_wrong_place_is_rejected_with_the_reason(world: World, path: str, why: str) -> None:
    world.drop(path, *([] if "empty" in path else [native("a")]))
    world.janitor.tick()
    world.new_janitor("t").tick()
    assert world.batches() == []
    assert world.outbox() == [f"{path}.rejected.json"]
    told = world.told(f"{path}.rejected.json")
    assert why in told["message"]
    assert told["input"]["path"] == f"inbox/{path}"


def test_a_file_without_a_request_is_rejected_and_accepted_once_it_has_one(world: World) -> None:
    world.drop("mistral/a.jsonl", b"\n\n")
    world.janitor.tick()
    told = world.told("mistral/a.jsonl.rejected.json")
    assert "holds no request" in told["message"]
    assert told["batch_id"] == world.only().batch_id
    world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    world.run(world.batches()[-1])
    assert world.out("mistral/a.jsonl.rejected.json") is None
    assert world.told("mistral/a.jsonl.receipt.json")["counts"]["succeeded"] == 1


def test_what_is_hidden_or_not_yet_whole_by_its_name_is_passed_over(world: World) -> None:
    for path in ("mistral/.a.jsonl.Xy12", "mistral/.hidden/a.jsonl", "mistral/a.jsonl.part", "mistral/b.jsonl.tmp"):
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
    key = keys.claim_key(entry.key, entry.etag, entry.modified_at)
    retention.fence_abandoned(still.ledger, "batch_lost")

    still.store.put(key, encode(claim))
    still.janitor.tick()
    assert still.only().state == "open"
    assert still.only().batch_id != "batch_lost"


def test_a_batch_that_can_not_be_read_is_not_made_again(still: World) -> None:
    """A newer version of ours wrote it, say, and was cut off before its claim said that it was made."""
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)

    def die(number: int, verb: str, key: str, phase: str) -> None:
        if phase == "after" and key.endswith("/batch.json"):
            raise Killed

    faulty = Ledger(store=FaultyStore(still.store, on_call=die), clock=still.clock, rng=random.Random(3))
    with pytest.raises(Killed):
        Inbox(faulty, POOLS).look(SetAside(faulty))
    (batch,) = (entry.key for entry in still.store.list("batches/"))
    still.store.put(batch, b'{"version": 99}')
    still.new_janitor("older").tick()
    assert [entry.key for entry in still.store.list("batches/")] == [batch]


def test_a_file_that_is_removed_while_it_is_planned_ends_its_batch_as_changed(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)

    def remove_first(ledger: Ledger, *which: Any, **how: Any) -> Planned:
        still.store.delete("inbox/mistral/a.jsonl")
        return plan_input(ledger, *which, **how)

    monkeypatch.setattr(pending, "plan_input", remove_first)
    for _ in range(2):
        still.janitor.tick()
    assert (still.only().state, still.only().reason) == ("ended", "input_changed")


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_batch_that_was_deleted_before_its_claim_said_that_it_was_made_is_not_made_again(
    still: World, is_damaged: bool
) -> None:
    """What is left of it is as bare as what stands for a create that was given up."""
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)

    def die(number: int, verb: str, key: str, phase: str) -> None:
        if phase == "after" and key.endswith("/batch.json"):
            raise Killed

    faulty = Ledger(store=FaultyStore(still.store, on_call=die), clock=still.clock, rng=random.Random(3))
    with pytest.raises(Killed):
        Inbox(faulty, POOLS).look(SetAside(faulty))
    made = still.only()
    if is_damaged:
        place = damage.place_of(still.ledger, "default", made.batch_id)
        still.store.put(keys.batch_key(made.batch_id), b"")
        with pytest.raises(RecordDamaged) as raised:
            batches.read_batch(still.ledger, made.batch_id)
        assert place is not None
        damage.delete(still.ledger, raised.value, place)
    else:
        batches.end(still.ledger, made.batch_id, "canceled")
        ending.finish(still.ledger, made.batch_id, runner="r")
        retention.delete(still.ledger, made.batch_id)
        purge(still.ledger, made.batch_id)
    Inbox(still.ledger, POOLS).look(SetAside(still.ledger))
    assert still.batches() == []
    (claim,) = still.store.list("inbox-claims/")
    found = still.store.get(claim.key)
    assert found is not None
    assert decode(found.data, ClaimRecord).is_made


@pytest.mark.parametrize(("how", "data", "options"), [("empty", [], b""), ("wrong options", [native("b")], b"x = 1")])
def test_a_version_that_is_refused_unread_leaves_nothing_of_the_version_before(
    world: World, how: str, data: list[Any], options: bytes
) -> None:
    world.drop("mistral/a.jsonl", native("a"), b"rubbish\n")
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    assert len(world.outbox()) == 4
    world.store.put("inbox/mistral/a.batch.toml", options)
    world.drop("mistral/a.jsonl", *data)
    for _ in range(2):
        world.janitor.tick()
    assert world.outbox() == ["mistral/a.jsonl.rejected.json"]


def test_options_that_are_broken_after_a_file_has_run_change_nothing(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    world.run(world.only())
    world.janitor.tick()
    told = world.outbox()
    world.store.put("inbox/mistral/a.batch.toml", b"x = 1")
    for janitor in (world.janitor, world.new_janitor("t")):
        janitor.tick()
    assert world.outbox() == told


@pytest.mark.parametrize(
    ("path", "fits"), [(f"mistral/{'n' * 233}.jsonl", True), (f"mistral/{'n' * 234}.jsonl", False)]
)
def test_a_name_that_leaves_no_room_for_what_comes_of_it_does_not_run(world: World, path: str, fits: bool) -> None:
    world.store.put(f"inbox/{path.removesuffix('.jsonl')}.batch.toml", b'results = "parquet"')
    world.drop(path, native("a"))
    world.janitor.tick()
    if not fits:
        assert world.batches() == []
        assert "at most 239 bytes" in world.told(f"{path}.rejected.json")["message"]
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


def test_the_same_bytes_put_there_again_end_the_batch_that_runs(still: World) -> None:
    """In memory as in a bucket their etag is the same."""
    assert still.clock is not None
    data = still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.janitor.tick()
    still.store.put("inbox/mistral/a.jsonl", data)
    still.clock.sleep(10.0)
    for _ in range(2):
        still.janitor.tick()
    first, second = still.batches()
    assert (first.state, first.reason, second.state) == ("ended", "input_changed", "open")
    assert still.told("mistral/a.jsonl.status.json")["batch_id"] == second.batch_id


def test_the_same_bytes_put_there_again_are_a_new_version(world: World) -> None:
    data = world.drop("mistral/a.jsonl", native("a"))
    world.janitor.tick()
    world.run(world.only())
    first = entry = world.store.head("inbox/mistral/a.jsonl")
    while first is not None and entry is not None and int(entry.modified_at) == int(first.modified_at):
        world.store.put("inbox/mistral/a.jsonl", data)
        entry = world.store.head("inbox/mistral/a.jsonl")
    world.janitor.tick()
    assert len(world.batches()) == 2


@pytest.mark.parametrize("is_touched", [True, False])
def test_a_file_that_is_moved_out_and_back_is_a_new_version_only_where_it_was_touched(
    tmp_path: Path, is_touched: bool
) -> None:
    world, away = World(DirectoryStore(tmp_path / "store", fsync=False)), tmp_path / "a.jsonl"
    world.drop("mistral/a.jsonl", native("a"))
    place = tmp_path / "store" / "inbox" / "mistral" / "a.jsonl"
    os.utime(place, (1.0, 1.0))
    world.janitor.tick()
    world.run(world.only())
    place.rename(away)
    world.janitor.tick()
    if is_touched:
        os.utime(away, (2.0, 2.0))
    place.parent.mkdir(parents=True, exist_ok=True)
    away.rename(place)
    world.janitor.tick()
    assert len(world.batches()) == (2 if is_touched else 1)


def parquet(num: int, **columns: list[Any]) -> bytes:
    table = {"custom_id": [f"r{n}" for n in range(num)], "prompt": [f"text {n}" for n in range(num)], **columns}
    out = io.BytesIO()
    pq.write_table(pa.table(table), out, row_group_size=50)
    return out.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_other_formats_become_an_input_once_and_keep_their_name_in_the_outbox(world: World, name: str) -> None:
    plain = b"".join(json.dumps(native(f"r{n}")).encode() + b"\n" for n in range(120))
    made = {"a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstd.compress, "a.parquet": lambda _: parquet(120)}
    world.store.put(f"inbox/mistral/{name}", made[name](plain))
    world.janitor.tick()
    batch = world.only()
    assert (batch.state, batch.total) == ("open", 120)
    assert batch.input.key.startswith(f"batches/{batch.batch_id}/input-")
    world.run(batch)
    world.janitor.tick()
    receipt = world.told(f"mistral/{name}.receipt.json")
    assert receipt["counts"]["succeeded"] == 120
    assert receipt["input"]["path"] == f"inbox/mistral/{name}"
    assert receipt["results"]["path"] == f"outbox/mistral/{name}.results.jsonl"
    world.new_janitor("t").tick()
    assert len(world.batches()) == 1


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jsonl.gz", gzip.compress(json.dumps(native("a")).encode() * 2000, mtime=0)[:-40], "ends in the middle"),
        ("a.jsonl.gz", b"no gzip at all", "is named .gz and is no gzip data"),
        ("a.jsonl.zst", zstd.compress(b"x" * 1000)[:-5], "zstd data"),
        ("a.parquet", parquet(3)[:-20], "the Parquet data is damaged"),
        ("a.parquet", parquet(3).replace(b"prompt", b"frompt"), "column"),
        ("a.jsonl", "\ufeff{}".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jsonl", b"PK\x03\x04 and so on", "is a zip archive"),
    ],
)
def test_a_file_that_can_not_be_read_is_rejected_with_the_reason(
    still: World, name: str, data: bytes, why: str
) -> None:
    assert still.clock is not None
    still.store.put(f"inbox/mistral/{name}", data)
    still.clock.sleep(10.0)
    still.janitor.tick()
    told = still.told(f"mistral/{name}.rejected.json")
    assert why in told["message"]
    assert told["message"].startswith(f"inbox/mistral/{name}: ")
    assert still.only().reason == "failed"


def converter_that_dies(monkeypatch: pytest.MonkeyPatch, by: signal.Signals) -> None:
    command = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {by.value})"]
    monkeypatch.setattr(converter, "_command", lambda *args: command)


def test_a_file_that_ends_what_reads_it_is_rejected_at_once(still: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert still.clock is not None
    converter_that_dies(monkeypatch, signal.SIGSEGV)
    still.store.put("inbox/mistral/a.parquet", parquet(3))
    still.clock.sleep(10.0)
    still.janitor.tick()
    assert "ended the process that read it (signal 11)" in still.told("mistral/a.parquet.rejected.json")["message"]
    assert still.only().reason == "failed"


def test_a_file_whose_converter_is_killed_is_tried_three_times(still: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a machine that has no memory left: it may be the file, or not."""
    assert still.clock is not None
    converter_that_dies(monkeypatch, signal.SIGKILL)
    still.store.put("inbox/mistral/a.parquet", parquet(3))
    still.clock.sleep(10.0)
    for _ in range(3):
        still.janitor.tick()
        assert still.only().state == "planning"
        still.janitor.tick()  # nobody tries before the lease is over
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
    still.janitor.tick()
    told = still.told("mistral/a.parquet.rejected.json")
    assert told["message"].startswith("inbox/mistral/a.parquet: 3 processes that read it ended, one after another")
    assert still.only().reason == "failed"


def test_a_file_that_kills_three_processes_is_rejected_by_the_fourth(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    deaths: list[str] = []

    def die(*args: Any, **more: Any) -> Any:
        deaths.append("died")
        raise KeyboardInterrupt  # as far from an answer as a process can be here

    still.store.put("inbox/mistral/a.jsonl", json.dumps(native("a")).encode())
    still.clock.sleep(10.0)
    monkeypatch.setattr(pending, "plan_input", die)
    for n in range(3):
        with pytest.raises(KeyboardInterrupt):
            still.new_janitor(f"s{n}", still.new_ledger(n)).tick()
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
        still.janitor.tick()  # asks whether it lives
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
    still.janitor.tick()
    assert len(deaths) == 3
    assert "3 processes that read it ended" in still.told("mistral/a.jsonl.rejected.json")["message"]


def test_two_deaths_are_chance_and_a_planning_that_was_given_back_is_none(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.jsonl", json.dumps(native("a")).encode())
    still.clock.sleep(10.0)
    plan_input = pending.plan_input
    ends = iter([KeyboardInterrupt, StoreUnavailable, StoreUnavailable, KeyboardInterrupt, StoreUnavailable, None])

    def fail(*args: Any, **more: Any) -> Any:
        error = next(ends)
        if error is None:
            return plan_input(*args, **more)
        raise error

    monkeypatch.setattr(pending, "plan_input", fail)
    for _ in range(7):  # after each of the two deaths, once only to ask
        with suppress(KeyboardInterrupt):
            still.janitor.tick()
        assert still.only().state == "planning"
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
    still.janitor.tick()
    assert (still.only().state, still.only().total) == ("open", 1)
    assert next(ends, "all of them came") == "all of them came"


def test_a_store_that_fails_while_parquet_is_read_rejects_nothing(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.parquet", parquet(3))
    still.clock.sleep(10.0)
    stream = still.store.stream
    calls = iter(range(100))

    def failing(key: str, *args: Any, **more: Any) -> Iterator[bytes]:
        if key.endswith(".parquet") and next(calls) == 1:
            raise StoreUnavailable("503")
        return stream(key, *args, **more)

    monkeypatch.setattr(still.store, "stream", failing)
    still.janitor.tick()
    assert still.only().state == "planning"
    still.clock.sleep(1.0)
    still.janitor.tick()
    assert (still.only().state, still.only().total) == ("open", 3)
