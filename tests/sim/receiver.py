"""A tenant's server for webhooks: it may not answer, fail, or take an event and lose its answer.

Stands in for the network below `api.ops.webhooks`.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from random import Random
from typing import NoReturn
from unittest.mock import patch

from tests.helpers.ledger import BatchRecord, decode
from tests.helpers.service import WebhookRecord, safe_post, webhook_key, webhooks
from tests.sim.store import SharedStore
from tests.sim.world import World

SLOW_S = 25.0  # how long an attempt lasts at most
# Smaller than in production, in proportion to leases: six attempts all the same.
BACKOFF_S = (15.0, 30.0, 60.0, 120.0, 240.0, 60.0)


class Receiver:
    """`is_well_at`: from then on it takes whatever comes. `fail`: is told what must never happen."""

    def __init__(self, world: World, fail: Callable[[str], NoReturn], *, trouble: float, is_well_at: float) -> None:
        self._fail = fail
        self.took: Counter[str] = Counter()  # by batch
        self.num_tries: Counter[str] = Counter()
        self._bodies: dict[str, tuple[str, bytes]] = {}
        self._trouble = trouble
        self._is_well_at = is_well_at
        self._rng = Random(f"{world.seed}/receiver")

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool) -> str | None:
        world = World.current
        batch_id = json.loads(body)["data"]["id"]
        self.num_tries[batch_id] += 1
        mood = self._rng.random() if world.now < self._is_well_at else 1.0
        if mood < self._trouble / 3:
            world.sleep(SLOW_S)
            return "TimeoutError: timed out"
        world.sleep(self._rng.random())
        if mood < 2 * self._trouble / 3:
            return "answered 500"
        event = (headers["webhook-id"], body)
        if self._bodies.setdefault(batch_id, event) != event:
            self._fail(f"two events of {batch_id}")
        self.took[batch_id] += 1
        world.say("receiver", f"took {headers['webhook-id']} of {batch_id}")
        world.sleep(self._rng.random())
        return "the connection broke" if mood < self._trouble else None

    def check(self, batches: Mapping[str, BatchRecord]) -> None:
        """Every event is of a batch that has ended, and none has the id of another's."""
        ids = Counter(event_id for event_id, _ in self._bodies.values())
        if any(num > 1 for num in ids.values()):
            self._fail(f"one id for several batches: {ids}")
        for batch_id in self._bodies:
            if batches[batch_id].state not in {"ended", "deleted"}:
                self._fail(f"{batch_id} was told of before its end")

    def is_told(self, store: SharedStore, batch_id: str) -> bool:
        """Was its end told for good?"""
        data = store.peek(webhook_key(batch_id))
        record = None if data is None else decode(data, WebhookRecord)
        if record is None or record.state == "pending":
            return False
        if record.state == "given_up":
            if record.num_attempts < len(BACKOFF_S):
                self._fail(f"{batch_id} was given up after {record.num_attempts} tries")
        elif self.took[batch_id] == 0:
            self._fail(f"{batch_id} counts as told, and nobody took it")
        return True


def installed(post: Callable[..., str | None]) -> list[AbstractContextManager[object]]:
    return [patch.object(safe_post, "post", post), patch.object(webhooks, "BACKOFF_S", BACKOFF_S)]
