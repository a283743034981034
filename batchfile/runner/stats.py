"""What a runner has done since it started: for progress, receipts and metrics. Each count has one writer."""

from dataclasses import dataclass, field

from batchfile.runner.histogram import CHECKPOINT_BOUNDS_S, REQUEST_BOUNDS_S, Histogram


@dataclass(slots=True)
class RunnerStats:
    """Requests and tokens of this process; reads from other threads may be a moment old."""

    succeeded: int = 0
    failed: int = 0  # by the engine; counted by the loop
    refused: int = 0  # before the engine; counted by the prefetcher
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    usage_unknown: int = 0  # answers whose tokens an endpoint did not tell
    busy_s: float = 0.0  # with requests in flight, up to the last step
    num_engine_deaths: int = 0
    num_leases_lost: int = 0
    num_steps: int = 0
    num_full_steps: int = 0
    prompt_tokens_computed: int = 0  # by engines that are gone, also for requests that did not finish
    output_tokens_generated: int = 0  # the same
    first_dispatch_at: float | None = None
    engine_ready_at: float | None = None
    request_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS_S))  # completions, from add to finish
    checkpoint_s: Histogram = field(default_factory=lambda: Histogram(CHECKPOINT_BOUNDS_S))

    @property
    def errored(self) -> int:
        return self.failed + self.refused
