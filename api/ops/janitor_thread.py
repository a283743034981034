"""The janitor of an API process: a thread that tidies in the background, harmless in any number of processes."""

import threading
from collections.abc import Callable

import structlog

from batchfile.errors import StoreError
from batchfile.inbox.scan import Inbox
from batchfile.janitor import Janitor
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.ledger.status import StatusReader

log = structlog.get_logger()

TICK_S = 15.0


class JanitorThread:
    """`on_ended` hears once of every ended batch, also of those that ended before this process began.

    `defer` takes over what would take long.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        reader: StatusReader,
        on_ended: Callable[[BatchRecord], None],
        inbox: Inbox | None = None,
        defer: Callable[[BatchRecord], bool] = lambda batch: False,
        aside: SetAside | None = None,
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._janitor = Janitor(
            ledger, runner=name, reader=reader, on_ended=on_ended, inbox=inbox, defer=defer, aside=aside
        )

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. A store that is down is waited for."""
        while not stop.is_set():
            try:
                with self._ledger.store.hold_process_lock(self._name):
                    self._run_janitor(stop)
            except StoreError as error:
                log.warning("janitor.paused", error=str(error))
                stop.wait(TICK_S)

    def _run_janitor(self, stop: threading.Event) -> None:
        while not stop.wait(TICK_S):
            try:
                self._janitor.tick()
            except StoreError as error:
                log.warning("janitor.paused", error=str(error))
            except Exception:  # the top of this thread
                log.exception("janitor.failed")
