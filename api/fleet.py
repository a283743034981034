"""The pools and their runners, as the store shows them. Looks again after a few seconds, not at every request."""

import threading
import time
from collections import Counter
from dataclasses import asdict

from api import shapes
from api.errors import Refusal
from batchfile.ledger.base import Ledger
from batchfile.ledger.presence import read_presence
from batchfile.ledger.scale import Scale, read_scale
from batchfile.ledger.status import StatusReader
from batchfile.records import PresenceRecord
from batchfile.settings import Settings

FRESH_S = 3.0  # any number of dashboards and probes cost one look in this time


class Fleet:
    """Raises everywhere: StoreUnavailable; Refusal 404 for an unknown pool."""

    def __init__(self, ledger: Ledger, settings: Settings, reader: StatusReader) -> None:
        self._ledger = ledger
        self._settings = settings
        self._reader = reader
        self._lock = threading.Lock()
        self._presence: list[PresenceRecord] = []
        self._scales: dict[str, Scale] = {}
        self._looked_at = {"presence": float("-inf")}

    def presence(self) -> list[PresenceRecord]:
        with self._lock:
            if self._is_due("presence"):
                self._presence = read_presence(self._ledger)
                self._looked_at["presence"] = time.monotonic()
            return self._presence

    def scale_of(self, pool: str) -> Scale:
        if pool not in self._settings.pools:
            raise Refusal(404, f"There is no pool {pool[:80]!r}; there are {', '.join(sorted(self._settings.pools))}")
        with self._lock:
            if self._is_due(pool):
                self._scales[pool] = read_scale(self._reader, pool)
                self._looked_at[pool] = time.monotonic()
            return self._scales[pool]

    def scale(self, pool: str) -> shapes.Scale:
        found = self.scale_of(pool)
        return shapes.Scale(
            pool=pool,
            pending_shards=found.pending_shards,
            pending_requests=found.pending_requests,
            leased_shards=found.leased_shards,
            live_runners=found.live_runners,
        )

    def pool(self, name: str) -> shapes.Pool:
        found = self.scale_of(name)
        settings = self._settings.pools[name]
        return shapes.Pool(
            name=name,
            model=settings.model,
            engine=settings.engine,
            stages=[stage for stage, pool in self._settings.stages.items() if pool == name],
            runners=Counter(runner.state for runner in self.presence() if runner.pool == name),
            open_batches=found.open_batches,
            pending_requests=found.pending_requests,
        )

    def pools(self) -> list[shapes.Pool]:
        return [self.pool(name) for name in sorted(self._settings.pools)]

    def runners(self, pool: str | None) -> list[shapes.Runner]:
        found = [runner for runner in self.presence() if pool in {None, runner.pool}]
        return [shapes.Runner(**asdict(runner)) for runner in found]

    def health(self) -> dict[str, shapes.PoolHealth]:
        num = Counter(runner.pool for runner in self.presence() if runner.state != "loading")
        return {
            name: shapes.PoolHealth(status="up" if num[name] else "down", runners=num[name])
            for name in sorted(self._settings.pools)
        }

    def _is_due(self, what: str) -> bool:
        return time.monotonic() - self._looked_at.get(what, float("-inf")) >= FRESH_S
