"""The status of pools and runners, read from the store and cached for a few seconds."""

from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from msgspec import structs

from batchfile.errors import StoreError
from batchfile.ledger.base import Ledger
from batchfile.ledger.batch_status import CANNOT_ANSWER, BatchStatus, Pool
from batchfile.ledger.heartbeats import Kept, Scale, has_waiting, pool_of, read_roster, read_scale
from batchfile.ledger.records import HeartbeatRecord
from batchfile.ledger.status import StatusReader
from batchfile.ledger.waiting import pool_problem, waiting_for
from batchfile.settings import Settings

from ..http.errors import Refusal
from . import schemas


class PoolStatus:
    """Raises everywhere: StoreUnavailable; Refusal 404 for an unknown pool."""

    def __init__(self, ledger: Ledger, settings: Settings, reader: StatusReader) -> None:
        self._settings = settings
        self._roster = Kept(lambda: read_roster(ledger))
        self._waiting = {pool: Kept(partial(has_waiting, reader, pool)) for pool in settings.pools}
        self._scales = {pool: Kept(partial(read_scale, reader, pool)) for pool in settings.pools}

    def heartbeats(self) -> tuple[HeartbeatRecord, ...]:
        return self._roster.now().live

    def with_waiting(self, status: BatchStatus) -> BatchStatus:
        """The status with what its pools wait for, if that is known now."""
        if status.state != "open":
            return status
        with suppress(StoreError):
            return structs.replace(status, waiting_for=waiting_for(status, self._roster.now(), is_operator=False))
        return status

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

    def pool(self, name: str) -> Pool:
        scale, settings = self.scale_of(name), self._settings.pools[name]
        stages = [stage for stage, pool in self._settings.stages.items() if pool == name]
        roster = self._roster.now()
        pool = pool_of(name, settings.model, settings.engine, stages, roster.live, scale)
        return structs.replace(pool, problem=pool_problem(pool, roster, scale.oldest_created_at))

    def pools(self) -> list[Pool]:
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
        num = Counter(runner.pool for runner in self.heartbeats() if runner.state not in CANNOT_ANSWER)
        return {
            name: schemas.PoolHealth(status="up" if num[name] else "down", runners=num[name])
            for name in sorted(self._settings.pools)
        }
