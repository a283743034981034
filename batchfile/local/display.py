"""Numbers and progress as people read them. Knows no batch."""

from batchfile.local.progress import Snapshot

PLAIN_S = 10.0  # between two lines where stderr is no terminal
QUIET_S = 5.0  # a step that has been running for so long is mentioned


def duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(num: int, noun: str) -> str:
    """`1 request`, `2,000 requests`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def about(seconds: float) -> str:
    """A time that is an estimate: `less than 5 s`, `about 40 s`, `about 12 min`."""
    if seconds < 5:
        return "less than 5 s"
    if seconds < 55:
        return f"about {5 * round(seconds / 5)} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} min"
    return f"about {minutes // 60} h {minutes % 60:02d} min"


def line(snap: Snapshot) -> str:
    """One line of progress."""
    if snap.is_loading or snap.down_s:
        return state(snap)
    counts = f"{snap.done:,}/{snap.total:,} requests ({100 * snap.done // max(1, snap.total)} %)"
    return ", ".join([counts, *details(snap), duration(snap.elapsed_s), *_left(snap)])


def state(snap: Snapshot) -> str:
    """While nothing is computed: why."""
    done = f"{snap.done:,}/{snap.total:,} requests are done"
    if snap.is_loading:
        return f"loading the model, {duration(snap.elapsed_s)}; {done}"
    return f"the endpoint has been down for {duration(snap.down_s)}, waiting for it; {done}"


def details(snap: Snapshot) -> list[str]:
    """What the engine does and did. A rate that is not known is not named, rather than called 0."""
    is_done = snap.done == snap.total
    parts = []
    if snap.failed:
        parts.append(f"{snap.failed:,} failed")
    if snap.num_running or snap.num_waiting:
        parts.append(f"{snap.num_running:,} running, {snap.num_waiting:,} waiting")
    if snap.input_tokens:
        parts.append(f"{snap.input_tokens:,} tokens in{'' if is_done else _rate(snap.input_rate)}")
    if snap.output_tokens:
        parts.append(f"{snap.output_tokens:,} tokens out{'' if is_done else _rate(snap.output_rate)}")
    if snap.usage_unknown:
        parts.append(f"usage unknown for {counted(snap.usage_unknown, 'result')}")
    if snap.cache_hit_rate >= 0.005:
        parts.append(f"{100 * snap.cache_hit_rate:.0f} % cached")
    if snap.quiet_s >= QUIET_S:
        parts.append(f"in one step for {duration(snap.quiet_s)}")
    if is_done:
        parts.append("writing the results")
    return parts


def _rate(rate: float) -> str:
    if rate < 0.05:
        return ""
    return f" ({rate:,.0f} tok/s)" if rate >= 9.95 else f" ({rate:.1f} tok/s)"


def _left(snap: Snapshot) -> list[str]:
    is_known = snap.eta_s is not None and snap.done < snap.total
    return [f"{about(snap.eta_s or 0)} left"] if is_known else []
