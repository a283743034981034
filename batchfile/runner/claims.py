"""Which shard to claim next: the pool's open batches, and what is known of their shards.

Everything here is a hint that saves requests; whether a claim holds is decided by the conditional write alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from batchfile import layout
from batchfile.errors import BatchDamaged, StoreUnavailable
from batchfile.ledger.base import Ledger
from batchfile.ledger.batches import read_batch, read_plan
from batchfile.ledger.shards import Held, claim
from batchfile.records import BatchRecord, Plan
from batchfile.store.base import Entry

log = structlog.get_logger()

RELIST_S = 5.0  # a batch whose every shard was tried is looked at again after this
QUEUE_LIST_S = 15.0  # the queue while it has markers
QUEUE_IDLE_S = 120.0  # the queue while it has none and the bell is silent
BELL_S = 1.0
LISTING_IN_READS = 12  # a listing costs as much as so many reads on AWS; with fewer shards it would save nothing


@dataclass(slots=True, kw_only=True)
class BatchView:
    """One open batch as this runner knows it. `settled`: shards known done, closed or held by us."""

    batch: BatchRecord
    plan: Plan
    pool: str
    priority: int
    todo: list[int] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)
    looked_at: float = float("-inf")

    @property
    def unsettled(self) -> list[int]:
        return [n for n in self.plan.pools.get(self.pool, {}) if n not in self.settled]


class Claims:
    """Claims for one pool, or of one batch alone (`only`), in order when this runner is the only one."""

    def __init__(
        self, ledger: Ledger, pool: str, runner_id: str, *, only: str | None = None, in_order: bool = False
    ) -> None:
        self._ledger = ledger
        self._pool = pool
        self._runner_id = runner_id
        self._only = only
        self._in_order = in_order
        self._views: dict[str, BatchView] = {}
        self._damaged: set[str] = set()
        self._listed_at = float("-inf")
        self._bell_asked_at = float("-inf")
        self._bell = ""
        self._has_listed = False

    @property
    def is_settled(self) -> bool:
        """Was every shard of the batches in the queue done, closed or held by us at the last look?"""
        return self._has_listed and not any(view.unsettled for view in list(self._views.values()))

    def next(self) -> Held | None:
        """One more shard, or None where nothing is free now. Raises: StoreUnavailable, BatchDamaged."""
        self._refresh_queue()
        candidates = [view for view in list(self._views.values()) if self._has_todo(view)]
        while candidates:
            weights = [10 - view.priority for view in candidates]
            view = self._ledger.rng.choices(candidates, weights)[0]
            try:
                held = self._claim_in(view)
            except BatchDamaged as error:
                self._give_up(view.batch.batch_id, error)
                held = None
            if held is not None:
                return held
            candidates.remove(view)
        return None

    def view_of(self, batch_id: str) -> BatchView | None:
        return self._views.get(batch_id)

    def forget(self, batch_id: str, n: int) -> None:
        """Shard `n` was ours and is not any more: it may have to be claimed again."""
        view = self._views.get(batch_id)
        if view is not None:
            view.settled.discard(n)
        self.look_again()

    def look_again(self) -> None:
        """Something changed: the next claim looks at the batches first."""
        self._listed_at = float("-inf")

    def exhausted(self, is_working: Callable[[str], bool]) -> list[str]:
        """Batches of which no shard of this pool is left to claim or in work here: they may be complete."""
        return [
            batch_id for batch_id, view in list(self._views.items()) if not view.unsettled and not is_working(batch_id)
        ]

    def drop(self, batch_id: str) -> None:
        self._views.pop(batch_id, None)

    def _claim_in(self, view: BatchView) -> Held | None:
        while view.todo:
            n = view.todo.pop()
            held = claim(self._ledger, view.batch, view.plan, self._pool, n, runner=self._runner_id)
            if isinstance(held, Held):
                view.settled.add(n)
                return held
            if held in {"done", "closed"}:
                view.settled.add(n)
        return None

    def _give_up(self, batch_id: str, error: BatchDamaged) -> None:
        """A batch that contradicts itself is left alone; it must not stop the others."""
        if batch_id == self._only:
            raise error
        if batch_id not in self._damaged:
            log.error("batch.damaged", batch_id=batch_id, error=str(error))
        self._damaged.add(batch_id)
        self.drop(batch_id)

    def _has_todo(self, view: BatchView) -> bool:
        now = self._ledger.clock.monotonic()
        if not view.todo and now - view.looked_at >= RELIST_S:
            view.todo = self._in_turn(view)
            view.looked_at = now
        return bool(view.todo)

    def _in_turn(self, view: BatchView) -> list[int]:
        """What is not settled, the next one last: first those that have no record yet, since nobody holds them."""
        todo = view.unsettled
        if self._in_order:
            return todo[::-1]
        self._ledger.rng.shuffle(todo)
        if len(todo) >= LISTING_IN_READS:
            batch_id = view.batch.batch_id
            held = {entry.key for entry in self._ledger.store.list(layout.shards_prefix(batch_id, self._pool))}
            todo.sort(key=lambda n: layout.shard_key(batch_id, self._pool, n) not in held)
        return todo

    def _refresh_queue(self) -> None:
        now = self._ledger.clock.monotonic()
        rang = self._did_bell_ring(now)
        interval = QUEUE_LIST_S if self._views else QUEUE_IDLE_S
        if not rang and now - self._listed_at < interval:
            return
        self._listed_at = now
        try:
            self._list_queue()
        except StoreUnavailable:
            self.look_again()
            raise

    def _list_queue(self) -> None:
        if self._only is not None:
            self._look_at(self._only, 0)
            return
        seen = set()
        for entry in self._ledger.store.list(layout.queue_prefix(self._pool)):
            batch_id = layout.marker_batch_id(entry.key)
            seen.add(batch_id)
            try:
                self._look_at(batch_id, layout.marker_priority(entry.key))
                self._heal(entry)
            except BatchDamaged as error:
                self._give_up(batch_id, error)
        for batch_id in self._views.keys() - seen:
            self.drop(batch_id)
        self._has_listed = True

    def _heal(self, marker: Entry) -> None:
        """Remove the marker of a batch that has ended, or that was never committed."""
        batch_id = layout.marker_batch_id(marker.key)
        if batch_id in self._views:
            return
        batch = read_batch(self._ledger, batch_id)
        is_old = self._ledger.clock.now() - marker.modified_at >= self._ledger.limits.abandoned_s
        if batch.state == "ended" if batch is not None else is_old:
            self._ledger.store.delete(marker.key)

    def _did_bell_ring(self, now: float) -> bool:
        if now - self._bell_asked_at < BELL_S:
            return False
        self._bell_asked_at = now
        found = self._ledger.store.get_if_changed(layout.bell_key(self._pool), self._bell)
        if found is None or found == "unchanged":
            return False
        self._bell = found.etag
        return True

    def _look_at(self, batch_id: str, priority: int) -> None:
        """Begin to work on a batch that is open; forget one that is not."""
        if batch_id in self._damaged:
            return
        batch = read_batch(self._ledger, batch_id)
        if batch is None or batch.state != "open":
            # A marker without its batch is a create in progress, or garbage; an ending one is the steward's.
            self.drop(batch_id)
        elif batch_id not in self._views:
            plan = read_plan(self._ledger, batch)
            if self._pool not in plan.pools and set(plan.pools) - {layout.REJECTED_POOL}:
                raise BatchDamaged(f"{batch_id}: its plan has no pool {self._pool}, its marker says so")
            self._views[batch_id] = BatchView(batch=batch, plan=plan, pool=self._pool, priority=priority)
