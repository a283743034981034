"""Hypothesis plays against the same actors: it chooses what goes wrong, and shrinks what breaks a promise."""

from collections import defaultdict
from contextlib import ExitStack
from random import Random
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.helpers.plan import ranges
from tests.sim import bodies
from tests.sim.actors import Shape, Stage, seeded_secrets
from tests.sim.clients import Client, CreateOptions
from tests.sim.faults import PROCESS_KINDS, READ_KINDS, WRITE_KINDS, Fault, Kind
from tests.sim.green import installed
from tests.sim.invariants import Model
from tests.sim.simulation import CALM_S_MAX, GHOST_S_MAX, POOLS, SETTINGS, TTL_S, limits
from tests.sim.world import World

KINDS: tuple[Kind, ...] = (*PROCESS_KINDS, *WRITE_KINDS, *READ_KINDS)
BATCHES_MAX = 2


class Asked:
    """The next call of a process meets the fault that was asked for, if it is one that such a call can meet."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[tuple[Kind, float]]] = defaultdict(list)
        self.struck: list[Fault] = []

    def at(self, process: str, call: int, verb: str, now: float) -> Fault | None:
        is_write = verb in {"put", "commit", "delete"}
        wanted = self.waiting[process]
        if not wanted or wanted[0][0] not in (*PROCESS_KINDS, *(WRITE_KINDS if is_write else READ_KINDS)):
            return None
        kind, amount = wanted.pop(0)
        self.struck.append(Fault(process, call, kind, amount))
        return self.struck[-1]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._patches = ExitStack()
        self._patches.enter_context(installed())
        self._patches.enter_context(seeded_secrets("machine"))
        self._patches.enter_context(patch.object(ranges, "RANGE_LINES_MIN", 2))
        self.world = World("machine")
        self.model, self.asked = Model(self.world), Asked()
        shape = Shape(limits=limits(abandoned_s=45.0, completion_window_s=24 * 3600.0))
        self.stage = Stage(self.world, shape, SETTINGS, self.asked, self.model)
        self.model.store = self.stage.store
        self.clients: list[Client] = []

    @precondition(lambda self: len(self.clients) < BATCHES_MAX)
    @rule(
        way=st.sampled_from(("upload", "local", "stored")),
        num_lines=st.integers(2, 5),
        cancels_after_s=st.none() | st.floats(0.0, 40.0),
        has_twin=st.booleans(),
    )
    def submit(self, way: bodies.Way, num_lines: int, cancels_after_s: float | None, has_twin: bool) -> None:
        sent = bodies.draw(Random(num_lines), f"k{len(self.clients)}", POOLS, num_lines=num_lines, way=way, odd=0.0)
        create_options = CreateOptions(way=way, cancels_after_s=cancels_after_s, has_twin=has_twin, repeats=True)
        self.clients.append(Client(stage=self.stage, sent=sent, create_options=create_options))

    @rule(seconds=st.sampled_from((0.1, 1.0, 5.0, TTL_S)))
    def wait(self, seconds: float) -> None:
        self.world.run(lambda: False, for_s=seconds)

    @rule(place=st.integers(0, 5), kind=st.sampled_from(KINDS), share_of_ttl=st.sampled_from((0.1, 1.2, 2.5)))
    def strike(self, place: int, kind: Kind, share_of_ttl: float) -> None:
        living = [*self.stage.runners.values(), *self.stage.replicas]
        self.asked.waiting[living[place % len(living)].name].append((kind, share_of_ttl * TTL_S))

    def teardown(self) -> None:
        try:
            self.asked.waiting.clear()
            self.model.calm_since = self.world.now + GHOST_S_MAX
            is_over = self.world.run(self._is_over, for_s=CALM_S_MAX)
            self.model.check_rest(is_quiet=False)
            assert is_over, "a client waits for ever"
        finally:
            self.world.close()
            self._patches.close()

    def _is_over(self) -> bool:
        return all(client.is_done for client in self.clients) and self.model.is_settled()


Machine.TestCase.settings = settings(
    max_examples=settings().max_examples * 3 // 5, stateful_step_count=20, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
