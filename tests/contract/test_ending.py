"""What the end of a batch asks of the store: each record, part and byte of the input once; one writer; one sweep."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from batchfile import Ledger
from batchfile.errors import LeaseLost
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable, Usage
from tests.helpers.ledger import BatchRecord, FileRef, Lease, assemble, batches, ending, retention, shards
from tests.helpers.ledger import keys as ledger_keys
from tests.helpers.lines import FinishedLine
from tests.helpers.plan import plan_input
from tests.helpers.store import MeteredStore

BATCH, POOL = "b", "one"
ROUTING = RoutingTable(pools={POOL: ("m",)})
LINES_A_SHARD, NUM_SHARDS = 4, 50


class Counting(MemoryStore):
    """Notes every key that is read and every stream that is opened."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.reads: Counter[str] = Counter()
        self.streams: list[tuple[str, int]] = []

    def get(self, key: str):  # type: ignore[no-untyped-def]
        self.reads[key] += 1
        return super().get(key)

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None):  # type: ignore[no-untyped-def]
        self.streams.append((key, start))
        return super().stream(key, start, end, match=match)


class World:
    def __init__(self, num_in_flight: int = 1) -> None:
        self.clock = ManualClock()
        self.inner = Counting(self.clock)
        self.store = MeteredStore(self.inner)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(3), num_in_flight=num_in_flight)
        rows = [
            {"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": "hello" * (n % 7)}]}}
            for n in range(LINES_A_SHARD * NUM_SHARDS)
        ]
        self.lines = [json.dumps(row).encode() for row in rows]
        self.key = ledger_keys.input_key(BATCH, "n")
        self.inner.put(self.key, b"\n".join(self.lines))
        planned = plan_input(self.ledger, BATCH, self.key, routing=ROUTING, lines_per_range=LINES_A_SHARD)
        self.plan = planned.plan
        draft = batches.Draft(batch_id=BATCH, routing=ROUTING, defaults=Defaults())
        self.batch = batches.create(self.ledger, draft, planned)

    def work(self, *numbers: int, failed: int | None = None) -> None:
        """These shards are done, in two parts each; of each the line `failed` was errored."""
        for n in numbers:
            held = shards.claim(self.ledger, self.batch, self.plan, POOL, n, runner="r")
            assert isinstance(held, Lease)
            for lines in (range(1), range(1, LINES_A_SHARD)):
                shards.checkpoint(self.ledger, held, [result(n, line, failed) for line in lines], has_dispatched=True)

    def finish(self) -> Callable[[str, str], int]:
        """End it; how many requests of a verb there were, and with which outcome."""
        self.inner.reads.clear()
        self.inner.streams.clear()
        before = self.store.figures()
        ended = ending.finish(self.ledger, BATCH, runner="r")
        assert ended is not None
        assert ended.state == "ended"
        self.batch = ended
        after = self.store.figures()

        def spent(verb: str, outcome: str = "ok") -> int:
            return sum(
                figure.num - (before[call].num if call in before else 0)
                for call, figure in after.items()
                if (call.verb, call.outcome) == (verb, outcome)
            )

        return spent

    def read(self, file: FileRef | None) -> list[bytes]:
        assert file is not None
        return b"".join(self.inner.stream(file.key)).splitlines()


def result(n: int, line: int, failed: int | None) -> FinishedLine:
    number = n * LINES_A_SHARD + line
    return FinishedLine(line, "errored" if line == failed else "succeeded", b'{"n":%d}' % number, Usage())


def of(keys: Counter[str], folder: str) -> Counter[str]:
    return Counter({key: num for key, num in keys.items() if folder in key})


@pytest.mark.parametrize("num_in_flight", [1, 16])
def test_each_record_and_each_part_is_read_once_and_the_input_not_at_all(num_in_flight: int) -> None:
    world = World(num_in_flight)
    world.work(*range(NUM_SHARDS))
    world.finish()
    assert world.read(world.batch.results) == [b'{"n":%d}' % n for n in range(LINES_A_SHARD * NUM_SHARDS)]
    for folder, num in (("/shards/", NUM_SHARDS), ("/parts/", 2 * NUM_SHARDS)):
        reads = of(world.inner.reads, folder)
        assert len(reads) == num
        assert set(reads.values()) == {1}
    assert world.inner.streams[:-1] == []  # the last one is this test's own


