"""Writes the heartbeat of a runner to the store: its identity, state and rates. For information only."""

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import structlog

from batchfile.engine.base import EngineStats
from batchfile.errors import StoreError
from batchfile.ledger.base import Ledger
from batchfile.ledger.heartbeats import remove_heartbeat, write_heartbeat
from batchfile.ledger.records import HeartbeatRecord, RunnerState, RunnerTotals
from batchfile.runner.runner import Runner
from batchfile.runner.stats import RunnerStats

log = structlog.get_logger()

WINDOW_S = 60.0
# Minimum for a measurement within the window, any of these pairs: requests answered, seconds with work.
ENOUGH = ((10, 1.0), (3, 30.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Per second with requests in flight; 0: not enough measured. `requests`: succeeded and failed in the engine."""

    requests: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    at: float
    busy_s: float
    requests: int
    input_tokens: int
    output_tokens: int


class RateMeter:
    """Call `look` with the same stats about once a second. `now`: a monotonic clock."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque()

    def look(self, runner_stats: RunnerStats, now: float) -> Rates:
        points = self._points
        last = _Point(
            at=now,
            busy_s=runner_stats.busy_s,
            requests=runner_stats.succeeded + runner_stats.failed,
            input_tokens=runner_stats.input_tokens,
            output_tokens=runner_stats.output_tokens,
        )
        points.append(last)
        while now - points[0].at > WINDOW_S:
            points.popleft()
        first = points[0]
        span_s = last.busy_s - first.busy_s
        num = last.requests - first.requests
        if not any(num >= num_min and span_s >= busy_s_min for num_min, busy_s_min in ENOUGH):
            return Rates()
        return Rates(
            requests=num / span_s,
            input_tokens=(last.input_tokens - first.input_tokens) / span_s,
            output_tokens=(last.output_tokens - first.output_tokens) / span_s,
        )


WRITE_S = 10.0  # and at each change of state
SHARDS_SHOWN_MAX = 100
SET_ASIDE_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What is known before the engine starts: `model` and `engine` from the settings, `started_at` in epoch seconds."""

    pool: str
    runner_id: str
    model: str
    engine: str
    host: str
    started_at: float


def state_of(runner: Runner) -> RunnerState:
    if runner.is_stopping:
        return "draining"
    if runner.is_building:
        return "loading"
    if runner.down_s:
        return "down"
    return "idle" if runner.is_idle else "running"


def problem_of(stats: EngineStats) -> str:
    """Why an endpoint is down, without its address and its own words, which only the log has."""
    status = stats.down_status
    if status is None:
        return "The endpoint cannot be reached"
    if status == 401:
        return "The endpoint rejects the API key (401)"
    if status == 403:
        return "The endpoint denies access (403)"
    if status == 404:
        return "The endpoint does not know the address or the model (404)"
    if status == 429:
        return "The endpoint accepts no more requests for now (429)"
    return f"The endpoint answers with an error ({status})" if status >= 400 else f"The endpoint answers {status}"


class Heartbeat:
    """Call `tick` about once a second from one thread, and `leave` after the last."""

    def __init__(self, ledger: Ledger, runner: Runner, identity: Identity) -> None:
        self._ledger = ledger
        self._runner = runner
        self._identity = identity
        self._meter = RateMeter()
        self._state: RunnerState | None = None
        self._written_at = float("-inf")
        self._is_written = False

    def tick(self) -> None:
        now = time.monotonic()
        rates = self._meter.look(self._runner.runner_stats, now)
        state = state_of(self._runner)
        before, self._state = self._state, state
        self._log_change(before, state)
        if state != before or now - self._written_at >= WRITE_S:
            self._written_at = now
            self._is_written = False
            with suppress(StoreError):  # only information, and the next write follows soon
                write_heartbeat(self._ledger, self._record(state, rates))
                self._is_written = True

    def leave(self) -> None:
        """Remove the heartbeat, unless its last write failed: an unavailable store must not delay the exit."""
        if self._is_written:
            remove_heartbeat(self._ledger, self._identity.pool, self._identity.runner_id)

    def _log_change(self, before: RunnerState | None, state: RunnerState) -> None:
        if state == "down" and before != "down":
            log.warning(
                "pool.down",
                runner_id=self._identity.runner_id,
                reason=self._runner.engine_stats().down_reason,
                what_now="requests wait until the endpoint is back; leases are kept",
            )
        elif before == "down" and state != "down" and not self._runner.down_s:
            log.info("pool.up", runner_id=self._identity.runner_id)

    def _record(self, state: RunnerState, rates: Rates) -> HeartbeatRecord:
        runner, identity = self._runner, self._identity
        runner_stats, info, engine_stats = runner.runner_stats, runner.info, runner.engine_stats()
        return HeartbeatRecord(
            pool=identity.pool,
            runner_id=identity.runner_id,
            model=identity.model if info is None else info.model,
            engine=identity.engine,
            engine_version="" if info is None else info.version,
            fingerprint="" if info is None else info.fingerprint or "",
            state=state,
            started_at=identity.started_at,
            host=identity.host,
            num_slots=0 if info is None else info.num_slots,
            in_flight=runner.num_in_flight,
            requests_per_s=round(rates.requests, 3),
            input_tokens_per_s=round(rates.input_tokens, 1),
            output_tokens_per_s=round(rates.output_tokens, 1),
            cache_hit_share=round(runner_stats.cached_tokens / max(1, runner_stats.input_tokens), 4),
            latency_p50_s=runner_stats.request_s.quantile(0.5),
            latency_p95_s=runner_stats.request_s.quantile(0.95),
            totals=RunnerTotals(
                succeeded=runner_stats.succeeded,
                failed=runner_stats.failed,  # in the engine, as in the metrics
                rejected=runner_stats.rejected,
                input_tokens=runner_stats.input_tokens,
                output_tokens=runner_stats.output_tokens,
                cached_tokens=runner_stats.cached_tokens,
                engine_deaths=runner_stats.num_engine_deaths,
                leases_lost=runner_stats.num_leases_lost,
            ),
            shards=runner.shards_held(SHARDS_SHOWN_MAX),
            commits={} if info is None else dict(info.commits),
            set_aside=dict(islice(runner.set_aside().items(), SET_ASIDE_SHOWN_MAX)),
            waiting=runner.num_prefetched + engine_stats.num_waiting,
            kv_use=None if engine_stats.kv_use is None else round(engine_stats.kv_use, 3),
            gpu_s=round(runner_stats.gpu_s, 1),
            problem=problem_of(engine_stats) if state == "down" else "",
        )
