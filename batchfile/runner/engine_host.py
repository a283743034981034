"""The engine that a runner has, and the next one when it dies. Knows no request."""

from collections.abc import Callable
from dataclasses import replace

import structlog

from batchfile.clock import Clock
from batchfile.engine.base import Engine, EngineFactory, EngineStats
from batchfile.errors import EngineDead, SettingsError
from batchfile.runner.stats import RunnerStats

log = structlog.get_logger()

ENGINE_BUILDS_MAX = 16  # in a row without one success: halving 1,024 suspects meets an innocent one sooner
DOWN_AFTER_S = 2.0  # an endpoint that takes nothing for this long is called down
REBUILD_PAUSE_S = 5.0  # before another try to build an engine that would not start


class EngineHost:
    """One engine at a time, built and buried by the loop's thread. `on_ready` is told of each new one."""

    def __init__(
        self, factory: EngineFactory, clock: Clock, runner_stats: RunnerStats, on_ready: Callable[[Engine], None]
    ) -> None:
        self._factory = factory
        self._clock = clock
        self._runner_stats = runner_stats
        self._on_ready = on_ready
        self._live: Engine | None = None  # built, and its steps not yet counted
        self._num_builds = 0

    @property
    def is_empty(self) -> bool:
        """There is no engine now: the first one loads, or one died."""
        return self._live is None

    def build(self) -> Engine:
        """Raises: EngineDead, SettingsError."""
        self._num_builds += 1
        engine = self._factory()
        self._live = engine
        self._runner_stats.engine_ready_at = self._clock.monotonic()
        self._on_ready(engine)
        info = engine.info
        about = {"note": info.note} if info.note else {}
        log.info("engine.ready", engine=info.name, model=info.model, slots=info.num_slots, **about)
        return engine

    def on_engine_death(self, engine: Engine, error: EngineDead) -> None:
        """It died. Raises: EngineDead where too many did, and none had served anything."""
        self._runner_stats.num_engine_deaths += 1
        self.count_steps(engine)
        engine.close()
        if self._num_builds >= ENGINE_BUILDS_MAX:
            raise EngineDead(
                f"{self._num_builds} engines in a row died and answered nothing; the last one: {error}"
            ) from error

    def rebuild(self, is_stopped: Callable[[], bool]) -> Engine:
        """A dead engine's memory may take a while to be free: patient, up to ENGINE_BUILDS_MAX. Raises: EngineDead."""
        while True:
            try:
                return self.build()
            except (EngineDead, SettingsError) as error:
                if self._num_builds >= ENGINE_BUILDS_MAX or is_stopped():
                    raise EngineDead(f"the engine died and no other could be built: {error}") from error
                log.warning("engine.not_built", error=str(error))
                self._clock.sleep(REBUILD_PAUSE_S)

    def has_served(self) -> None:
        """Engines do serve: the builds before do not count any more."""
        self._num_builds = 0

    def count_steps(self, engine: Engine) -> None:
        """Of an engine that does no more; a second time does nothing."""
        if self._live is None:
            return
        self._live = None
        stats = engine.stats()
        self._runner_stats.num_steps += stats.num_steps
        self._runner_stats.num_full_steps += stats.num_full_steps
        self._runner_stats.prompt_tokens_computed += stats.prompt_tokens
        self._runner_stats.output_tokens_generated += stats.output_tokens

    def stats(self) -> EngineStats:
        """Steps and tokens over all engines so far, the rest of the living one. From any thread, a moment old."""
        live, runner_stats = self._live, self._runner_stats
        stats = EngineStats() if live is None else live.stats()
        return replace(
            stats,
            num_steps=runner_stats.num_steps + stats.num_steps,
            num_full_steps=runner_stats.num_full_steps + stats.num_full_steps,
            prompt_tokens=runner_stats.prompt_tokens_computed + stats.prompt_tokens,
            output_tokens=runner_stats.output_tokens_generated + stats.output_tokens,
        )

    @property
    def down_s(self) -> float:
        """For how long the endpoint has been down; 0 while it is up, or only pauses for a moment."""
        down_s = self.stats().down_s
        return down_s if down_s >= DOWN_AFTER_S else 0.0
