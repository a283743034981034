"""What a runner knows of one open batch. No I/O."""

from dataclasses import dataclass, field

from batchfile.ledger.records import BatchRecord, Plan


@dataclass(slots=True, kw_only=True)
class BatchView:
    """One open batch as this runner knows it. Times are monotonic.

    `members`: the pool's shards, with `num_lines` in all. `ruled_out`: those known to be done, closed or held by us.
    `elsewhere`: those that other runners hold, and when to read each again. `todo`: what to try next, last element
    first. `look_at`: when there may be something to try again. `has_held`: we held a shard of it. `is_ending`: one of
    its shards was found closed.
    """

    batch: BatchRecord
    plan: Plan
    priority: int
    members: list[int]
    num_lines: int
    todo: list[int] = field(default_factory=list)
    ruled_out: set[int] = field(default_factory=set)
    elsewhere: dict[int, float] = field(default_factory=dict)
    look_at: float = float("-inf")
    has_held: bool = False
    is_ending: bool = False

    @property
    def num_left(self) -> int:
        return len(self.members) - len(self.ruled_out)

    @property
    def num_unclaimed(self) -> int:
        """Shards that no runner is known to hold."""
        return self.num_left - len(self.elsewhere)

    @property
    def lines_each(self) -> float:
        """Of a shard, on average."""
        return self.num_lines / max(1, len(self.members))

    def rule_out(self, n: int) -> None:
        self.ruled_out.add(n)
        self.elsewhere.pop(n, None)
