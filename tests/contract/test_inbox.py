"""Dropped files: each version is exactly one batch, whoever looks, dies or races; the outbox says what came of it."""

import gzip
import hashlib
import io
import json
import random
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchfile import __version__, layout
from batchfile.clock import ManualClock
from batchfile.engine.base import Finished
from batchfile.engine.open import engine_factory
from batchfile.errors import StoreUnavailable
from batchfile.ledger import batches, inbox, outbox, rejections
from batchfile.ledger.base import Ledger, Limits
from batchfile.ledger.inbox import Inbox
from batchfile.ledger.presence import write_presence
from batchfile.ledger.steward import Steward
from batchfile.ledger.webhooks import event_of
from batchfile.records import BatchRecord, ClaimRecord, PresenceRecord, decode, encode
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.store.base import Store
from batchfile.store.directory import DirectoryStore
from batchfile.store.faulty import FaultyStore
from batchfile.store.memory import MemoryStore
from batchfile.store.s3 import S3Store
from batchfile.words import Counts, RoutingTable, Usage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

POOLS = RoutingTable(stages={"email": "mistral"}, pools={"mistral": ("org/m",), "llama": ("l",)})


class Killed(BaseException):
    """Where a process died."""


class World:
    def __init__(self, store: Store, clock: ManualClock | None = None) -> None:
        self.store = store
        self.clock = clock
        self.ledger = self.new_ledger(7)
        self.steward = self.new_steward("s")

    def new_ledger(self, seed: int) -> Ledger:
        more: dict[str, Any] = {} if self.clock is None else {"clock": self.clock}
        return Ledger(store=self.store, rng=random.Random(seed), limits=Limits(checkpoint_s=1.0), **more)

    def new_steward(self, name: str, ledger: Ledger | None = None) -> Steward:
        ledger = ledger or self.ledger
        return Steward(ledger, runner=name, inbox=Inbox(ledger, POOLS))

    def drop(self, path: str, *rows: Any) -> bytes:
        data = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
        self.store.put(f"inbox/{path}", data)
        return data

    def batches(self) -> list[BatchRecord]:
        ids = [layout.index_batch_id(entry.key) for entry in self.store.list(layout.INDEX_PREFIX)]
        found = [batches.read_batch(self.ledger, batch_id) for batch_id in ids]
        return sorted((batch for batch in found if batch is not None), key=lambda batch: batch.created_at)

    def only(self) -> BatchRecord:
        (batch,) = self.batches()
        return batch

    def run(self, batch: BatchRecord, pool: str = "mistral") -> BatchRecord:
        options = RunnerOptions(runner_id=f"r-{uuid.uuid4().hex}", pool=pool, only=batch.batch_id, is_steward=False)
        ended = Runner(self.ledger, engine_factory("echo", model="echo"), options).run()
        assert ended is not None
        return ended

    def out(self, path: str) -> bytes | None:
        found = self.store.get(f"outbox/{path}")
        return None if found is None else found.data

    def told(self, path: str) -> Any:
        data = self.out(path)
        assert data is not None, path
        return json.loads(data)

    def outbox(self) -> list[str]:
        return [entry.key.removeprefix("outbox/") for entry in self.store.list("outbox/")]


def native(custom_id: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "params": {"messages": [{"role": "user", "content": text}], "max_tokens": 8},
        **more,
    }


