"""What the new batch of an output takes over from the old one where its input has grown, wherever a process dies."""

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from batchfile.engine.echo import EchoEngine
from batchfile.errors import OutputTaken
from batchfile.ledger import batches, ending, keys, shards
from batchfile.ledger.base import Ledger
from batchfile.ledger.cas import load
from batchfile.ledger.records import BatchRecord, IdempotencyRecord
from batchfile.ledger.shards import Lease
from batchfile.lines.result import FinishedLine, encode_result
from batchfile.local import outputs
from batchfile.local import run as local_run
from batchfile.local.inputs import inspect
from batchfile.local.options import RunOptions
from batchfile.local.run import Opened, open_batch
from batchfile.runner.runner import Runner, RunnerOptions
from batchfile.store.directory import DirectoryStore
from batchfile.testing import run_alone
from batchfile.testing.faulty_store import FaultyStore, Phase
from batchfile.types import Choice, Completion, Usage

pytestmark = pytest.mark.slow

NUM = 40
KEPT = 20  # what the old batch had finished


def lines(*numbers: int) -> bytes:
    rows = ({"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"hi {n}"}]}} for n in numbers)
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Gone(BaseException):
    """The process is no more: nothing may catch this and go on."""


class World:
    """An output in a folder of its own, of which a run was killed after `KEPT` of `NUM` requests."""

    def __init__(self, folder: Path, data: bytes = b"", name: str = "in.jsonl", **options: object) -> None:
        folder.mkdir(exist_ok=True)
        self.input = folder / name
        self.input.write_bytes(data or lines(*range(NUM)))
        self.ledger = Ledger(store=DirectoryStore(folder / "store", fsync=False))
        self.options = RunOptions(output=str(folder / "out.jsonl"), engine="echo", model="echo", **options)  # type: ignore[arg-type]
        self.old = self.open().batch
        self.finish_some(self.old, min(KEPT, self.old.total))

    def open(self, ledger: Ledger | None = None, **options: object) -> Opened:
        chosen = replace(self.options, **options)  # type: ignore[arg-type]
        return open_batch(ledger or self.ledger, inspect(str(self.input)), chosen)

    def finish_some(self, batch: BatchRecord, num: int, custom_id: str = "r%d") -> None:
        plan = batches.read_plan(self.ledger, batch)
        held = shards.claim(self.ledger, batch, plan, "local", 0, runner="killed")
        assert isinstance(held, Lease)
        outcome = Completion(choices=(Choice("kept", "end_turn"),), usage=Usage(input_tokens=2, output_tokens=1))
        done = [
            FinishedLine(n, "succeeded", encode_result(custom_id % n, outcome, "echo"), outcome.usage)
            for n in range(num)
        ]
        shards.checkpoint(self.ledger, held, done, has_dispatched=True)
        if held.record.state != "done":
            shards.release(self.ledger, held)

    def append(self, data: bytes) -> None:
        with self.input.open("ab") as file:
            file.write(data)

    def run(self, batch: BatchRecord) -> list[tuple[str | None, str]]:
        """The custom_id and the answer of each result, once all have one."""
        options = RunnerOptions(runner_id="r2", pool="local", only=batch.batch_id, is_janitor=False)
        ended = ending.finish(self.ledger, batch.batch_id, runner="r2")
        if ended is None:
            run_alone(Runner(self.ledger, lambda: EchoEngine(num_slots=8), options))
            ended = batches.read_batch(self.ledger, batch.batch_id)
        assert ended is not None
        assert ended.results is not None
        rows = [json.loads(row) for row in b"".join(self.ledger.store.stream(ended.results.key)).splitlines()]
        return [
            (row["custom_id"], row["message"]["content"][0]["text"] if row["message"] else row["error"]["type"])
            for row in rows
        ]

    @property
    def pointer(self) -> IdempotencyRecord:
        found = load(self.ledger, keys.idempotency_key("output", self.options.output or ""), IdempotencyRecord)
        assert found is not None
        return found.record

    def batch_ids(self) -> set[str]:
        return {keys.index_batch_id(entry.key) for entry in self.ledger.store.list(keys.INDEX_PREFIX)}


def wanted(*numbers: int, kept: int = KEPT) -> list[tuple[str | None, str]]:
    return [(f"r{n}", "kept" if n < kept else f"hi {n}") for n in numbers]


def test_what_had_finished_is_kept_and_the_rest_runs_in_one_batch(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(lines(40, 41, 42))
    opened = world.open()
    assert opened.is_new
    assert opened.notes[0] == "20 of 43 requests have already finished and do not run again"
    assert opened.batch.total == 43
    assert world.run(opened.batch) == wanted(*range(43))
    assert world.batch_ids() == {opened.batch.batch_id}, "the old batch is gone"
    assert world.pointer == IdempotencyRecord(batch_id=opened.batch.batch_id, digest=opened.batch.input.sha256)


def test_a_batch_that_grew_grows_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(lines(40))
    world.run(world.open().batch)
    world.append(lines(41))
    opened = world.open()
    assert opened.notes[0] == "41 of 42 requests have already finished and do not run again"
    assert len(world.run(opened.batch)) == 42
    assert not world.open().is_new


def test_what_failed_is_run_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    batches.end(world.ledger, world.old.batch_id, "canceled")
    ending.finish(world.ledger, world.old.batch_id, runner="r")
    world.append(lines(40))
    assert world.run(world.open().batch) == wanted(*range(41))


def test_rejected_and_repeated_lines_stay_so_and_a_new_repetition_is_rejected(tmp_path: Path) -> None:
    world = World(tmp_path, lines(*range(20)) + b"rubbish\n" + lines(3, 20))
    world.append(lines(4, 21))
    opened = world.open()
    rows = world.run(opened.batch)
    assert rows == [
        *wanted(*range(20)),
        (None, "invalid_request_error"),
        ("r3", "invalid_request_error"),
        ("r20", "hi 20"),
        ("r4", "invalid_request_error"),
        ("r21", "hi 21"),
    ]
    plan = batches.read_plan(world.ledger, opened.batch)
    assert plan.pools == {"local": {0: 2}, "_rejected": {0: 3}, "_reused": {0: 20}}


@pytest.mark.parametrize(
    ("more", "is_kept"),
    [(b"\n", True), (b"\r\n", True), (b"\n" + lines(1), True), (b" " + lines(1), False), (b"x", False)],
)
def test_a_last_line_without_newline_is_kept_only_where_it_has_ended(
    tmp_path: Path, more: bytes, is_kept: bool
) -> None:
    world = World(tmp_path, lines(0).rstrip(b"\n"))
    world.append(more)
    opened = world.open()
    reused = batches.read_plan(world.ledger, opened.batch).pools.get("_reused", {})
    assert reused == ({0: 1} if is_kept else {})


def test_more_members_of_a_gzip_file_are_more_lines(tmp_path: Path) -> None:
    world = World(tmp_path, gzip.compress(lines(*range(NUM))), "in.jsonl.gz")
    world.append(gzip.compress(lines(40, 41)))
    assert world.run(world.open().batch) == wanted(*range(42))


def test_the_same_requests_in_another_packing_are_all_kept(tmp_path: Path) -> None:
    world = World(tmp_path, gzip.compress(lines(*range(NUM)), 1), "in.jsonl.gz")
    world.input.write_bytes(gzip.compress(lines(*range(NUM)), 9))
    assert world.run(world.open().batch) == wanted(*range(NUM))


def test_lines_behind_the_limit_change_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, limit=30)
    world.append(lines(40, 41))
    assert world.run(world.open().batch) == wanted(*range(30))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"hi 30", b"HI 30") + lines(40),
        lambda data: lines(40) + data,
        lambda data: data[: len(data) // 2],
        lambda data: data.rstrip(b"\n"),
    ],
)
def test_another_change_is_refused_and_keeps_the_run(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    world = World(tmp_path)
    data = world.input.read_bytes()
    world.input.write_bytes(change(data))
    with pytest.raises(OutputTaken, match=r"the input has changed.*Restore the input to resume that run.*--restart"):
        world.open()
    world.input.write_bytes(data)
    assert world.run(world.open().batch) == wanted(*range(NUM))


def test_a_rewrite_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    world = World(tmp_path)
    before = world.input.stat()
    data = world.input.read_bytes()
    with world.input.open("r+b") as file:
        file.write(data.replace(b"hi 30", b"HI 30"))
    os.utime(world.input, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(OutputTaken, match="the input has changed"):
        world.open()


def test_the_old_content_again_finishes_a_run_that_its_change_had_ended(tmp_path: Path) -> None:
    world = World(tmp_path)
    data = world.input.read_bytes()
    world.input.write_bytes(data[:100])
    batches.end(world.ledger, world.old.batch_id, "input_changed")
    ending.finish(world.ledger, world.old.batch_id, runner="r")
    world.input.write_bytes(data)
    assert world.run(world.open().batch) == wanted(*range(NUM))


def test_damaged_results_are_not_taken_over_and_the_user_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    batches.end(world.ledger, world.old.batch_id, "canceled")
    ended = ending.finish(world.ledger, world.old.batch_id, runner="r")
    assert ended is not None
    assert ended.results is not None
    data = b"".join(world.ledger.store.stream(ended.results.key))
    world.ledger.store.put(ended.results.key, data.replace(b"kept", b"KEPT", 1))
    world.append(lines(40))
    opened = world.open()
    assert opened.notes[0].startswith(f"no result of {world.old.batch_id} was reused: its results have changed")
    assert world.run(opened.batch) == wanted(*range(41), kept=0)


def test_an_output_that_another_run_has_written_since_is_not_taken_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = World(tmp_path / "other")
    ended = batches.end(other.ledger, other.old.batch_id, "canceled") and ending.finish(
        other.ledger, other.old.batch_id, runner="r"
    )
    assert ended is not None
    outputs.export(other.ledger, ended, world.options.output or "")
    world.append(lines(40))
    with pytest.raises(OutputTaken, match="was written by another run"):
        world.open()
    assert world.pointer.batch_id == world.old.batch_id


def _cut_at(world: World, number: int, phase: Phase) -> int:
    """Grow in a process that ends at this write; how many writes there were."""
    seen = 0

    def on_call(now: int, verb: str, key: str, at: Phase) -> None:
        nonlocal seen
        seen = max(seen, now)
        if (now, at) >= (number, phase) and at == phase:
            raise Gone

    store = FaultyStore(world.ledger.store, on_call=on_call)
    try:
        world.open(Ledger(store=store))
    except Gone:
        return seen
    return 0


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_process_may_die_at_any_write_and_nothing_that_had_finished_is_lost(tmp_path: Path, phase: Phase) -> None:
    number = 0
    while True:
        number += 1
        world = World(tmp_path / str(number))
        world.append(lines(40, 41))
        if not _cut_at(world, number, phase):
            break
        opened = world.open()
        assert world.run(opened.batch) == wanted(*range(42)), number
        assert world.pointer.batch_id == opened.batch.batch_id
        known = {batch_id for batch_id in world.batch_ids() if batches.read_batch(world.ledger, batch_id) is not None}
        assert known == {opened.batch.batch_id}, number
    assert number > 20, "there were writes to die at"


def test_a_restart_after_such_a_death_leaves_no_batch_behind(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(lines(40))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local_run, "plan_input", lambda *_, **__: (_ for _ in ()).throw(Gone()))
        with pytest.raises(Gone):
            world.open()
    assert world.pointer.replaces == world.old.batch_id
    opened = world.open(restart=True)
    known = {batch_id for batch_id in world.batch_ids() if batches.read_batch(world.ledger, batch_id) is not None}
    assert known == {opened.batch.batch_id}
    assert world.run(opened.batch) == wanted(*range(41), kept=0)
