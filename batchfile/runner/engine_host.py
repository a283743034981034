"""Holds the runner's engine and replaces it when it crashes: finds the request that crashed it, and reruns the rest."""

from dataclasses import dataclass, replace

import structlog

from batchfile.engine.base import EngineFactory, EngineStats, Finished
from batchfile.errors import EngineDead, SettingsError
from batchfile.runner import answers
from batchfile.runner.state import PendingRequest, SharedState
from batchfile.types import Failure

log = structlog.get_logger()

ENGINE_BUILDS_MAX = 16  # in a row without one success: bisecting 1,024 suspects meets an innocent one sooner
DOWN_AFTER_S = 2.0  # an endpoint that accepts nothing for this long counts as down
REBUILD_PAUSE_S = 5.0  # before another attempt to build an engine that does not start
DEATHS_OF_A_SUSPECT = 3

_ENGINE_CRASH = Failure(
    type="engine_crash",
    message="The engine crashed each time this request ran, the last time alone; it was not tried again.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What to do with the requests that were in flight: run again, run alone (in this order), or fail."""

    again: list[PendingRequest]
    alone: list[list[PendingRequest]]
    poison: list[PendingRequest]


def judge(in_flight: list[PendingRequest], *, was_alone: bool) -> Verdicts:
    """After an engine crash with `in_flight` on board. Counts the crash on each item; otherwise pure.

    Requests that share three crashes are suspects. They run alone: all of them, then halves of what crashed again, down
    to one. A request that crashes an engine alone is poison. An innocent request runs again and never fails for it: it
    leaves the suspects with the first group that survives.
    """
    for item in in_flight:
        item.deaths += 1
    # Innocent requests share some crashes by chance, so suspects are only collected after several, and proven alone.
    if was_alone:
        if len(in_flight) == 1:
            return Verdicts(again=[], alone=[], poison=in_flight)
        half = (len(in_flight) + 1) // 2
        return Verdicts(again=[], alone=[in_flight[:half], in_flight[half:]], poison=[])
    suspects = [item for item in in_flight if item.deaths >= DEATHS_OF_A_SUSPECT]
    again = [item for item in in_flight if item.deaths < DEATHS_OF_A_SUSPECT]
    return Verdicts(again=again, alone=[suspects] if suspects else [], poison=[])


class EngineHost:
    """One engine at a time, built and closed by the loop's thread."""

    def __init__(self, state: SharedState, factory: EngineFactory) -> None:
        self._state = state
        self._factory = factory

    def build(self) -> None:
        """Raises: EngineDead, SettingsError."""
        state = self._state
        state.num_builds += 1
        engine = self._factory()
        state.stats.engine_ready_at = state.now()
        state.engine, state.info = engine, engine.info
        state.fingerprints |= {engine.info.fingerprint or ""}
        state.calls["loop"].is_warm = False
        state.has_engine = True
        info = engine.info
        about = {"note": info.note} if info.note else {}
        log.info("engine.ready", engine=info.name, model=info.model, slots=info.num_slots, **about)

    def replace(self, error: EngineDead) -> None:
        """The engine crashed: put its requests back, and build the next one.

        A crash while the runner stops may be due to the stop, so it blames no request and no new engine is built.
        Raises: EngineDead if too many crashed without serving anything.
        """
        state = self._state
        log.error("engine.died", error=str(error), in_flight=len(state.in_flight))
        state.stats.num_engine_deaths += 1
        self.retire()
        self.close()
        if state.num_builds >= ENGINE_BUILDS_MAX:
            raise EngineDead(
                f"{state.num_builds} engines in a row crashed without an answer; the last error: {error}"
            ) from error
        in_flight = list(state.in_flight.values())
        state.in_flight.clear()
        state.steps.ended_at = None
        if not state.is_stopping:
            self._requeue(in_flight)
            self._rebuild()

    def _requeue(self, in_flight: list[PendingRequest]) -> None:
        state = self._state
        verdicts = judge(in_flight, was_alone=state.ready.is_alone_running)
        for item in verdicts.poison:
            state.in_flight[item.key] = item
            answers.complete(state, Finished(item.key, _ENGINE_CRASH))
        state.push(verdicts.again)
        for group in reversed(verdicts.alone):
            state.push(group, is_alone=True, is_next=True)

    def _rebuild(self) -> None:
        """Tries ENGINE_BUILDS_MAX times: a dead engine's memory may take a while to be freed. Raises: EngineDead."""
        while True:
            try:
                return self.build()
            except (EngineDead, SettingsError) as error:
                if self._state.num_builds >= ENGINE_BUILDS_MAX or self._state.is_stopping:
                    raise EngineDead(f"the engine crashed and could not be started again: {error}") from error
                log.warning("engine.not_built", error=str(error))
                self._state.ledger.clock.sleep(REBUILD_PAUSE_S)

    def close(self) -> None:
        if self._state.engine is not None:
            self._state.engine.close()

    def retire(self) -> None:
        """Count the steps of an engine that does no more work. A second call does nothing."""
        state = self._state
        if state.engine is None or not state.has_engine:
            return
        state.has_engine = False  # requests prepared by a dead engine may be unchecked
        of_engine, stats = state.engine.stats(), state.stats
        stats.num_steps += of_engine.num_steps
        stats.num_full_steps += of_engine.num_full_steps
        stats.prompt_tokens_computed += of_engine.prompt_tokens
        stats.output_tokens_generated += of_engine.output_tokens

    def stats(self) -> EngineStats:
        """Steps and tokens over all engines, including the current one. From any thread, a moment old."""
        engine, has_engine, past = self._state.engine, self._state.has_engine, self._state.stats
        stats = engine.stats() if engine is not None and has_engine else EngineStats()
        return replace(
            stats,
            num_steps=past.num_steps + stats.num_steps,
            num_full_steps=past.num_full_steps + stats.num_full_steps,
            prompt_tokens=past.prompt_tokens_computed + stats.prompt_tokens,
            output_tokens=past.output_tokens_generated + stats.output_tokens,
        )

    @property
    def down_s(self) -> float:
        """For how long the endpoint has been down; 0 while it is up, or only pauses for a moment."""
        down_s = self.stats().down_s
        return down_s if down_s >= DOWN_AFTER_S else 0.0