def chat(custom_id: str, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture(params=["memory", "directory", "ministack"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Each test has a store of its own: an inbox is one for the whole store. Files are whole when they are there."""
    monkeypatch.setattr(inbox, "QUIET_S", -3600.0)
    match request.param:
        case "memory":
            yield World(MemoryStore())
        case "directory":
            yield World(DirectoryStore(tmp_path / "store", fsync=False))
        case _:
            url = request.getfixturevalue("ministack_url")
            store = S3Store("contract", f"inbox-{uuid.uuid4().hex}", endpoint_url=url)
            store.prove()
            yield World(store)
            store.close()


@pytest.fixture
def still() -> World:
    """In memory, by a clock that only tests move."""
    clock = ManualClock()
    return World(MemoryStore(clock), clock)


def test_a_dropped_file_is_planned_where_it_lies_and_its_answers_lie_beside_its_path(world: World) -> None:
    data = world.drop("email/deep/a.jsonl", *(native(f"r{n}", f"text {n}") for n in range(70)))
    world.steward.tick()
    batch = world.only()
    assert (batch.state, batch.stage, batch.total) == ("open", "email", 70)
    assert (batch.input.key, batch.input.sha256) == ("inbox/email/deep/a.jsonl", hashlib.sha256(data).hexdigest())
    assert [e.key for e in world.store.list(f"batches/{batch.batch_id}/input")] == []
    assert world.told("email/deep/a.jsonl.status.json")["state"] == "open"
    ended = world.run(batch)
    world.steward.tick()
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
        world.steward.tick()
        world.new_steward(f"new-{n}").tick()
    assert len(world.batches()) == 1


def test_stewards_that_race_over_many_files_make_one_batch_of_each(world: World) -> None:
    names = [f"mistral/{n % 3}/f{n}.jsonl" for n in range(40)]
    for name in names:
        world.drop(name, native(name))
    begin = threading.Barrier(2)
    failed: list[BaseException] = []

    def tend(seed: int) -> None:
        steward = world.new_steward(f"steward-{seed}", world.new_ledger(seed))
        begin.wait(30)
        try:
            steward.tick()
            steward.tick()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=tend, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert failed == []
    made = world.batches()
    assert sorted(batch.input.key for batch in made) == sorted(f"inbox/{name}" for name in names)
    assert {batch.state for batch in made} == {"open"}


def test_rubbish_lines_cost_only_themselves_and_their_file_drops_again(world: World) -> None:
    rubbish = b'{"custom_id": "r9", "params": \n'
    world.drop("mistral/a.jsonl", *(native(f"r{n}") for n in range(9)), rubbish, native("r0", "again"))
    world.steward.tick()
    world.run(world.only())
    world.steward.tick()
    receipt = world.told("mistral/a.jsonl.receipt.json")
    assert (receipt["counts"]["succeeded"], receipt["counts"]["errored"]) == (9, 2)
    errors = world.out("mistral/a.jsonl.errors.jsonl")
    assert errors == rubbish + json.dumps(native("r0", "again")).encode() + b"\n"
    world.store.put("inbox/mistral/mended.jsonl", errors.replace(rubbish, json.dumps(native("r9")).encode() + b"\n"))
    world.steward.tick()
    world.run(world.batches()[-1])
    world.steward.tick()
    assert world.told("mistral/mended.jsonl.receipt.json")["counts"]["succeeded"] == 2
    assert world.out("mistral/mended.jsonl.errors.jsonl") is None


def test_a_file_that_is_replaced_while_it_runs_is_a_new_batch_and_nothing_mixes(world: World) -> None:
    world.drop("mistral/a.jsonl", native("old"))
    world.steward.tick()
    old = world.only()
    world.drop("mistral/a.jsonl", native("new-1"), native("new-2"))
    world.steward.tick()
    world.steward.tick()
    first, second = world.batches()
    assert (first.batch_id, first.state, first.reason) == (old.batch_id, "ended", "input_changed")
    assert first.counts.errored == 1
    world.run(second)
    world.steward.tick()
    results = world.out("mistral/a.jsonl.results.jsonl")
    assert results is not None
    assert [json.loads(line)["custom_id"] for line in results.splitlines()] == ["new-1", "new-2"]
    assert world.told("mistral/a.jsonl.receipt.json")["batch_id"] == second.batch_id
    assert world.told("mistral/a.jsonl.status.json")["batch_id"] == second.batch_id


def test_a_file_that_is_replaced_after_its_end_replaces_what_is_in_the_outbox(world: World) -> None:
    world.drop("mistral/a.jsonl", native("old"), b"rubbish\n")
    world.steward.tick()
    world.run(world.only())
    world.steward.tick()
    assert world.out("mistral/a.jsonl.errors.jsonl") == b"rubbish\n"
    world.drop("mistral/a.jsonl", native("new"))
    world.steward.tick()
    world.run(world.batches()[-1])
    world.new_steward("t").tick()
    results = world.out("mistral/a.jsonl.results.jsonl")
    assert results is not None
    assert json.loads(results)["custom_id"] == "new"
    assert world.out("mistral/a.jsonl.errors.jsonl") is None


def test_requests_in_openais_format_get_answers_in_it(world: World) -> None:
    world.drop("org/m/a.jsonl", chat("a", "org/m"), b"rubbish\n", chat("b", "whatever"))
    world.steward.tick()
    world.run(world.only())
    world.steward.tick()
    results = world.out("org/m/a.jsonl.results.jsonl")
    assert results is not None
    first, second, third = map(json.loads, results.splitlines())
    assert first["response"]["body"]["choices"][0]["message"]["content"]
    assert second["response"]["status_code"] == 400
    assert (third["custom_id"], third["response"]["status_code"]) == ("b", 200)
    assert world.out("org/m/a.jsonl.errors.jsonl") == b"rubbish\n"


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
    world.steward.tick()
    world.new_steward("t").tick()
    assert world.batches() == []
    assert world.outbox() == [f"{path}.rejected.json"]
    told = world.told(f"{path}.rejected.json")
    assert why in told["message"]
    assert told["input"]["path"] == f"inbox/{path}"


def test_a_file_without_a_request_is_rejected_and_accepted_once_it_has_one(world: World) -> None:
    world.drop("mistral/a.jsonl", b"\n\n")
    world.steward.tick()
    told = world.told("mistral/a.jsonl.rejected.json")
    assert "holds no request" in told["message"]
    assert told["batch_id"] == world.only().batch_id
    world.drop("mistral/a.jsonl", native("a"))
    world.steward.tick()
    world.run(world.batches()[-1])
    assert world.out("mistral/a.jsonl.rejected.json") is None
    assert world.told("mistral/a.jsonl.receipt.json")["counts"]["succeeded"] == 1


def test_a_file_of_which_no_line_can_run_is_rejected_with_its_lines_and_nothing_else(world: World) -> None:
    world.drop("mistral/a.jsonl", b"name,mail\n", b"\n", b"ann,a@b.c\n")
    world.steward.tick()
    world.new_steward("t").tick()
    told = world.told("mistral/a.jsonl.rejected.json")
    assert told["message"] == "inbox/mistral/a.jsonl: none of its 2 lines is a request that can run"
    assert [error["line"] for error in told["errors"]] == [None, 1, 3]
    assert "is not valid JSON" in told["errors"][1]["message"]
    assert world.only().reason == "failed"
    assert world.outbox() == ["mistral/a.jsonl.rejected.json", "mistral/a.jsonl.status.json"]


def test_a_rejection_names_no_more_than_the_first_hundred_lines(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", *(b"rubbish\n" for _ in range(5000)))
    still.clock.sleep(10.0)
    still.steward.tick()
    lines = [error["line"] for error in still.told("mistral/a.jsonl.rejected.json")["errors"]]
    assert lines == [None, *range(1, rejections.TOLD_MAX + 1)]


def test_what_is_hidden_or_not_yet_whole_by_its_name_is_passed_over(world: World) -> None:
    for path in ("mistral/.a.jsonl.Xy12", "mistral/.hidden/a.jsonl", "mistral/a.jsonl.part", "mistral/b.jsonl.tmp"):
        world.drop(path, native("a"))
    world.steward.tick()
    assert (world.batches(), world.outbox()) == ([], [])


def test_a_file_that_is_still_being_written_waits_until_it_is_quiet(still: World) -> None:
    still.drop("mistral/a.jsonl", native("a"))
    still.steward.tick()
    assert still.batches() == []
    assert still.clock is not None
    still.clock.sleep(inbox.QUIET_S - 1)
    still.drop("mistral/a.jsonl", native("a"), native("b"))
    still.clock.sleep(inbox.QUIET_S - 1)
    still.steward.tick()
    assert still.batches() == []
    still.clock.sleep(1)
    still.steward.tick()
    assert still.only().total == 2


def test_a_file_from_the_future_waits_by_our_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ahead = ManualClock(), ManualClock()
    ahead.sleep(3600.0)
    world = World(MemoryStore(ahead), clock)
    world.drop("mistral/a.jsonl", native("a"))
    world.steward.tick()
    assert world.batches() == []
    clock.sleep(inbox.QUIET_S)
    world.steward.tick()
    assert world.only().state == "open"


def test_retention_never_makes_an_old_file_a_new_batch(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", b"\n")
    for _ in range(20):
        still.clock.sleep(86400.0)
        still.steward.tick()
        still.new_steward("new").tick()
    assert list(still.store.list("batches/")) == list(still.store.list("index/")) == []
    assert len(list(still.store.list("inbox-claims/"))) == 1
    assert still.outbox() == ["mistral/a.jsonl.rejected.json", "mistral/a.jsonl.status.json"]


def test_a_claim_goes_only_when_its_file_is_gone_for_days(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.steward.tick()
    still.store.delete("inbox/mistral/a.jsonl")
    still.clock.sleep(6 * 86400.0)
    still.steward.tick()
    assert len(list(still.store.list("inbox-claims/"))) == 1
    still.clock.sleep(2 * 86400.0)
    still.steward.tick()
    assert list(still.store.list("inbox-claims/")) == []


def test_what_a_reader_takes_out_of_the_outbox_does_not_come_back(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a"))
    world.steward.tick()
    world.run(world.only())
    for name in world.outbox():
        world.store.delete(f"outbox/{name}")
    world.new_steward("t").tick()
    assert world.outbox() == []


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
            Steward(ledger, runner="dies", inbox=Inbox(ledger, POOLS)).tick()
        except Killed:
            was_killed = True
        after = world.new_steward("after")
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


def test_the_outbox_has_the_same_bytes_when_it_is_written_twice(world: World) -> None:
    world.drop("mistral/a.jsonl", native("a"), b"rubbish\n")
    world.steward.tick()
    ended = world.run(world.only())
    first = {name: world.out(name) for name in world.outbox()}
    world.store.delete(layout.outbox_turn_key(ended.batch_id))
    assert outbox.publish(world.ledger, ended, runner="again")
    assert {name: world.out(name) for name in world.outbox()} == first
    assert len(first) == 4


def test_a_create_that_was_given_up_before_it_came_to_be_is_made_again(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    entry = still.store.head("inbox/mistral/a.jsonl")
    assert entry is not None
    claim = ClaimRecord(
        key=entry.key, etag=entry.etag, modified_at=entry.modified_at, batch_id="batch_lost", created_at=1.0
    )
    key = layout.claim_key(entry.key, entry.etag, entry.modified_at)
    batches.fence_abandoned(still.ledger, "batch_lost")

    still.store.put(key, encode(claim))
    still.steward.tick()
    assert still.only().state == "open"
    assert still.only().batch_id != "batch_lost"


def test_progress_is_told_at_most_every_fifteen_seconds_and_never_goes_back(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", *(native(f"r{n}") for n in range(3)))
    still.clock.sleep(10.0)
    still.steward.tick()
    batch = still.only()
    path = "mistral/a.jsonl.status.json"

    def counts_told() -> int:
        done: int = still.told(path)["counts"]["succeeded"]
        return done

    outbox.report(still.ledger, batch, Counts(succeeded=1), Usage())
    still.clock.sleep(1.0)
    outbox.report(still.ledger, batch, Counts(succeeded=1), Usage())
    assert counts_told() == 0
    still.clock.sleep(outbox.STATUS_S)
    outbox.report(still.ledger, batch, Counts(succeeded=2), Usage())
    assert counts_told() == 2
    still.clock.sleep(outbox.STATUS_S)
    outbox.report(still.ledger, batch, Counts(succeeded=1), Usage())
    assert counts_told() == 2


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
    world.steward.tick()
    batch = world.only()
    assert (batch.state, batch.total) == ("open", 120)
    assert batch.input.key.startswith(f"batches/{batch.batch_id}/input-")
    world.run(batch)
    world.steward.tick()
    receipt = world.told(f"mistral/{name}.receipt.json")
    assert receipt["counts"]["succeeded"] == 120
    assert receipt["input"]["path"] == f"inbox/mistral/{name}"
    assert receipt["results"]["path"] == f"outbox/mistral/{name}.results.jsonl"
    world.new_steward("t").tick()
    assert len(world.batches()) == 1


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jsonl.gz", gzip.compress(json.dumps(native("a")).encode() * 2000)[:-40], "ends in the middle"),
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
    still.steward.tick()
    told = still.told(f"mistral/{name}.rejected.json")
    assert why in told["message"]
    assert told["message"].startswith(f"inbox/mistral/{name}: ")
    assert still.only().reason == "failed"


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
    with pytest.raises(StoreUnavailable):
        still.steward.tick()
    still.steward.tick()
    assert (still.only().state, still.only().total) == ("open", 3)


def test_options_beside_a_file_are_what_its_batch_gets(world: World) -> None:
    deadline = "2099-01-02T03:04:05Z"
    options = f'stage = "email"\npriority = 1\nmax_tokens = 3\ntemperature = 0.5\ndeadline = {deadline}\n'
    world.store.put("inbox/llama/a.batch.toml", options.encode())
    rows = [{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hello"}]}}]
    world.drop("llama/a.jsonl", *rows)
    world.drop("llama/b.jsonl", *rows)
    world.steward.tick()
    made = {batch.input.key: batch for batch in world.batches()}
    batch = made["inbox/llama/a.jsonl"]
    assert (batch.stage, batch.priority) == ("email", 1)
    assert (batch.defaults.max_tokens, batch.defaults.temperature) == (3, 0.5)
    assert batch.expires_at == datetime.fromisoformat(deadline).timestamp()
    assert list(batches.read_plan(world.ledger, batch).pools) == ["mistral"]
    other = made["inbox/llama/b.jsonl"]
    assert (other.stage, other.priority, other.routing.everything) == (None, 5, "llama")
    assert world.outbox() == ["llama/a.jsonl.status.json", "llama/b.jsonl.status.json"]


def test_results_come_as_parquet_too_when_that_is_asked_for(world: World) -> None:
    world.store.put("inbox/mistral/a.batch.toml", b'results = "parquet"')
    world.drop("mistral/a.jsonl", *(native(f"r{n}", f"text {n}") for n in range(40)), b"rubbish\n")
    world.steward.tick()
    ended = world.run(world.only())
    world.steward.tick()
    data = world.out("mistral/a.jsonl.results.parquet")
    assert data is not None
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    lines = [json.loads(line) for line in (world.out("mistral/a.jsonl.results.jsonl") or b"").splitlines()]
    assert [row["custom_id"] for row in rows] == [line["custom_id"] for line in lines]
    assert [row["status"] for row in rows] == ["succeeded"] * 40 + ["errored"]
    assert rows[7]["text"] == lines[7]["message"]["content"][0]["text"]
    receipt = world.told("mistral/a.jsonl.receipt.json")
    path = "outbox/mistral/a.jsonl.results.parquet"
    digest = hashlib.sha256(data).hexdigest()
    assert receipt["results_parquet"] == {"path": path, "bytes": len(data), "sha256": digest, "lines": 41}
    world.store.delete(layout.outbox_turn_key(ended.batch_id))
    assert outbox.publish(world.ledger, ended, runner="again")
    assert world.out("mistral/a.jsonl.results.parquet") == data
    world.store.delete("inbox/mistral/a.batch.toml")
    world.drop("mistral/a.jsonl", native("new"))
    world.steward.tick()
    world.run(world.batches()[-1])
    assert world.out("mistral/a.jsonl.results.parquet") is None


def test_a_receipt_names_the_pools_their_models_and_what_ran_them(world: World) -> None:
    told = PresenceRecord(
        pool="mistral", runner_id="r", model="org/m", engine="vllm", engine_version="9.9", state="idle", started_at=1.0
    )
    write_presence(world.ledger, told)
    world.drop("mistral/a.jsonl", native("a"), b"rubbish\n")
    world.steward.tick()
    world.run(world.only())
    world.steward.tick()
    receipt = world.told("mistral/a.jsonl.receipt.json")
    assert receipt["pools"] == {"mistral": {"model": "org/m", "requests": 1, "engines": ["vllm 9.9"]}}
    assert receipt["batchfile_version"] == __version__


class GpuEcho:
    """The echo engine, on two GPUs by its own account, where a step takes ten seconds."""

    def __init__(self, clock: ManualClock) -> None:
        self._inner = engine_factory("echo", model="echo")()
        self._clock = clock
        self.info = replace(self._inner.info, num_gpus=2)

    def step(self) -> list[Finished]:
        self._clock.sleep(10.0)
        return self._inner.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_receipt_counts_the_seconds_of_the_gpus_that_worked_for_its_file_alone(still: World) -> None:
    assert still.clock is not None
    clock = still.clock
    for name in "ab":
        still.drop(f"mistral/{name}.jsonl", *(native(f"{name}{n}") for n in range(40)))
    clock.sleep(10.0)
    still.steward.tick()
    options = RunnerOptions(runner_id="r", pool="mistral")
    engines: list[GpuEcho] = []

    def build() -> GpuEcho:
        engines.append(GpuEcho(clock))
        return engines[-1]

    Runner(still.ledger, build, options).run_alone(lambda: all(batch.state == "ended" for batch in still.batches()))
    still.steward.tick()
    told = [still.told(f"mistral/{name}.jsonl.receipt.json")["gpu_seconds"] for name in "ab"]
    assert told[0] == pytest.approx(told[1], rel=0.6)
    assert sum(told) == pytest.approx(2 * 10.0 * engines[0].stats().num_steps, rel=0.01)


def test_without_a_gpu_a_receipt_says_that_none_is_known(still: World) -> None:
    assert still.clock is not None
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.steward.tick()
    still.run(still.only())
    assert still.told("mistral/a.jsonl.receipt.json")["gpu_seconds"] is None


def test_a_file_leaves_the_inbox_only_when_told_to_and_only_once_it_has_run(world: World) -> None:
    world.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    data = world.drop("mistral/a.jsonl", native("a"))
    world.steward.tick()
    assert world.store.head("inbox/mistral/a.jsonl") is not None
    world.run(world.only())
    world.steward.tick()
    assert [entry.key for entry in world.store.list("inbox/")] == ["inbox/mistral/a.batch.toml"]
    moved = world.store.get("done/mistral/a.jsonl")
    assert moved is not None
    assert moved.data == data
    assert world.told("mistral/a.jsonl.receipt.json")["input"]["moved_to"] == "done/mistral/a.jsonl"
    world.new_steward("t").tick()
    assert len(world.batches()) == 1
    ended = world.only()
    receipt = world.told("mistral/a.jsonl.receipt.json")
    world.store.delete(layout.outbox_turn_key(ended.batch_id))  # as if it was cut off before its end
    assert outbox.publish(world.ledger, ended, runner="again")
    assert world.told("mistral/a.jsonl.receipt.json") == receipt


def test_a_file_that_did_not_run_to_its_end_is_not_moved(still: World) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.steward.tick()
    batches.end(still.ledger, still.only().batch_id, "canceled")
    still.steward.tick()
    assert still.told("mistral/a.jsonl.receipt.json")["counts"]["canceled"] == 1
    assert still.told("mistral/a.jsonl.receipt.json")["input"]["moved_to"] is None
    assert still.store.head("inbox/mistral/a.jsonl") is not None


def test_settings_move_what_says_nothing_itself(still: World) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/b.batch.toml", b"move_done = false")
    for name in "ab":
        still.drop(f"mistral/{name}.jsonl", native(name))
    still.clock.sleep(10.0)
    steward = Steward(still.ledger, runner="s", inbox=Inbox(still.ledger, POOLS, move_done=True))
    steward.tick()
    for batch in still.batches():
        still.run(batch)
    assert [entry.key for entry in still.store.list("inbox/")] == [
        "inbox/mistral/b.batch.toml",
        "inbox/mistral/b.jsonl",
    ]


def test_a_file_that_is_replaced_while_it_is_moved_stays_and_is_a_batch_of_its_own(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", b"move_done = true")
    still.drop("mistral/a.jsonl", native("old"))
    still.clock.sleep(10.0)
    still.steward.tick()
    stream = still.store.stream

    def replacing(key: str, *args: Any, match: str | None = None, **more: Any) -> Iterator[bytes]:
        yield from stream(key, *args, match=match, **more)
        is_moving = still.out("mistral/a.jsonl.results.jsonl") is not None
        if key == "inbox/mistral/a.jsonl" and is_moving and len(still.batches()) == 1:
            still.drop("mistral/a.jsonl", native("new"))

    monkeypatch.setattr(still.store, "stream", replacing)
    still.run(still.only())
    still.clock.sleep(10.0)
    still.steward.tick()
    still.steward.tick()
    still.run(still.batches()[-1])
    assert [batch.counts.succeeded for batch in still.batches()] == [1, 1]
    results = still.out("mistral/a.jsonl.results.jsonl")
    assert results is not None
    assert json.loads(results)["custom_id"] == "new"


def test_a_callback_is_kept_with_the_batch_and_its_event_names_the_file(still: World) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", b'callback = "https://example.com/done?x=1"')
    still.drop("mistral/a.jsonl", b"\n")
    still.clock.sleep(10.0)
    still.steward.tick()
    batch = still.only()
    assert batch.dropped is not None
    assert batch.dropped.callback == "https://example.com/done?x=1"
    assert json.loads(event_of(batch).body)["data"] == {"id": batch.batch_id, "path": "inbox/mistral/a.jsonl"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("prioritie = 1", "unknown field `prioritie`"),
        ("priority = 10", "`int` <= 9"),
        ("stage = 'poetry'", "stages are email"),
        ("results = 'csv'", "Invalid enum value 'csv'"),
        ("callback = 'ftp://example.com'", "matching regex"),
        ("move_done = 'yes'", "Expected `bool"),
        ("deadline = 2099-01-01T00:00:00", "timezone"),
        ("priority 1", "line 1"),
        (f"# {'x' * 70_000}", "is larger than"),
    ],
)
def test_wrong_options_hold_their_file_back_until_they_are_mended(still: World, options: str, why: str) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.batch.toml", options.encode())
    still.drop("mistral/a.jsonl", native("a"))
    still.clock.sleep(10.0)
    still.steward.tick()
    assert still.batches() == []
    assert why in still.told("mistral/a.jsonl.rejected.json")["message"]
    still.store.put("inbox/mistral/a.batch.toml", b"priority = 1")
    still.steward.tick()
    assert still.only().priority == 1
    assert still.out("mistral/a.jsonl.rejected.json") is None
