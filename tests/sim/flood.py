"""One tenant against another: it keeps batches open in a pool all the time, so that there is always more to do."""

from collections.abc import Iterable
from random import Random

from batchfile.engine.base import in_flight_for
from tests.helpers.runner import WINDOW_SLOTS
from tests.sim import bodies
from tests.sim.actors import Stage
from tests.sim.bodies import Sent
from tests.sim.clients import Client, CreateOptions
from tests.sim.invariants import Known
from tests.sim.world import Process

OPEN, LINES = 6, 20  # together far more than HELD_LINES: else the runner holds all there is, and needs no choice
BATCHES_MAX = 500  # a fair pool serves the other tenant long before
LOOK_S = 2.0

SLOTS = 1  # of the one runner of the pool
LINE_WORDS = 3  # at most, as bodies.draw has it
SHARD_LINES = 3  # at most, as simulation.run and the clients draw them
ENGINE_LINES = in_flight_for(SLOTS)
HELD_LINES = ENGINE_LINES + (WINDOW_SLOTS * SLOTS + ENGINE_LINES) + SHARD_LINES  # in the engine, and prefetched


def words_until_served(batches: Iterable[Known], own: Iterable[bodies.SentLine]) -> int:
    """What the pool's one slot generates at most, in words, until the other tenant's batches have ended.

    Derived from the rules that a runner goes by (docs/protocol.md, "Taking turns"). The tenants' shards are claimed in
    turn, so for each of its own there is one of the flood, and a shard has at least one line. What the runner holds
    when the first is claimed goes before it, and as much again may pass it on the way, the longer first. One
    interruption that began before the calm takes all of it back. A shard whose holder died once before may have to be
    tried alone, its lines one by one, in turn with one trial of the flood, each of the two in an empty engine.
    """
    lines = list(own)
    num_words = sum(line.num_words for line in lines)
    of_flood = len(lines) * SHARD_LINES + 2 * HELD_LINES
    suspects = [shard for known in batches for shard in known.shards.values() if shard.crash_count]
    trial = 2 * ENGINE_LINES + SHARD_LINES
    of_trials = sum(shard.num_lines for shard in suspects) * trial
    return 2 * (num_words + of_flood * LINE_WORDS) + of_trials * LINE_WORDS


class Flood:
    """`clients`: where its own are added. Until `is_over`."""

    def __init__(self, stage: Stage, clients: list[Client], pool: str) -> None:
        self.is_over = False
        self.sent: list[Sent] = []
        self._stage, self._clients, self._pool = stage, clients, pool
        self._mine: list[Client] = []
        self._rng = Random(f"{stage.world.seed}/flood")
        stage.world.spawn(Process(stage.world, "flood"), self._run)

    def _run(self) -> None:
        while not self.is_over and len(self.sent) < BATCHES_MAX:
            while sum(not client.is_done for client in self._mine) < OPEN:
                self._add()
            self._stage.world.sleep(LOOK_S)

    def _add(self) -> None:
        key = f"f{len(self.sent)}"
        sent = bodies.draw(self._rng, key, [self._pool], num_lines=LINES, way="upload", odd=0.0)
        self.sent.append(sent)
        self._mine.append(Client(stage=self._stage, sent=sent, create_options=CreateOptions(tenant="flood")))
        self._clients.append(self._mine[-1])
