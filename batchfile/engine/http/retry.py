"""Decides whether a failure is caused by the request or by the endpoint.

502, 503, 504, web pages and broken connections can mean that an endpoint is restarting, or that one request crashes
something behind it. They count against a request only if they are improbable otherwise: it fails after at least
TRIES_MIN attempts, once the probability of that many such answers by chance is below CHANCE_MAX. The probability of one
is the share of such answers to *other* requests. 429 means too many requests: see `throttle_verdict`.
"""

from collections import deque
from dataclasses import dataclass, field
from math import prod
from typing import Literal

TRIES_MIN = 3
CHANCE_MAX = 0.0001
WINDOW_S = 60.0
BUCKETS = 60  # per window
WINDOWS_MAX = 10  # if answers take so long that one window has too few of them
# Answers to other requests that are needed to call a share low; probes supply missing ones.
OTHERS_MIN = 20
# Only first attempts count for the endpoint: a request that is itself the cause has more attempts than others.
FRESH_TRIES = 2
THROTTLE_S = 600.0
THROTTLED_SHARE_MAX = 0.05  # of the answers to others, for a 429 to be about one request only

Kind = Literal["good", "bad", "throttled"]
Verdict = Literal["wait", "probe", "fail"]
"""`probe`: the request would fail, but there are too few other answers to be sure; send a probe and decide again."""


@dataclass(slots=True)
class AnswerCounts:
    good: int = 0
    bad: int = 0
    throttled: int = 0

    def add(self, kind: Kind, num: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + num)


@dataclass(slots=True)
class Tries:
    """The attempts of one request so far. Times are in seconds on the caller's clock.

    `shares`: for each bad answer, the share of bad answers to others at that time; None if too few were known.
    """

    num: int = 0
    fresh: list[tuple[float, Kind]] = field(default_factory=list)
    first_bad_at: float = 0.0
    shares: list[float | None] = field(default_factory=list)
    num_throttled: int = 0
    throttled_since: float | None = None

    @property
    def num_bad(self) -> int:
        return len(self.shares)

    @property
    def is_fresh(self) -> bool:
        """Whether the last attempt was one of the first."""
        return self.num <= FRESH_TRIES


@dataclass(frozen=True, slots=True)
class _Seen:
    """Counts of answers. Shares are smoothed by half an answer of each kind (Jeffreys' prior)."""

    bad: int
    total: int

    @property
    def share(self) -> float:
        """The share of bad answers if missing ones count as good."""
        return (self.bad + 0.5) / (max(self.total, OTHERS_MIN) + 1)

    @property
    def known_share(self) -> float | None:
        """The share if missing answers count as bad; 1 if all are bad; None if no bad answers are known."""
        if not (self.bad or self.is_enough):
            return None
        missing = max(0, OTHERS_MIN - self.total)
        return 1.0 if self.bad == self.total else (self.bad + missing + 0.5) / (self.total + missing + 1)

    @property
    def is_enough(self) -> bool:
        return self.total >= OTHERS_MIN


class Judge:
    """For one endpoint. `window_s`: how long an answer counts; `throttle_s`: how long to wait out 429 responses."""

    def __init__(self, window_s: float = WINDOW_S, throttle_s: float = THROTTLE_S) -> None:
        self._window_s = window_s
        self._throttle_s = throttle_s
        self._buckets: deque[tuple[int, AnswerCounts]] = deque()

    def note(self, tries: Tries | None, kind: Kind, now: float) -> None:
        """Records an answer to a request, or to a probe (None)."""
        if tries is not None:
            tries.num += 1
            if kind != "throttled":
                tries.throttled_since = None
            if not tries.is_fresh:
                return
            tries.fresh.append((now, kind))
        index = self._index(now)
        if not self._buckets or self._buckets[-1][0] < index:
            self._buckets.append((index, AnswerCounts()))
            while self._buckets[0][0] < index - BUCKETS * WINDOWS_MAX:
                self._buckets.popleft()
        self._buckets[-1][1].add(kind)

    def note_bad(self, tries: Tries, now: float) -> None:
        """Records a bad answer, which counts against the request if it is improbable."""
        self.note(tries, "bad", now)
        if not tries.shares:
            tries.first_bad_at = now
        known = [share for seen in self._seen(tries, now) if (share := seen.known_share) is not None]
        tries.shares.append(max(known, default=None))

    def note_throttled(self, tries: Tries, now: float) -> None:
        self.note(tries, "throttled", now)
        tries.num_throttled += 1
        tries.throttled_since = now if tries.throttled_since is None else tries.throttled_since

    def verdict(self, tries: Tries, now: float) -> Verdict:
        """After a bad answer.

        An endpoint that has just started to restart shows in the answers to others since this request's first bad
        answer, but not yet in the last minute. One that was down and has recovered shows in the shares recorded at that
        time.
        """
        if tries.num_bad < TRIES_MIN:
            return "wait"
        lately, since = self._seen(tries, now)
        share = max(lately.share, since.share)
        if prod(max(share, known or 0.0) for known in tries.shares) >= CHANCE_MAX:
            return "wait"
        return "fail" if since.is_enough else "probe"

    def throttle_verdict(self, tries: Tries, now: float) -> Verdict:
        """After a 429: the request fails only if it alone has received nothing but 429 for `throttle_s`."""
        if tries.throttled_since is None or now - tries.throttled_since < self._throttle_s:
            return "wait"
        for num in (1, WINDOWS_MAX):
            others = self._others(tries, now - num * self._window_s, now)
            seen = _Seen(others.throttled, others.throttled + others.good)
            if seen.is_enough:
                break
        if seen.share > THROTTLED_SHARE_MAX:
            return "wait"
        return "fail" if seen.is_enough else "probe"

    def _seen(self, tries: Tries, now: float) -> tuple[_Seen, _Seen]:
        """Answers to others: within the window, and since this request's first bad answer."""
        lately = self._others(tries, now - self._window_s, now)
        for num in range(1, WINDOWS_MAX + 1):
            start = max(now - num * self._window_s, tries.first_bad_at)
            since = self._others(tries, start, now)
            if since.bad + since.good >= OTHERS_MIN or start == tries.first_bad_at:
                break
        return _Seen(lately.bad, lately.bad + lately.good), _Seen(since.bad, since.bad + since.good)

    def _others(self, tries: Tries, start: float, now: float) -> AnswerCounts:
        first, last, found = self._index(start), self._index(now), AnswerCounts()
        for index, counts in reversed(self._buckets):
            if index < first:
                break
            found.good += counts.good
            found.bad += counts.bad
            found.throttled += counts.throttled
        for at, kind in tries.fresh:
            if first <= self._index(at) <= last:
                found.add(kind, -1)
        return found

    def _index(self, at: float) -> int:
        return int(at * BUCKETS // self._window_s)
