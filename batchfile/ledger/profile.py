"""How an ended batch went: its throughput over time, and how long its requests took. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Inclusive upper bounds of the buckets of `request_s`, in seconds; one more bucket has what took longer.
REQUEST_BOUNDS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
STEPS_MAX = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """`requests` and `output_tokens`: of each step of `step_s` seconds since `started_at` (epoch seconds), counted when
    their shard was done. `request_s`: requests by their time in the engine, in buckets up to 0.01, 0.02, 0.05, 0.1 ...
    1,000 s and longer. Without what was reused or never ran.
    """

    started_at: float
    step_s: float
    requests: tuple[int, ...]
    output_tokens: tuple[int, ...]
    request_s: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """What a shard finished, and when its record was last written."""

    at: float
    requests: int
    output_tokens: int
    request_s: tuple[int, ...]


def spread(seconds: Iterable[float]) -> tuple[int, ...]:
    """How many are in each bucket; empty if none is above 0, since no engine had them."""
    counts = [0] * (len(REQUEST_BOUNDS_S) + 1)
    for one in seconds:
        if one > 0:
            counts[bisect_left(REQUEST_BOUNDS_S, one)] += 1
    return tuple(counts) if any(counts) else ()


def summed(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(sum, zip(one, other, strict=True))) if one and other else tuple(one or other)


def profile_of(started_at: float, shards: Sequence[ShardEnd]) -> Profile | None:
    """None if nothing ran. Not more steps than shards: a shard is counted as a whole."""
    shards = [one for one in shards if one.requests]
    if not shards:
        return None
    num = min(STEPS_MAX, len(shards))
    step_s = max(max(one.at for one in shards) - started_at, 0.001) / num
    requests, output_tokens, request_s = [0] * num, [0] * num, tuple[int, ...]()
    for one in shards:
        step = min(max(int((one.at - started_at) / step_s), 0), num - 1)
        requests[step] += one.requests
        output_tokens[step] += one.output_tokens
        request_s = summed(request_s, one.request_s)
    return Profile(
        started_at=started_at,
        step_s=round(step_s, 6),
        requests=tuple(requests),
        output_tokens=tuple(output_tokens),
        request_s=request_s,
    )
