"""What lies in a store and can be no object of ours: a line in the log for each, once."""

import threading

import structlog

log = structlog.get_logger()

SAID_MAX = 10_000  # names that are remembered; more are passed over without a word


class SkippedKeys:
    """Of one store. Thread-safe."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def say(self, name: str, why: str) -> None:
        with self._lock:
            if name in self._said or len(self._said) >= SAID_MAX:
                return
            self._said.add(name)
        log.warning("store.passed_over", key=name.encode(errors="backslashreplace").decode(), error=why)
