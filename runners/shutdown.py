"""When a runner ends by itself: drained, or idle for long enough. Pure."""


class ShutdownRule:
    """`idle_exit_s` None: it never ends for being idle."""

    def __init__(self, *, is_drain: bool, idle_exit_s: float | None) -> None:
        self._is_drain = is_drain
        self._idle_exit_s = idle_exit_s
        self._idle_since: float | None = None

    def is_due(self, *, is_idle: bool, is_drained: bool, now: float) -> bool:
        """`now`: a monotonic clock, looked at again and again."""
        if self._is_drain and is_drained:
            return True
        if not is_idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        if self._idle_exit_s is None or self._idle_since is None:
            return False
        return now - self._idle_since >= self._idle_exit_s
