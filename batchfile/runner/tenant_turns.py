"""Whose turn it is: among the tenants that have something to do here, the one that has waited longest.

Each runner takes turns by itself and remembers nothing beyond its process. So of `n` tenants each gets every n-th turn
of every runner, however many batches, shards or runners there are.
"""

from collections.abc import Iterable
from random import Random


class Turns:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._num = 0
        self._last: dict[str, int] = {}  # by tenant: the number of its last turn

    def take(self, tenants: Iterable[str]) -> str:
        """The tenant that is next; this is its turn. Those that never had one go first, in random order.

        So runners that start together do not all begin with the same tenant. Raises: ValueError where there are none.
        """
        waiting = sorted(set(tenants))  # a set has no order that a seed repeats
        self._rng.shuffle(waiting)
        tenant = min(waiting, key=lambda one: self._last.get(one, 0))
        self._num += 1
        self._last[tenant] = self._num
        return tenant
