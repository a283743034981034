"""Chooses which shard to claim next, from the pool's open batches and what is known about their shards.

Everything here is a hint that saves requests; only the conditional write decides whether a claim succeeds. A batch is
read once, when its entry is new in the queue; a shard that another runner holds is not read again before it matters.
"""

from collections import deque
from itertools import islice

import structlog

from batchfile.errors import BatchDamaged, BatchfileError, StoreError, StoreUnavailable
from batchfile.ledger import keys
from batchfile.ledger.batches import read_batch, read_plan
from batchfile.ledger.cas import Stored, load
from batchfile.ledger.parallel import in_order
from batchfile.ledger.records import BatchRecord, ShardRecord, ShardState
from batchfile.ledger.set_aside import PAUSE_S_MAX
from batchfile.ledger.shards import Lease, claim, is_free
from batchfile.runner.batch_view import BatchView
from batchfile.runner.queues import TenantRotation
from batchfile.runner.state import SharedState
from batchfile.store.base import Entry

log = structlog.get_logger()

RELIST_S = 5.0  # a batch without a free shard is looked at again after this
QUEUE_LIST_S = 15.0  # how often the queue is listed while it has entries
QUEUE_IDLE_S = 120.0  # and while it has none and no change is notified
NOTIFICATION_S = 1.0
LISTING_IN_READS = 12  # a listing costs as much as this many reads on AWS; with fewer shards it would save nothing
TRIES_MAX = 8  # batches in which one call looks for a shard
TRIES_ELSEWHERE_MAX = 2  # after so many failed ones, batches with a shard that is known to be unclaimed go first
NEW_AT_ONCE = 16  # new batches that are read before the next shard is claimed
HELD_ELSEWHERE_SHARE_OF_TTL = 1 / 6  # when to read a shard of another runner again: its record is rewritten then
UNCHECKED_MAX = 64  # a batch with more requests that wait for their schemas is not claimed from


