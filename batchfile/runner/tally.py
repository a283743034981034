"""What a runner has done since it started: for progress, receipts and metrics. Written by the runner alone."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Requests and tokens of this process; reads from other threads may be a moment old."""

    succeeded: int = 0
    errored: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    num_engine_deaths: int = 0
    num_leases_lost: int = 0
    num_steps: int = 0
    num_full_steps: int = 0
    first_dispatch_at: float | None = None
    engine_ready_at: float | None = None
    notes: list[str] = field(default_factory=list)
