"""Answers that are being checked in another process, on a thread of their own: the engine never waits for one.

Batches take turns, one answer each: those that are slow to check hold up others of their own batch.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from batchfile.runner.active import PendingRequest
from batchfile.runner.schemas.output_schema import Demand, first_verdict
from batchfile.runner.schemas.process import CheckProcess
from batchfile.runner.schemas.rules import Verdict
from batchfile.types import Completion, Request

CHARS_MAX = 64 * 1024 * 1024  # of answers that wait; then the engine gets nothing new


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Of `item`, to `request`. `gpu_s`: what it took. `was_alone`: it ran with no other."""

    item: PendingRequest
    request: Request
    completion: Completion
    demands: list[Demand]
    gpu_s: float
    was_alone: bool

    @property
    def num_chars(self) -> int:
        return sum(len(choice.text) for choice in self.completion.choices)


class Checked(NamedTuple):
    answer: Answer
    schema_mismatch: tuple[Demand, Verdict] | None


class Checks:
    """`on_checked`: there is something to take. `is_threaded` False: `put` checks at once, on its caller's thread."""

    def __init__(self, on_checked: Callable[[], None]) -> None:
        self.is_threaded = True
        self._on_checked = on_checked
        self._process = CheckProcess()
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Answer]] = OrderedDict()  # by batch, the next one to take first
        self._checked: deque[Checked] = deque()
        self._num = 0
        self._num_chars = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def __len__(self) -> int:
        """Those that were checked and not taken included."""
        return self._num

    @property
    def is_full(self) -> bool:
        return self._num_chars >= CHARS_MAX

    def put(self, answer: Answer) -> None:
        with self._changed:
            self._num += 1
            self._num_chars += answer.num_chars
            if self.is_threaded:
                self._waiting.setdefault(answer.item.shard.held.batch.batch_id, deque()).append(answer)
                self._changed.notify_all()
        if not self.is_threaded:
            self._checked.append(self._check(answer))
        elif self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checks", daemon=True)
            self._thread.start()

    def take(self) -> list[Checked]:
        """What has been checked. From the thread that puts."""
        if not self._num:
            return []
        taken = [self._checked.popleft() for _ in range(len(self._checked))]
        with self._changed:
            self._num -= len(taken)
            self._num_chars -= sum(checked.answer.num_chars for checked in taken)
        return taken

    def close(self) -> None:
        """What waits is forgotten."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._process.close()
        if self._thread is not None:
            self._thread.join()
        self._process.release()

    def _run(self) -> None:
        while (answer := self._next()) is not None:
            self._checked.append(self._check(answer))
            self._on_checked()

    def _next(self) -> Answer | None:
        """Waits for one. None: closed."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            batch_id, answers = self._waiting.popitem(last=False)
            answer = answers.popleft()
            if answers:
                self._waiting[batch_id] = answers
            return answer

    def _check(self, answer: Answer) -> Checked:
        if answer.item.shard.is_dropped:
            return Checked(answer, None)
        check = partial(self._process.check, owner=answer.item.shard.held.batch.batch_id)
        return Checked(answer, first_verdict(answer.demands, check))