@pytest.mark.parametrize("num_in_flight", [1, 16])
def test_a_cancel_writes_each_shard_once_and_reads_the_input_as_one_stream(num_in_flight: int) -> None:
    world = World(num_in_flight)
    world.work(*range(0, NUM_SHARDS, 2))
    batches.end(world.ledger, BATCH, "canceled")
    spent = world.finish()
    # A record for each shard that had none, the task and the end.
    assert spent("put") == NUM_SHARDS / 2 + 2
    assert spent("put", "refused") == 0
    assert set(of(world.inner.reads, "/shards/").values()) == {1}
    assert len(world.inner.streams) == 1
    rows = [json.loads(row) for row in world.read(world.batch.results)]
    for number, row in enumerate(rows):
        is_done = number // LINES_A_SHARD % 2 == 0
        assert row == {"n": number} if is_done else (row["custom_id"], row["status"]) == (f"r{number}", "canceled")
    assert world.read(world.batch.errors) == [
        line for number, line in enumerate(world.lines) if number // LINES_A_SHARD % 2
    ]


def test_of_the_input_only_what_lies_far_apart_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    wanted = (1, 2, 30, 31, 49)
    world.work(*(n for n in range(NUM_SHARDS) if n not in wanted))
    world.work(*wanted, failed=2)
    monkeypatch.setattr(assemble, "SKIP_BYTES_MAX", world.plan.ranges[5].start)
    world.finish()
    assert world.inner.streams == [(world.key, world.plan.ranges[n].start) for n in (1, 30, 49)]
    assert world.read(world.batch.errors) == [world.lines[n * LINES_A_SHARD + 2] for n in wanted]


def test_parts_are_read_ahead_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(num_in_flight=16)
    world.work(*range(NUM_SHARDS))
    size = sum(entry.size for entry in world.inner.list(ledger_keys.parts_prefix(BATCH))) // (2 * NUM_SHARDS)
    monkeypatch.setattr(assemble, "PARTS_AHEAD_BYTES", 4 * size)
    beats: list[int] = []
    make = assemble.assemble

    def watched(*given: object, beat: Callable[[], None], **more: object) -> object:
        def noted() -> None:
            beats.append(len(of(world.inner.reads, "/parts/")))
            beat()

        return make(*given, beat=noted, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ending, "assemble", watched)
    world.finish()
    assert len(beats) == NUM_SHARDS
    assert all(num <= 2 * place + 10 for place, num in enumerate(beats))


def test_nothing_is_written_for_a_batch_that_is_not_begun_everywhere() -> None:
    world = World()
    world.work(*range(NUM_SHARDS - 1))
    before = sorted(entry.key for entry in world.inner.list(""))
    world.inner.reads.clear()
    assert ending.finish(world.ledger, BATCH, runner="r") is None
    assert sorted(entry.key for entry in world.inner.list("")) == before
    assert not of(world.inner.reads, "/shards/")


def test_who_finds_a_shard_in_work_gives_the_turn_back() -> None:
    world = World()
    world.work(*range(NUM_SHARDS - 1))
    held = shards.claim(world.ledger, world.batch, world.plan, POOL, NUM_SHARDS - 1, runner="r")
    assert isinstance(held, Lease)
    assert ending.finish(world.ledger, BATCH, runner="one") is None
    last = [result(NUM_SHARDS - 1, line, None) for line in range(LINES_A_SHARD)]
    shards.checkpoint(world.ledger, held, last, has_dispatched=True)
    ended = ending.finish(world.ledger, BATCH, runner="two")
    assert ended is not None
    assert ended.reason == "completed"


def test_who_ends_it_sweeps_its_parts_in_one_request() -> None:
    world = World()
    world.work(*range(NUM_SHARDS))
    spent = world.finish()
    assert spent("delete") == 2, "its entries, and its parts"
    assert list(world.inner.list(ledger_keys.parts_prefix(BATCH))) == []


def test_who_comes_second_removes_what_it_made_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.work(*range(NUM_SHARDS))
    commit = ending._commit_end

    def late(ledger: Ledger, *given: object) -> BatchRecord | None:
        """Paused beyond its lease, before its end is written."""
        monkeypatch.undo()
        world.clock.sleep(ledger.limits.lease_ttl_s + 1)
        assert ending.finish(world.ledger, BATCH, runner="second") is not None
        return commit(ledger, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ending, "_commit_end", late)
    world.finish()
    assert world.batch.results is not None
    assert world.batch.errors is not None
    left = [entry.key for entry in world.inner.list(ledger_keys.batch_prefix(BATCH)) if "/shards/" not in entry.key]
    assert {key for key in left if "results-" in key or "errors-" in key} == {
        world.batch.results.key,
        world.batch.errors.key,
    }
    assert len(world.read(world.batch.results)) == LINES_A_SHARD * NUM_SHARDS


