"""One tenant against another: it keeps batches open in a pool all the time, so that there is always more to do."""

from random import Random

from tests.sim import bodies
from tests.sim.actors import Stage
from tests.sim.bodies import Sent
from tests.sim.clients import Client, Wishes
from tests.sim.world import Process

OPEN = 4
LINES = 12
OPEN_WORDS_MAX = OPEN * LINES * 3  # bodies.draw: three words a line at most
BATCHES_MAX = 500  # a fair pool serves the other tenant long before
LOOK_S = 2.0


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
        self._mine.append(Client(stage=self._stage, sent=sent, wishes=Wishes(tenant="flood")))
        self._clients.append(self._mine[-1])
