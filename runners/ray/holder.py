"""A detached Ray actor that runs one runner process. Stateless, so that Ray can restart it on any node.

The process ends with the actor: gracefully if the actor was killed, at once if its node was.
"""

import os
import random
import socket
import threading

import structlog

from batchfile import logs
from batchfile.machine.supervisor import OK, SlotPlan, Supervisor

from .. import child
from .plans import HolderReport, HolderState, Task

log = structlog.get_logger()

# A runner that exits at its first start is restarted: GPU memory may become free, or settings fixed.
REFUSED_WAIT_S = 30.0
THREADS = "OMP_NUM_THREADS"


class Holder:
    """Its methods return at once, whatever the runner does."""

    def __init__(self, name: str, task: Task) -> None:
        logs.configure(holder=name)
        _prepare_environment(task)
        self._task = task
        self._state: HolderState = "running"
        self._last_code: int | None = None
        self._over = threading.Event()
        self._supervisor = self._new_supervisor()
        threading.Thread(target=self._hold, name="hold", daemon=True).start()

    def report(self) -> HolderReport:
        return HolderReport(
            task=self._task,
            state=self._state,
            host=socket.gethostname(),
            pid=os.getpid(),
            last_code=self._last_code,
        )

    def stop(self) -> None:
        """Stop gracefully. Repeated calls have no effect."""
        if not self._over.is_set():
            self._over.set()
            self._supervisor.stop()

    def _new_supervisor(self) -> Supervisor:
        plan = SlotPlan(command=child.command(*self._task.arguments), environ=child.variables())
        return Supervisor([plan], self._task.grace_s)

    def _hold(self) -> None:
        while True:
            code = self._supervisor.reconcile()
            self._last_code = code
            if code == OK or self._over.is_set():
                break
            self._state = "waiting"
            wait_s = REFUSED_WAIT_S * (0.5 + random.random() / 2)
            log.error("runner.refused", code=code, again_in_s=round(wait_s, 1))
            self._supervisor = self._new_supervisor()
            if self._over.wait(wait_s):
                break
            self._state = "running"
        self._state = "ended"
        log.info("holder.ended", code=self._last_code)


def _prepare_environment(task: Task) -> None:
    """Let the child use all CPU threads if it has no GPU."""
    if not task.num_gpus:
        os.environ.pop(THREADS, None)  # Ray sets it to the number of CPUs reserved for the actor
