"""Bounds the encoded bytes of media that all threads hold while they fetch and decode."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

FETCHED_BYTES_MAX = 32 * 1024 * 1024


class NoRoom(Exception):
    """An object is larger than the room for it, and there is no more now. `size`: what it needs, as far as known."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class FetchBudget:
    """Divides `bytes_max` among requests. One request at a time may go beyond, so that each of them can end.

    Together they hold at most `bytes_max` and the limit of one request. `peak`: the most so far.
    """

    def __init__(self, bytes_max: int = FETCHED_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._changed = threading.Condition()
        self._beyond: Share | None = None
        self._held = self.peak = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """The room of one request, until its media are decoded."""
        share = Share(self)
        try:
            yield share
        finally:
            share.resize(0)

    def grow(self, share: "Share", size: int, *, waits: bool) -> bool:
        with self._changed:
            while self._held - share.size + size > self._bytes_max and self._beyond not in {None, share}:
                if not waits:
                    return False
                self._changed.wait()
            if self._held - share.size + size > self._bytes_max:
                self._beyond = share
            self._set(share, size)
            return True

    def resize(self, share: "Share", size: int) -> None:
        with self._changed:
            self._set(share, size)
            if not size and self._beyond is share:
                self._beyond = None
            self._changed.notify_all()

    def _set(self, share: "Share", size: int) -> None:
        self._held += size - share.size
        share.size = size
        self.peak = max(self.peak, self._held)


class Share:
    """`size`: bytes that one request holds. Its methods are for one thread."""

    def __init__(self, budget: FetchBudget) -> None:
        self._budget = budget
        self.size = 0

    def take(self, size: int) -> None:
        """Wait for room for further bytes. Not while a connection is open, or others wait for what is read."""
        self._budget.grow(self, self.size + size, waits=True)

    def fits(self, size: int) -> bool:
        """Take room until this share has `size` bytes, if there is room now."""
        return size <= self.size or self._budget.grow(self, size, waits=False)

    def resize(self, size: int) -> None:
        """Give room back, or count bytes that are in memory anyway."""
        self._budget.resize(self, size)


class ObjectRoom:
    """Room of a share for the object that is read now."""

    def __init__(self, share: Share, held: int) -> None:
        self._share, self._held = share, held

    def need(self, size: int) -> None:
        """Raises: NoRoom if the object has more bytes than fit now."""
        if not self._share.fits(self._held + size):
            raise NoRoom(size)
