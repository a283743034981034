"""Whether a request that an endpoint does not serve is at fault itself. Pure: answers and the caller's clock go in.

502, 503, 504, web pages and broken connections tell of an endpoint that restarts, or of one request that breaks
something behind it. They count against a request only as far as they are improbable: it fails after at least TRIES_MIN
tries, once the chance of meeting that many by accident is below CHANCE_MAX. The chance of one is the share of such
answers that *other* requests got. 429 tells of too many requests: see `throttle_verdict`.
"""

from collections import deque
from dataclasses import dataclass, field
from math import prod
from typing import Literal

TRIES_MIN = 3
CHANCE_MAX = 0.0001
WINDOW_S = 60.0
BUCKETS = 60  # of a window
WINDOWS_MAX = 10  # where answers take so long that one window has too few of them
# So many answers of others are needed to call a share low; probes make up for those that are missing.
OTHERS_MIN = 20
# Only a request's first tries tell of the endpoint: one that fails for its own sake is tried more often than others.
FRESH_TRIES = 2
THROTTLE_S = 600.0
THROTTLED_SHARE_MAX = 0.05  # of the others' answers, where a request alone meets 429

Kind = Literal["good", "bad", "throttled"]
Verdict = Literal["wait", "probe", "fail"]
"""`probe`: it would fail, and too few others are left to be sure; ask something small and judge again."""


@dataclass(slots=True)
class Counts:
    good: int = 0
    bad: int = 0
    throttled: int = 0

    def add(self, kind: Kind, num: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + num)


@dataclass(slots=True)
class Tries:
    """Of one request: what it met so far. Times on the caller's clock, in seconds.

    `shares`: for each bad answer the share of bad ones among others at that time, None where too little was known.
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
        """Of the last try."""
        return self.num <= FRESH_TRIES


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of `total` answers `bad` ones. Shares are smoothed by half an answer of each kind (Jeffreys' prior)."""

    bad: int
    total: int

    @property
    def share(self) -> float:
        """As if those that are missing were good."""
        return (self.bad + 0.5) / (max(self.total, OTHERS_MIN) + 1)

    @property
    def known_share(self) -> float | None:
        """As if those that are missing were bad, and 1 where nothing was served; None where nothing bad is known."""
        if not (self.bad or self.is_enough):
            return None
        missing = max(0, OTHERS_MIN - self.total)
        return 1.0 if self.bad == self.total else (self.bad + missing + 0.5) / (self.total + missing + 1)

    @property
    def is_enough(self) -> bool:
        return self.total >= OTHERS_MIN


class Judge:
    """Of one endpoint. `window_s`: how long an answer tells of it; `throttle_s`: how long 429 is waited out."""

    def __init__(self, window_s: float = WINDOW_S, throttle_s: float = THROTTLE_S) -> None:
        self._window_s = window_s
        self._throttle_s = throttle_s
        self._buckets: deque[tuple[int, Counts]] = deque()

    def note(self, tries: Tries | None, kind: Kind, now: float) -> None:
        """An answer to a request, or to a probe (None)."""
        if tries is not None:
            tries.num += 1
            if kind != "throttled":
                tries.throttled_since = None
            if not tries.is_fresh:
                return
            tries.fresh.append((now, kind))
        index = self._index(now)
        if not self._buckets or self._buckets[-1][0] < index:
            self._buckets.append((index, Counts()))
            while self._buckets[0][0] < index - BUCKETS * WINDOWS_MAX:
                self._buckets.popleft()
        self._buckets[-1][1].add(kind)

    def note_bad(self, tries: Tries, now: float) -> None:
        """A bad answer that counts against the request, where it is improbable."""
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

        An endpoint that has begun to restart is known by what others got since this request's first bad answer; the
        last minute still shows it whole. One that was down and is well again is known by the shares of that time.
        """
        if tries.num_bad < TRIES_MIN:
            return "wait"
        lately, since = self._seen(tries, now)
        share = max(lately.share, since.share)
        if prod(max(share, known or 0.0) for known in tries.shares) >= CHANCE_MAX:
            return "wait"
        return "fail" if since.is_enough else "probe"

    def throttle_verdict(self, tries: Tries, now: float) -> Verdict:
        """After a 429: not the request's fault unless it alone has met nothing else for `throttle_s`."""
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
        """Of others: within the window, and of that (or a longer one) since this request's first bad answer."""
        lately = self._others(tries, now - self._window_s, now)
        for num in range(1, WINDOWS_MAX + 1):
            start = max(now - num * self._window_s, tries.first_bad_at)
            since = self._others(tries, start, now)
            if since.bad + since.good >= OTHERS_MIN or start == tries.first_bad_at:
                break
        return _Seen(lately.bad, lately.bad + lately.good), _Seen(since.bad, since.bad + since.good)

    def _others(self, tries: Tries, start: float, now: float) -> Counts:
        first, last, found = self._index(start), self._index(now), Counts()
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