def test_a_turn_that_is_lost_while_shards_are_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    batches.end(world.ledger, BATCH, "canceled")
    num_beats = 0

    def lose(ledger: Ledger, held: Lease) -> None:
        nonlocal num_beats
        num_beats += 1
        if num_beats == NUM_SHARDS // 2:
            raise LeaseLost("someone else does this now")

    monkeypatch.setattr("batchfile.ledger.shards.beat", lose)
    assert ending.finish(world.ledger, BATCH, runner="r") is None
    monkeypatch.undo()
    now = batches.read_batch(world.ledger, BATCH)
    assert now is not None
    assert now.state == "ending"
    world.clock.sleep(world.ledger.limits.lease_ttl_s)
    world.finish()
    assert [json.loads(row)["status"] for row in world.read(world.batch.results)] == ["canceled"] * len(world.lines)


def test_a_close_that_meets_a_claim_it_did_not_expect_fences_it() -> None:
    """A listing is a hint: it may not show a record yet."""
    world = World()
    held = shards.claim(world.ledger, world.batch, world.plan, POOL, 0, runner="r")
    assert isinstance(held, Lease)
    shards.checkpoint(world.ledger, held, [result(0, 0, None)], has_dispatched=True)
    closed = shards.close(world.ledger, BATCH, world.plan, POOL, 0, reason="canceled", is_new=True)
    assert (closed.state, len(closed.parts)) == ("closed", 1)
    with pytest.raises(LeaseLost):
        shards.checkpoint(world.ledger, held, [result(0, 1, None)], has_dispatched=True)


def test_a_sweep_that_is_cut_off_is_no_fault_of_the_end() -> None:
    world = World()
    world.work(*range(3, NUM_SHARDS))
    batches.end(world.ledger, BATCH, "canceled")

    def cut_off(number: int, verb: str, key: str, phase: str) -> None:
        if verb == "delete" and "/parts/" in key:
            raise KeyboardInterrupt

    broken = Ledger(store=FaultyStore(world.inner, on_call=cut_off), clock=world.clock)
    with pytest.raises(KeyboardInterrupt):
        ending.finish(broken, BATCH, runner="r")
    ended = batches.read_batch(world.ledger, BATCH)
    assert ended is not None
    assert (ended.state, ended.counts.finished) == ("ended", LINES_A_SHARD * NUM_SHARDS)


# -- long after the end


def left(world: World) -> list[str]:
    return [entry.key for entry in world.inner.list("") if not entry.key.startswith("notifications/")]


def removed(world: World) -> None:
    """The batch was deleted, its objects were removed, and at last its tombstone."""
    world.finish()
    deleted = retention.delete(world.ledger, BATCH)
    assert deleted is not None
    retention.remove_objects(world.ledger, deleted)
    retention.remove_tombstone(world.ledger, deleted)
    assert left(world) == []


def test_a_holder_that_wakes_when_all_is_removed_leaves_nothing() -> None:
    world = World()
    held = shards.claim(world.ledger, world.batch, world.plan, POOL, 0, runner="r")
    assert isinstance(held, Lease)
    batches.end(world.ledger, BATCH, "canceled")
    removed(world)
    with pytest.raises(LeaseLost):
        shards.checkpoint(world.ledger, held, [result(0, 0, None)], has_dispatched=True)
    assert left(world) == []


def test_a_claim_of_what_was_removed_leaves_nothing() -> None:
    world = World()
    batches.end(world.ledger, BATCH, "canceled")
    removed(world)
    assert shards.claim(world.ledger, world.batch, world.plan, POOL, 0, runner="r") == "closed"
    assert left(world) == []


def test_an_end_of_what_was_removed_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    batches.end(world.ledger, BATCH, "canceled")
    commit = ending._commit_end

    def late(ledger: Ledger, *given: object) -> BatchRecord | None:
        monkeypatch.undo()
        world.clock.sleep(ledger.limits.lease_ttl_s + 1)
        removed(world)
        return commit(ledger, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ending, "_commit_end", late)
    assert ending.finish(world.ledger, BATCH, runner="r") is None
    assert left(world) == []


def test_a_part_that_a_later_owner_s_record_names_stays() -> None:
    """The answer to its checkpoint was lost, the shard went to another: the lease is lost, and the part is not."""
    world = World()
    held = shards.claim(world.ledger, world.batch, world.plan, POOL, 0, runner="r")
    assert isinstance(held, Lease)
    stale = replace(held)  # as it is before its checkpoint
    shards.checkpoint(world.ledger, held, [result(0, 0, None)], has_dispatched=True)
    world.clock.sleep(world.ledger.limits.lease_ttl_s)
    other = shards.claim(world.ledger, world.batch, world.plan, POOL, 0, runner="other")
    assert isinstance(other, Lease)
    with pytest.raises(LeaseLost):
        shards.checkpoint(world.ledger, stale, [result(0, 0, None)], has_dispatched=True)
    assert world.inner.get(other.record.parts[0].key) is not None
