"""What the runner's parts hand to each other: a shard in work, and one request of it. No I/O, no rules."""

import threading
from dataclasses import dataclass, field

from batchfile.engine.base import Prepared
from batchfile.ledger.shards import Lease
from batchfile.lines.result import FinishedLine
from batchfile.runner.schemas.output_schema import OutputSchema
from batchfile.types import Request


@dataclass(slots=True, kw_only=True, eq=False)
class ActiveShard:
    """A held shard in this process.

    The loop appends to `finished` (results of `finished_bytes`); whoever checkpoints holds `lock`, commits a prefix of
    it and removes that. `left` counts this pool's lines without an outcome. Counts change under `count_lock`.
    `wants_to_announce`: the loop would dispatch, and the record must say so first (see `ledger/lease.py`).
    `output_schema`: what every answer must fit, if anything. `needs_answer`: a refusal is a failure. `is_to_return`:
    its input cannot be read now; whoever commits puts it back. `retry_at`: monotonic; its results could not be
    committed, and are tried again then.
    """

    held: Lease
    left: int
    output_schema: OutputSchema | None = None
    needs_answer: bool = False
    finished: list[FinishedLine] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    count_lock: threading.Lock = field(default_factory=threading.Lock)
    has_dispatched: bool = False
    wants_to_announce: bool = False
    is_dropped: bool = False
    is_closed: bool = False  # with `is_dropped`: its batch ends, or is gone, so that no lease was lost to anyone
    finished_bytes: int = 0
    is_bisecting: bool = False
    num_bisect_left: int = 0
    is_to_return: bool = False
    accused: int | None = None  # a line that does not get prepared: to be written down before this process ends for it
    num_failures: int = 0  # of commits, in a row
    retry_at: float = float("-inf")

    def settle(self, line: FinishedLine) -> bool:
        """Take an outcome; True with the shard's last one."""
        self.finished.append(line)
        with self.count_lock:
            self.left -= 1
            self.finished_bytes += len(line.result)
            self.num_bisect_left -= self.is_bisecting
            return self.left == 0

    def forget(self, num: int) -> None:
        """The first `num` finished lines are committed."""
        with self.count_lock:
            self.finished_bytes -= sum(len(line.result) for line in self.finished[:num])
            del self.finished[:num]


@dataclass(slots=True, kw_only=True, eq=False)
class PendingRequest:
    """One request on its way. `deaths`: engines that died with it in flight. `added_at`: monotonic.

    `gpu_s_before`: what each request in flight had cost, when this one was added.
    """

    key: int
    shard: ActiveShard
    line: int
    custom_id: str
    prepared: Prepared
    size: int
    deaths: int = 0
    request: Request | None = None  # kept where the answer is to be checked: another attempt may need it
    schema: bytes | None = None  # that the request brings, whatever guides it
    attempt: int = 1
    added_at: float = 0.0
    gpu_s_before: float = 0.0