class Claimer:
    """Claims for one pool; or for the batches of `only`, in their order and that of their inputs, since only this
    machine works on them.

    A batch that cannot be read or claimed from is set aside, and the others continue. The prefetcher's thread claims;
    any thread may ask what is known. Views, their `ruled_out` and their `elsewhere` change under the runner's lock.
    """

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._ledger, self._aside = state.ledger, state.aside
        self._pool, self._only = state.options.pool, state.options.batch_ids
        self._places = {batch_id: n for n, batch_id in enumerate(self._only)}
        self._num_read = 0  # of `only`: how many were read for the first time
        self._rotation = TenantRotation(state.ledger.rng)
        self._lock = state.changed
        self._views: dict[str, BatchView] = {}
        self._new: deque[Entry] = deque()  # entries of batches that were not read yet, in the order of the queue
        self._unread: set[str] = set()  # batches that could not be read the last time
        self._list_at = float("-inf")  # when to list the queue again, unless a change is notified before
        self._notification_asked_at = float("-inf")
        self._notification = ""
        self._has_listed = False
        self._is_store_doubtful = False  # it did not answer for one batch: perhaps it is unavailable for all

    @property
    def is_exhausted(self) -> bool:
        """Was every shard of the batches in the queue done, closed or held by us at the last look?"""
        with self._lock:
            if not self._has_listed or self._new or self._unread:
                return False
            return not any(view.num_left for view in self._views.values())

    @property
    def has_more(self) -> bool:
        """Would the next claim look at something: new batches, or shards that may be free by now?"""
        return bool(self._new or self._num_read < len(self._only) or self._candidates())

    def share(self) -> int | None:
        """How many requests this runner may hold ahead, if it is one of several on `only`: its share of the rest."""
        num_runners = self._state.options.num_runners
        if num_runners == 1:
            return None
        with self._lock:
            rest = sum(view.num_unclaimed * view.lines_each for view in self._views.values())
        return int(rest / num_runners)

    def next(self) -> Lease | None:
        """One more shard, or None if none was found free.

        Raises: StoreError if the queue cannot be listed; BatchDamaged and StoreError for a batch of `only`.

        A call does a bounded amount of work: it reads a few of the new batches and looks for a shard in a few of all.
        So the first shard is claimed while most of a long queue is still unread.
        """
        self._is_store_doubtful = False
        self._refresh_queue()
        self._look_at_new()
        for num_tried in range(TRIES_MAX):
            view = self._choose(is_unclaimed=num_tried >= TRIES_ELSEWHERE_MAX)
            if view is None:
                return None
            held = self._try(view)
            if held is not None:
                return held
            if self._is_store_doubtful:
                break  # the next call begins with other batches
        return None

    def forget(self, batch_id: str, n: int) -> None:
        """Shard `n` is no longer ours: it may have to be claimed again."""
        with self._lock:
            view = self._views.get(batch_id)
            if view is not None:
                view.ruled_out.discard(n)
                view.look_at = float("-inf")

    def renew(self, batch: BatchRecord) -> None:
        """Read the input in another way from now on."""
        with self._lock:
            view = self._views.get(batch.batch_id)
            if view is not None:
                view.batch = batch

    def look_again(self) -> None:
        """Something changed: list the queue at the next claim."""
        self._list_at = float("-inf")

    def exhausted(self) -> list[str]:
        """Batches in which this pool has, as far as is known, no shard left that is free or held here.

        They may be complete. If others hold the rest, only batches that we had a part in: the last of us ends the
        batch.
        """
        with self._lock:
            return [
                batch_id
                for batch_id, view in self._views.items()
                if (view.num_left == 0 or (view.has_held and view.num_unclaimed == 0))
                and not self._state.is_working_on(batch_id)
            ]

    def closed(self) -> list[str]:
        """Batches of `only` that were not open when they were read: another process ends or has ended them, or they are
        gone.
        """
        ended = self._state.ended
        return [one for one in self._only[: self._num_read] if one not in self._views and one not in ended]

    def knows(self, batch_id: str) -> bool:
        return batch_id in self._views

    def drop(self, batch_id: str) -> None:
        with self._lock:
            self._views.pop(batch_id, None)

    def _candidates(self) -> list[BatchView]:
        now = self._state.now()
        with self._lock:
            return [
                view
                for batch_id, view in self._views.items()
                if (view.todo or (view.num_left and view.look_at <= now))
                and not self._aside.left_s(batch_id)
                and self._state.unchecked.num_of(batch_id) <= UNCHECKED_MAX
            ]

    def _choose(self, *, is_unclaimed: bool) -> BatchView | None:
        """A batch to claim from: tenants take turns, and within a tenant a higher priority is chosen more often.

        With `is_unclaimed`, one with a shard that no runner is known to hold, if there is one.
        """
        candidates = self._candidates()
        if is_unclaimed:
            candidates = [view for view in candidates if view.num_unclaimed] or candidates
        if not candidates:
            return None
        if self._only:
            return min(candidates, key=lambda view: self._places[view.batch.batch_id])
        tenant = self._rotation.take(view.batch.tenant for view in candidates)
        candidates = [view for view in candidates if view.batch.tenant == tenant]
        weights = [10 - view.priority for view in candidates]
        return self._ledger.rng.choices(candidates, weights)[0]

    def _try(self, view: BatchView) -> Lease | None:
        batch_id = view.batch.batch_id
        try:
            if not view.todo:
                now = self._state.now()
                view.look_at = now + RELIST_S
                view.todo = self._order(view, now)
            return self._claim_in(view)
        except (BatchDamaged, StoreError) as error:
            if isinstance(error, BatchDamaged):
                self.drop(batch_id)  # it is read again
            self._set_aside(batch_id, error)
            return None

    def _set_aside(self, batch_id: str, error: BatchfileError) -> None:
        """Raises: `error` for a batch of `only`, if waiting does not help."""
        pause_s = self._aside.put(batch_id, "claim", error)
        self._is_store_doubtful = isinstance(error, StoreUnavailable)
        if batch_id not in self._views:
            self._unread.add(batch_id)
            self._list_at = min(self._list_at, self._state.now() + pause_s)

    def _claim_in(self, view: BatchView) -> Lease | None:
        while view.todo:
            n = view.todo.pop()
            try:
                held = claim(self._ledger, view.batch, view.plan, self._pool, n, runner=self._state.options.runner_id)
            except BatchfileError as error:  # perhaps only of this shard: try the others first
                with self._lock:
                    view.elsewhere[n] = self._state.now() + (RELIST_S if self._only else PAUSE_S_MAX)
                if not isinstance(error, BatchDamaged) or self._only:
                    raise
                log.error("shard.unreadable", batch_id=view.batch.batch_id, shard=f"{self._pool}/{n}", error=str(error))
                continue
            if isinstance(held, Lease):
                with self._lock:
                    self._state.arriving = view.batch.batch_id
                    view.rule_out(n)
                    view.has_held = True
                return held
            self._note(view, n, held)
        return None

    def _order(self, view: BatchView, now: float) -> list[int]:
        """Shards that may be free, the next one last. Those without a record go first, since no runner holds them."""
        todo = [n for n in view.members if n not in view.ruled_out and view.elsewhere.get(n, now) <= now]
        if self._only:
            return todo[::-1]
        self._ledger.rng.shuffle(todo)
        if len(todo) < LISTING_IN_READS:
            return todo
        batch_id = view.batch.batch_id
        records_of = {n: keys.shard_key(batch_id, self._pool, n) for n in todo}
        begun = {entry.key for entry in self._ledger.store.list(keys.shards_prefix(batch_id, self._pool))}
        new = [n for n in todo if records_of[n] not in begun]
        if new:
            return new
        found = in_order(self._ledger, self._load, records_of.values())
        return [n for n, record in zip(todo, found, strict=True) if self._may_be_free(view, n, record)]

    def _load(self, key: str) -> Stored[ShardRecord] | None:
        """None also if it is damaged: the claim reports it."""
        try:
            return load(self._ledger, key, ShardRecord)
        except BatchDamaged:
            return None

    def _may_be_free(self, view: BatchView, n: int, found: Stored[ShardRecord] | None) -> bool:
        if found is None or is_free(self._ledger, found):
            return True
        self._note(view, n, found.record.state)
        return False

    def _note(self, view: BatchView, n: int, state: ShardState) -> None:
        """Shard `n` was found in this state, not free."""
        again_s = self._ledger.limits.lease_ttl_s * HELD_ELSEWHERE_SHARE_OF_TTL
        with self._lock:
            if state in {"done", "closed"}:
                view.rule_out(n)
            else:
                view.elsewhere[n] = self._state.now() + again_s
        if state == "closed" and not view.is_ending:
            view.is_ending = True
            view.todo.clear()
            batch = read_batch(self._ledger, view.batch.batch_id)
            if batch is None or batch.state != "open":
                self.drop(view.batch.batch_id)

    def _refresh_queue(self) -> None:
        now = self._state.now()
        if not self._was_notified(now) and now < self._list_at:
            return
        self.look_again()  # until it is listed
        try:
            if not self._only:
                self._list_queue()
            for batch_id in self._only[: self._num_read]:
                if batch_id not in self._state.ended:
                    self._look_at(batch_id)
        except StoreError as error:
            self._list_at = now + RELIST_S  # meanwhile, work on what is known
            if isinstance(error, StoreUnavailable):
                self._aside.clear_unavailable()
            raise
        interval_s = QUEUE_LIST_S if self._views or self._new or self._only else QUEUE_IDLE_S
        self._list_at = now + min([interval_s, *map(self._aside.left_s, self._unread)])

    def _list_queue(self) -> None:
        queue = self._ledger.store.list(keys.queue_prefix(self._pool))
        entries = {keys.queue_batch_id(entry.key): entry for entry in queue}
        with self._lock:
            for batch_id in self._views.keys() - entries.keys():
                self.drop(batch_id)
            new = [batch_id for batch_id in entries if batch_id not in self._views]
            self._unread = {batch_id for batch_id in new if self._aside.left_s(batch_id)}
            self._new = deque(entries[batch_id] for batch_id in new if batch_id not in self._unread)
            self._has_listed = True

    def _look_at(self, batch_id: str) -> None:
        batch = read_batch(self._ledger, batch_id)
        if batch is None or batch.state != "open":
            self.drop(batch_id)
        elif batch_id not in self._views:
            self._know(self._view(batch, 0))

    def _look_at_new(self) -> None:
        """Read some of the batches that are new in the queue, several at once; of `only`, those that are due soon."""
        while self._num_read < len(self._only) and self._num_left() < NEW_AT_ONCE:
            self._look_at(self._only[self._num_read])
            self._num_read += 1
        some = list(islice(self._new, NEW_AT_ONCE))
        for entry, found in zip(some, in_order(self._ledger, self._read, some), strict=True):
            if isinstance(found, BatchView):
                self._know(found)
            elif found is not None:
                self._set_aside(keys.queue_batch_id(entry.key), found)
            self._new.popleft()  # last: until it is known, `is_exhausted` must see it as new

    def _know(self, view: BatchView) -> None:
        with self._lock:
            self._views[view.batch.batch_id] = view

    def _num_left(self) -> int:
        with self._lock:
            return sum(view.num_left for view in self._views.values())

    def _read(self, entry: Entry) -> BatchView | BatchfileError | None:
        """The batch of a queue entry, if it is open. Removes the entry if the batch has ended or was never committed.

        An entry without a batch may be a create in progress; ending batches are left to the janitor.
        """
        try:
            batch = read_batch(self._ledger, keys.queue_batch_id(entry.key))
            if batch is not None and batch.state == "open":
                return self._view(batch, keys.queue_priority(entry.key))
            is_old = self._ledger.clock.now() - entry.modified_at >= self._ledger.limits.abandoned_s
            if is_old if batch is None else batch.state == "ended":
                self._ledger.store.delete(entry.key)
        except (BatchDamaged, StoreError) as error:
            return error
        return None

    def _view(self, batch: BatchRecord, priority: int) -> BatchView:
        """Raises: BatchDamaged, StoreError."""
        plan = read_plan(self._ledger, batch)
        if self._pool not in plan.pools and set(plan.pools) - keys.PSEUDO_POOLS:
            raise BatchDamaged(f"{batch.batch_id}: its queue entry names pool {self._pool}, but its plan does not")
        sizes = plan.pools.get(self._pool, {})
        return BatchView(batch=batch, plan=plan, priority=priority, members=list(sizes), num_lines=sum(sizes.values()))

    def _was_notified(self, now: float) -> bool:
        if now - self._notification_asked_at < NOTIFICATION_S:
            return False
        self._notification_asked_at = now
        try:
            found = self._ledger.store.get_if_changed(keys.notification_key(self._pool), self._notification)
        except StoreUnavailable:
            self._notification_asked_at = now + NOTIFICATION_S  # the next call does not wait for a notification
            self._aside.clear_unavailable()
            raise
        except StoreError as error:  # a notification is only a hint
            log.warning("notification.refused", pool=self._pool, error=str(error))
            self._notification_asked_at = now + QUEUE_LIST_S
            return False
        if found is None or found == "unchanged":
            return False
        self._notification = found.etag
        return True
