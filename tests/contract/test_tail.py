"""Results of an open batch as they land: each once, whenever and however often one asks."""

import json
import random

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.ledger import Cursor, Limits, batches, iter_live, keys
from tests.helpers.plan import plan_input

BATCH, NUM = "b", 100
LOCAL = RoutingTable(everything="local")


class World:
    """A batch of 100 requests, every tenth line unreadable, and a runner that is driven step by step."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        limits = Limits(checkpoint_s=1.0)
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(7), limits=limits)
        rows = [
            json.dumps({"custom_id": f"r{n}", "params": {"messages": [{"role": "user", "content": f"lead {n}"}]}})
            if n % 10
            else "no json"
            for n in range(NUM)
        ]
        self.store.put(keys.input_key(BATCH, "n"), "\n".join(rows).encode())
        planned = plan_input(self.ledger, BATCH, keys.input_key(BATCH, "n"), routing=LOCAL, lines_per_range=16)
        batches.create(self.ledger, batches.Draft(batch_id=BATCH, routing=LOCAL, defaults=Defaults()), planned)
        self.cursor = Cursor()
        self.seen: dict[int, dict[str, object]] = {}

    def look(self) -> int:
        """Ask once more; how many came."""
        lines = list(iter_live(self.ledger, BATCH, self.cursor))
        for line in lines:
            assert line.number not in self.seen
            self.seen[line.number] = json.loads(line.result)
        return len(lines)

    def run(self, *, look_every: int | None = None) -> None:
        engine = EchoEngine(num_slots=4, seconds_per_token=0.5, clock=self.clock)
        options = RunnerOptions(runner_id="r", pool="local", only=BATCH, is_janitor=False)
        turns = iter(range(1_000_000))

        def until() -> bool:
            if look_every is not None and next(turns) % look_every == 0:
                self.look()
            return False

        run_alone(Runner(self.ledger, lambda: engine, options), until)

    def assert_all(self) -> None:
        assert sorted(self.seen) == list(range(NUM))
        for number, result in self.seen.items():
            assert result["custom_id"] == (f"r{number}" if number % 10 else None)
        assert self.cursor.num_given == NUM


def test_rejected_lines_are_there_from_the_start() -> None:
    world = World()
    assert world.look() == 10
    assert sorted(world.seen) == list(range(0, NUM, 10))
    assert world.look() == 0
    assert not world.cursor.is_over


def test_results_come_once_each_while_the_batch_runs() -> None:
    world = World()
    world.run(look_every=3)
    assert 10 < len(world.seen) <= NUM
    world.look()
    assert world.cursor.is_over
    world.assert_all()
    assert world.look() == 0


def test_an_ended_batch_gives_its_results_in_input_order() -> None:
    world = World()
    world.run()
    assert [line.number for line in iter_live(world.ledger, BATCH, world.cursor)] == list(range(NUM))
    assert world.cursor.is_over


def test_a_reader_that_stops_in_the_middle_goes_on_there() -> None:
    world = World()
    world.run(look_every=None)
    lines = iter_live(world.ledger, BATCH, world.cursor)
    for _ in range(30):
        line = next(lines)
        world.seen[line.number] = json.loads(line.result)
    world.look()
    world.assert_all()


def test_a_batch_that_ends_while_it_is_read_is_read_to_its_end() -> None:
    world = World()
    lines = iter_live(world.ledger, BATCH, world.cursor)
    first = next(lines)
    world.seen[first.number] = json.loads(first.result)
    world.run()  # its parts are swept
    for line in lines:
        world.seen[line.number] = json.loads(line.result)
    world.look()
    assert world.cursor.is_over
    world.assert_all()


def test_a_part_that_is_lost_holds_up_no_other() -> None:
    world = World()
    (lost,) = [entry.key for entry in world.store.list(keys.parts_prefix(BATCH)) if "/000000/" in entry.key]
    world.store.delete(lost)
    assert world.look() == 8  # the first of seven ranges had two
    world.run()
    world.look()
    world.assert_all()


def test_a_batch_that_is_not_there_has_nothing_and_is_over() -> None:
    world, cursor = World(), Cursor()
    assert list(iter_live(world.ledger, "another", cursor)) == []
    assert cursor.is_over
