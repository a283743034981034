"""The status of pools and runners, read from the store and cached for a few seconds."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Generic, TypeVar

from batchfile.ledger.base import Ledger
from batchfile.ledger.heartbeats import Scale, has_waiting, read_heartbeats, read_scale
from batchfile.ledger.records import HeartbeatRecord
from batchfile.ledger.status import StatusReader
from batchfile.settings import Settings

from ..http.errors import Refusal
from . import schemas

T = TypeVar("T")

FRESH_S = 3.0  # any number of dashboards and probes cause one read in this time


class PoolStatus:
    """Raises everywhere: StoreUnavailable; Refusal 404 for an unknown pool."""

    def __init__(self, ledger: Ledger, settings: Settings, reader: StatusReader) -> None:
        self._settings = settings
        self._heartbeats = _Kept(lambda: read_heartbeats(ledger))
        self._waiting = {pool: _Kept(partial(has_waiting, reader, pool)) for pool in settings.pools}
        self._scales = {pool: _Kept(partial(read_scale, reader, pool)) for pool in settings.pools}

    def heartbeats(self) -> list[HeartbeatRecord]:
        return self._heartbeats.now()

    def scale_of(self, pool: str) -> Scale:
        if pool not in self._scales:
            raise Refusal(404, f"Pool {pool[:80]!r} not found; use one of {', '.join(sorted(self._scales))}")
        return self._scales[pool].now()

    def scale(self, pool: str) -> schemas.Scale:
        found = self.scale_of(pool)
        return schemas.Scale(
            pool=pool,
            pending_shards=found.pending_shards,
            pending_requests=found.pending_requests,
            leased_shards=found.leased_shards,
            live_runners=found.live_runners,
        )

    def pool(self, name: str) -> schemas.Pool:
        found = self.scale_of(name)
        settings = self._settings.pools[name]
        live = [runner for runner in self.heartbeats() if runner.pool == name]
        return schemas.Pool(
            name=name,
            model=settings.model,
            # Prefer what live runners report, because they have their own settings.
            engine=", ".join(sorted({runner.engine for runner in live})) or settings.engine,
            stages=[stage for stage, pool in self._settings.stages.items() if pool == name],
            runners=Counter(runner.state for runner in live),
            open_batches=found.open_batches,
            pending_requests=found.pending_requests,
        )

    def pools(self) -> list[schemas.Pool]:
        return [self.pool(name) for name in sorted(self._settings.pools)]

    def runners(self, pool: str | None) -> list[schemas.Runner]:
        """Without batches, which may belong to other tenants, and, on a service with keys, without host names, which
        only the operator may see.
        """
        found = [runner for runner in self.heartbeats() if pool in {None, runner.pool}]
        hidden: dict[str, Any] = {"shards": (), "set_aside": {}}
        if self._settings.api_keys:
            hidden["host"] = ""
        return [schemas.Runner(**asdict(replace(runner, **hidden))) for runner in found]

    def is_waiting_in_vain(self) -> bool:
        """Do requests wait for a pool that is down?"""
        down = [name for name, pool in self.health().items() if pool.status == "down"]
        return any(self._waiting[name].now() for name in down)

    def health(self) -> dict[str, schemas.PoolHealth]:
        """A pool is up if it has a runner that is neither `loading` nor `down` (its endpoint is unavailable)."""
        num = Counter(runner.pool for runner in self.heartbeats() if runner.state not in {"loading", "down"})
        return {
            name: schemas.PoolHealth(status="up" if num[name] else "down", runners=num[name])
            for name in sorted(self._settings.pools)
        }


class _Kept(Generic[T]):
    """Caches the result of `look`. Concurrent callers wait for one call of it."""

    def __init__(self, look: Callable[[], T]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._found: T | None = None
        self._looked_at = float("-inf")

    def now(self) -> T:
        with self._lock:
            if self._found is None or time.monotonic() - self._looked_at >= FRESH_S:
                self._found = self._look()
                self._looked_at = time.monotonic()
            return self._found
