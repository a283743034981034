"""Faults that stick to a key: one object is ill for a while or for as long as the test lasts, everything else is well.

Drawn from the seed of a world, not from its calls: every process meets the same.
"""

from dataclasses import dataclass
from random import Random

from batchfile.testing import Ill
from tests.helpers.faults import IllAnswer
from tests.sim.bodies import Sent

SHARE = 0.2  # of the schedules with several batches
REFUSALS: tuple[IllAnswer, ...] = ("500", "EIO", "400", "403", "405", "501", "EACCES")
# Only of records nonsense is answered for long: a part or an input that is not what its digest says is lost, after
# several reads, and its lines are errored. That is as it must be.
RECORDS = ("batch.json", "plan-*", "planning.json", "assembly.json", "shards/*")
OF_A_BATCH = (*RECORDS, "shards/*/000000.json", "input-*", "parts/*", "results-*", "errors-*", "*")
HINTS = ("notifications/*", "runners/*")  # nobody needs them: every batch is healthy


@dataclass(slots=True, kw_only=True)
class Illness:
    """Of `sent`, once it is a batch, `name` is ill from then on, or after `begins_s`, for `lasts_s`.

    `sent` None: `name` is a pattern of keys that belong to no batch. Times are virtual.
    """

    sent: Sent | None
    name: str
    answer: IllAnswer
    is_read: bool
    is_write: bool
    begins_s: float
    lasts_s: float
    is_over: bool = False
    _ill: Ill | None = None
    _begins_at: float = 0.0

    def begin(self, sent: Sent, batch_id: str, now: float) -> None:
        """`sent` is a batch now."""
        if sent is self.sent:
            self._bind(f"batches/{batch_id}/{self.name}", now)

    def _bind(self, pattern: str, now: float) -> None:
        self._ill = Ill(pattern=pattern, answer=self.answer, is_read=self.is_read, is_write=self.is_write)
        self._begins_at = now + self.begins_s

    def of(self, key: str, now: float, *, is_write: bool) -> Ill | None:
        """What a call of this key meets."""
        if self._ill is None and self.sent is None:
            self._bind(self.name, now)
        ill = self._ill
        if ill is None or self.is_over or not 0.0 <= now - self._begins_at < self.lasts_s:
            return None
        return ill if ill.strikes(key, is_write=is_write) and not (is_write and ill.answer == "nonsense") else None

    def __str__(self) -> str:
        name = self.name if self._ill is None else self._ill.pattern
        what = " ".join(["read"] * self.is_read + ["write"] * self.is_write)
        return f"{name} {what} {self.answer}, after {self.begins_s:.0f} s for {self.lasts_s:.0f} s"


def draw(rng: Random, bodies: list[Sent]) -> Illness | None:
    """One of the batches is ill, or something that belongs to none."""
    if len(bodies) < 2 or rng.random() >= SHARE:
        return None
    is_hint = rng.random() < 0.1
    name = rng.choice(HINTS if is_hint else OF_A_BATCH)
    answers = (*REFUSALS, "nonsense", "nonsense") if name in RECORDS else REFUSALS
    is_read, is_write = rng.choice(((True, True), (True, True), (True, False), (False, True)))
    answer = rng.choice(answers)
    return Illness(
        sent=None if is_hint else rng.choice(bodies),
        name=name,
        answer=answer,
        is_read=is_read or answer == "nonsense",
        is_write=is_write,
        begins_s=rng.choice((0.0, 0.0, 20.0)) * rng.random(),
        lasts_s=rng.choice((20.0, 100.0, float("inf"), float("inf"))),
    )
