"""A store whose every call takes a while, in virtual time, for benches: the same on every machine."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.store import Clock, Store, WrappedStore

T = TypeVar("T")


class LatentStore(WrappedStore):
    """It is its inner store, `latency_s` later. A listing, a stream or a commit is one call."""

    def __init__(self, inner: Store, clock: Clock, latency_s: float) -> None:
        super().__init__(inner)
        self._clock = clock
        self._latency_s = latency_s

    def _call(self, verb: str, key: str, do: Callable[[], T]) -> T:
        if verb not in {"write", "link"}:
            self._clock.sleep(self._latency_s)
        return do()
