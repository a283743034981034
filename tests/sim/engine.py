"""The echo engine in a simulated process: it says what it starts, and a line may take its whole process along."""

from collections.abc import Callable

from batchfile.engine.base import Prepared
from batchfile.testing import EchoFaults, FaultyEchoEngine
from tests.helpers.engine import EchoPrepared
from tests.helpers.faults import Fault
from tests.sim.world import Gone, Process

POISON = "POISON"  # ends the engine
KILLER = "KILLER"  # ends the process


class SimEngine(FaultyEchoEngine):
    def __init__(self, process: Process, started: Callable[[int, str], None], *, num_slots: int, token_s: float):
        super().__init__(
            num_slots=num_slots,
            seconds_per_token=token_s,
            clock=process.clock,
            faults=EchoFaults(poison=POISON, kill=KILLER),
        )
        self._process = process
        self._started = started

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        self._started(key, prepared.request.custom_id)
        super().add(key, prepared)

    def _fail(self, fault: Fault) -> None:
        if fault == "kill":
            self._process.kill()
            raise Gone
        super()._fail(fault)
