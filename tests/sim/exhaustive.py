"""Every schedule with at most two deviations from the plain one: two runners, two shards and a canceller.

Everything takes its turn in a fixed order until a deviation: a death, a standstill, a lost answer, a ghost, at one call
of one process. The second is tried at every call that follows the first. `python -m tests.sim.exhaustive --help`.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from batchfile.errors import StoreUnavailable
from batchfile.types import Defaults
from tests.helpers.ledger import Limits, batches, ending
from tests.helpers.plan import plan_input
from tests.sim import bodies
from tests.sim.actors import Shape, Stage
from tests.sim.faults import Fault, Given, Kind
from tests.sim.green import installed
from tests.sim.invariants import Model
from tests.sim.simulation import CALM_S_MAX, CHECKPOINT_S, SETTINGS, TTL_S
from tests.sim.world import Process, World

BATCH = "b"
CANCEL_AFTER_S = 6.0
OF_A_WRITE: tuple[Kind, ...] = ("kill", "kill after", "pause", "pause after", "before", "after", "ghost")
OF_A_READ: tuple[Kind, ...] = ("kill", "pause", "before")
AMOUNTS: dict[Kind, float] = {"pause": 1.5 * TTL_S, "pause after": 1.5 * TTL_S, "ghost": 2 * TTL_S}
SHAPE = Shape(
    limits=Limits(lease_ttl_s=TTL_S, checkpoint_s=CHECKPOINT_S, grace_s=10.0),
    pools=("one",),
    num_replicas=0,
    num_slots=2,
    token_s=4.0,
    restart_s_max=2.0,
)


@dataclass(frozen=True, slots=True)
class Call:
    """One store call that the schedule made."""

    process: str
    number: int
    is_write: bool

    def deviations(self) -> Iterator[Fault]:
        for kind in OF_A_WRITE if self.is_write else OF_A_READ:
            yield Fault(self.process, self.number, kind, AMOUNTS.get(kind, 0.0))


class Recorder(Given):
    """The given deviations, and every call in the order in which it was made."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)
        self.calls: list[Call] = []

    def at(self, process: str, call: int, verb: str, now: float) -> Fault | None:
        self.calls.append(Call(process, call, verb in {"put", "commit", "delete"}))
        return super().at(process, call, verb, now)


class Broken(AssertionError):
    """A schedule that breaks a promise: which, and by what deviations."""


def play(deviations: Sequence[Fault], *, has_cancel: bool) -> list[Call]:
    """Run one schedule to its end; its calls, for the deviations that may follow. Raises: Broken."""
    world = World("exhaustive")
    model, recorder = Model(world), Recorder(deviations)
    gc.disable()
    try:
        stage = Stage(world, SHAPE, SETTINGS, recorder, model)
        model.store = stage.store
        setup = Process(world, "setup")
        world.spawn(setup, _create, stage, setup)
        if not world.run(lambda: BATCH in model.batches, for_s=10.0):
            raise AssertionError("the batch was not made")
        first = len(recorder.calls)
        if has_cancel:
            canceller = Process(world, "canceller")
            world.spawn(canceller, _cancel, stage, canceller)
        try:
            if not world.run(model.is_settled, for_s=CALM_S_MAX):
                model.fail(6, "the batch never ended")
            world.run(lambda: False, for_s=2 * TTL_S)  # zombies wake up, and ghosts write
            model.check_rest(is_quiet=not deviations)
        except Exception as error:
            raise Broken(f"{error!r} with {[str(fault) for fault in deviations]}") from error
        finally:
            world.close()
        return recorder.calls[first:]
    finally:
        gc.enable()


def _create(stage: Stage, process: Process) -> None:
    lines = [bodies.line(f"r{number}", "good", "one", 1) for number in range(3)]
    sent = bodies.Sent(key="r", lines=lines)
    stage.model.sent[sent.sha256] = sent
    ledger, routing = stage.ledger_of(process), SETTINGS.routing()
    key = f"batches/{BATCH}/input-n.jsonl"
    stage.store.put(key, sent.data)
    planned = plan_input(ledger, BATCH, key, routing=routing, lines_per_range=2)
    batches.create(ledger, batches.Draft(batch_id=BATCH, routing=routing, defaults=Defaults()), planned)


def _cancel(stage: Stage, process: Process) -> None:
    ledger = stage.ledger_of(process)
    process.clock.sleep(CANCEL_AFTER_S)
    while True:
        with suppress(StoreUnavailable):
            batches.end(ledger, BATCH, "canceled")
            ending.finish(ledger, BATCH, runner=process.name)
            return
        process.clock.sleep(1.0)


def schedules(*, has_cancel: bool, share: int = 1, offset: int = 0) -> Iterator[list[Fault]]:
    """Play the plain schedule, all with one deviation, and each `share`-th with two; yields what each deviated in.

    `share` 0: play none with two, only yield them.
    """
    plain = play([], has_cancel=has_cancel)
    yield []
    number = 0
    for place, call in enumerate(plain):
        for first in call.deviations():
            after = play([first], has_cancel=has_cancel)
            yield [first]
            for later in after[place + 1 :]:
                for second in later.deviations():
                    number += 1
                    if share == 0:
                        yield [first, second]
                    elif number % share == offset:
                        play([first, second], has_cancel=has_cancel)
                        yield [first, second]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.exhaustive", description=__doc__)
    parser.add_argument("--share", type=int, default=1, help="of the schedules with two deviations, each N-th")
    parser.add_argument("--count", action="store_true", help="only count them")
    args = parser.parse_args()
    started_at, num, broken = time.monotonic(), 0, list[str]()
    with installed():
        for has_cancel in (True, False):
            try:
                for _ in schedules(has_cancel=has_cancel, share=0 if args.count else args.share):
                    num += 1
            except Broken as error:
                broken.append(str(error))
    wall_s = round(time.monotonic() - started_at, 1)
    print(json.dumps({"sim": "exhaustive", "deviations": 2, "schedules": num, "broken": broken, "wall_s": wall_s}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
