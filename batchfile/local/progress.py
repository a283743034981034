"""Computes the progress of a run from earlier results, the work of this process, and the time. Pure."""

from collections import deque
from dataclasses import dataclass
from math import exp

from batchfile.engine.base import EngineStats
from batchfile.runner.stats import RunnerStats
from batchfile.types import Counts, Usage

RATE_WINDOW_S = 10.0  # rates cover the last seconds, or the last two steps where these are further apart
RATE_S_MIN = 1.0  # the shortest time for a rate: the first tokens of a fast engine arrive within a millisecond
ETA_RATE_S = 120.0  # the rate behind the ETA forgets older measurements
ETA_DELAY_S_MIN, ETA_DELAY_S_MAX = 2.0, 30.0  # how fast the ETA follows the measurements
ETA_DELAY_SHARE = 0.2  # of the ETA, between these two
ETA_CHANGE_MAX = 0.4  # in a second, of the ETA; at least ETA_CHANGE_S_MIN
ETA_CHANGE_S_MIN = 4.0
# The work of a prompt token in output tokens. About 0.02 on a GPU and 0.3 on a CPU; it matters only until the first
# requests have finished.
PROMPT_TOKEN_WORK = 0.1
# The ETA is shown once this many requests have finished: one in a hundred, at least 1 and at most 10.
FINISHED_SHARE_MIN, FINISHED_MAX = 100, 10
ACTIVE_S_MIN = 2.0  # and not before this time, without loading


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`eta_s` None: not known yet, or nothing runs. Rates are tokens per second.

    `cache_hit_rate` and `share` (of the work): from 0 to 1.
    `input_tokens`, `output_tokens`: computed and generated so far, including unfinished requests if the engine reports
    them. `in_flight_s`: the estimated time of the requests in flight, if no more are added; None: not known.
    `quiet_s`: for how long a working engine has reported no new token, because it is in a long step.
    """

    total: int
    done: int
    failed: int  # ran without a valid answer
    input_tokens: int
    output_tokens: int
    input_rate: float
    output_rate: float
    cache_hit_rate: float
    elapsed_s: float
    eta_s: float | None
    num_running: int = 0
    num_waiting: int = 0
    share: float | None = None
    in_flight_s: float | None = None
    quiet_s: float = 0.0
    is_loading: bool = False  # the engine is not ready yet
    down_s: float = 0.0  # for how long the endpoint has taken no work
    rejected: int = 0  # invalid requests
    usage_unknown: int = 0  # answers for which the endpoint reported no tokens
    cost_usd: float | None = None  # of the GPUs so far; None: not known
    num_files: int = 1
    num_files_done: int = 0  # their results are written


def cost_usd(gpu_s: float, gpu_hour: float | None) -> float | None:
    """None where no GPU or no price is known. `gpu_hour`: US dollars for an hour of one GPU."""
    return None if gpu_hour is None or not gpu_s else round(gpu_s / 3600 * gpu_hour, 4)


@dataclass(frozen=True, slots=True)
class _Point:
    """`at`: seconds during which an engine could work."""

    at: float
    tokens_in: int
    tokens_out: int

    @property
    def work(self) -> float:
        return _work(self.tokens_in, self.tokens_out)


class Meter:
    """Turns growing counts into snapshots; call `look` about four times a second. `now`: a monotonic clock."""

    def __init__(self, total: int, before: Counts, usage_before: Usage, started_at: float) -> None:
        self._total = total
        self._before = before
        self._usage_before = usage_before
        self._started_at = started_at
        self._looked_at = started_at
        self._active_s = 0.0  # while an engine was ready and its endpoint up
        self._points: deque[_Point] = deque([_Point(0.0, 0, 0)])
        self._recent_work = 0.0  # decaying, as the seconds in which it was done
        self._recent_s = 0.0
        self._finish_at: float | None = None  # in active seconds
        self._share = 0.0

    def look(
        self,
        runner_stats: RunnerStats,
        now: float,
        down_s: float = 0.0,
        stats: EngineStats | None = None,
        *,
        is_loading: bool | None = None,
    ) -> Snapshot:
        """`stats`: of all engines since the start. `is_loading` None: true until the first engine is ready."""
        stats = EngineStats() if stats is None else stats
        is_loading = runner_stats.engine_ready_at is None if is_loading is None else is_loading
        step_s = self._advance(runner_stats, now, is_waiting=is_loading or down_s > 0)
        last = self._measure(runner_stats, stats)
        first = self._points[0]
        span_s = last.at - first.at
        done = min(self._total, self._before.finished + runner_stats.succeeded + runner_stats.errored)
        work_left = self._work_left(runner_stats, stats, self._total - done)
        in_flight_s = None
        is_paused = stats.num_waiting > 0 and not stats.num_running  # every request waits after an endpoint's 429
        # Short requests finish first. While more run than have finished, the average says too little about the rest.
        is_early = runner_stats.succeeded + runner_stats.failed + self._before.succeeded < stats.num_running
        is_known = work_left is not None and not is_early and not is_paused
        eta_s = self._eta_s(work_left[0] if work_left is not None and is_known else None, step_s)
        if work_left is not None:
            self._share = max(self._share, 1 - work_left[0] / max(work_left[1], 1e-9))
            in_flight_s = self._in_flight_s(work_left[1] / max(1, self._total), stats)
        usage = self._usage_before + Usage(
            input_tokens=runner_stats.input_tokens, cached_tokens=runner_stats.cached_tokens
        )
        return Snapshot(
            total=self._total,
            done=done,
            failed=self._before.failed + runner_stats.failed,
            rejected=self._before.rejected + runner_stats.rejected,
            input_tokens=self._usage_before.input_tokens + last.tokens_in,
            output_tokens=self._usage_before.output_tokens + last.tokens_out,
            input_rate=(last.tokens_in - first.tokens_in) / span_s if span_s >= RATE_S_MIN else 0.0,
            output_rate=(last.tokens_out - first.tokens_out) / span_s if span_s >= RATE_S_MIN else 0.0,
            cache_hit_rate=usage.cached_tokens / max(1, usage.input_tokens),
            usage_unknown=self._usage_before.unknown + runner_stats.usage_unknown,
            elapsed_s=now - self._started_at,
            eta_s=0.0 if done == self._total else eta_s,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            share=None if work_left is None else max(self._share, done / max(1, self._total)),
            in_flight_s=in_flight_s,
            quiet_s=self._active_s - last.at if stats.num_running else 0.0,
            is_loading=is_loading,
            down_s=down_s,
        )

    def _advance(self, runner_stats: RunnerStats, now: float, *, is_waiting: bool) -> float:
        """Returns the seconds since the last look, without those spent loading or waiting for an endpoint."""
        since, self._looked_at = self._looked_at, now
        if is_waiting:
            return 0.0
        step_s = max(0.0, now - max(since, runner_stats.engine_ready_at or since))
        self._active_s += step_s
        return step_s

    def _measure(self, runner_stats: RunnerStats, stats: EngineStats) -> _Point:
        """The last point at which something had changed."""
        points = self._points
        last = points[-1]
        # For an engine that reports tokens only at the end of a request, finished requests count.
        tokens_in = max(last.tokens_in, stats.prompt_tokens, runner_stats.input_tokens)
        tokens_out = max(last.tokens_out, stats.output_tokens, runner_stats.output_tokens)
        if (tokens_in, tokens_out) == (last.tokens_in, last.tokens_out) or self._active_s <= last.at:
            return last
        point = _Point(self._active_s, tokens_in, tokens_out)
        points.append(point)
        while len(points) > 2 and point.at - points[1].at >= RATE_WINDOW_S:
            points.popleft()
        kept = exp((last.at - point.at) / ETA_RATE_S)
        self._recent_work = self._recent_work * kept + point.work - last.work
        self._recent_s = self._recent_s * kept + point.at - last.at
        return point

    def _work_left(self, runner_stats: RunnerStats, stats: EngineStats, num_left: int) -> tuple[float, float] | None:
        """The remaining work and that of the whole run, in output tokens; None until enough requests have finished."""
        num_now = runner_stats.succeeded + runner_stats.failed
        num_finished = num_now + self._before.succeeded
        if num_finished < min(FINISHED_MAX, max(1, self._total // FINISHED_SHARE_MIN)):
            return None
        work_now = _work(runner_stats.input_tokens, runner_stats.output_tokens)
        work_before = _work(self._usage_before.input_tokens, self._usage_before.output_tokens)
        num_running = min(num_left, stats.num_running)
        in_flight = max(0.0, self._points[-1].work - work_now)
        each = (work_now + work_before) / num_finished
        if num_running:  # short requests finish first, so their average is too low
            each = max(each, (work_now + work_before + 1.25 * in_flight) / (num_finished + num_running))
        each_running = max(each - in_flight / num_running, each / 4) if num_running else 0.0
        return (num_left - num_running) * each + num_running * each_running, self._total * each

    def _in_flight_s(self, work_each: float, stats: EngineStats) -> float | None:
        """At this rate and concurrency, a request takes `each_s`; waiting requests start as others end."""
        if self._recent_work <= 0 or not stats.num_running:
            return None
        each_s = work_each * stats.num_running * self._recent_s / self._recent_work
        return each_s * (1 + stats.num_waiting / stats.num_running)

    def _eta_s(self, work_left: float | None, step_s: float) -> float | None:
        """The time until the rest is done at the rate of the last minutes; follows changes slowly."""
        if work_left is None or self._recent_work <= 0 or self._active_s < ACTIVE_S_MIN:
            return None
        if step_s > 0:
            target = self._points[-1].at + work_left * self._recent_s / self._recent_work
            if self._finish_at is None:
                self._finish_at = target
            shown_s = self._finish_at - self._active_s
            delay_s = min(ETA_DELAY_S_MAX, max(ETA_DELAY_S_MIN, ETA_DELAY_SHARE * shown_s))
            change_s = (target - self._finish_at) * (1 - exp(-step_s / delay_s))
            change_s_max = step_s * max(ETA_CHANGE_S_MIN, ETA_CHANGE_MAX * shown_s)
            self._finish_at += max(-change_s_max, min(change_s_max, change_s))
        return None if self._finish_at is None else max(0.0, self._finish_at - self._active_s)


def _work(tokens_in: int, tokens_out: int) -> float:
    return tokens_out + PROMPT_TOKEN_WORK * tokens_in
