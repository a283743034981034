"""Filtered listings: each page costs a bounded number of reads, and all pages together have each batch once."""

import random
from collections.abc import Callable, Iterator

import pytest

from batchfile import Ledger
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.helpers.ledger import batches, keys
from tests.helpers.plan import plan_input
from tests.helpers.service import Caller, Service
from tests.helpers.settings import load_settings
from tests.helpers.store import MeteredStore

ROUTING = RoutingTable(pools={"one": ("m",)})
ACME = Caller(tenant="acme", key="k")
NUM, LOOKED_AT_MAX = 100, 32


class World:
    """100 batches of acme, of which every tenth has a stage; the last one is the newest."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MeteredStore(MemoryStore(self.clock))
        self.ledger = Ledger(store=self.store, clock=self.clock, rng=random.Random(3))
        self.service = Service(self.ledger, load_settings(), "api")
        key = keys.input_key("shared", "n")
        self.store.put(key, b'{"custom_id":"a","params":{"messages":[{"role":"user","content":"hello"}]}}')
        self.planned = plan_input(self.ledger, "shared", key, routing=ROUTING)
        for n in range(NUM):
            self.create(f"batch_{n:03d}", stage="email" if n % 10 == 0 else None)

    def create(self, batch_id: str, stage: str | None = None, tenant: str = "acme") -> None:
        self.clock.sleep(1)
        draft = batches.Draft(
            batch_id=batch_id,
            routing=ROUTING,
            defaults=Defaults(),
            tenant=tenant,
            stage=stage,
            created_at=self.clock.now(),
        )
        batches.create(self.ledger, draft, self.planned)

    def pages(self, limit: int, *, stage: str | None, since: float | None = None) -> Iterator[list[str]]:
        after = None
        while True:
            found = self.service.search(
                ACME, lambda one: one.status.stage == stage, limit=limit, after=after, since=since
            )
            yield [one.batch.batch_id for one in found.data]
            if found.next is None:
                return
            after = found.next


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("api.service.LOOKED_AT_MAX", LOOKED_AT_MAX)
    one = World()
    yield one
    one.service.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 50])
def test_the_pages_have_each_batch_once_newest_first(world: World, limit: int) -> None:
    pages = list(world.pages(limit, stage="email"))
    assert [one for page in pages for one in page] == [f"batch_{n:03d}" for n in range(90, -1, -10)]
    assert max(map(len, pages)) <= limit


def test_a_filter_that_fits_nothing_reads_a_bounded_number_of_batches_a_page(world: World) -> None:
    pages = list(world.pages(10, stage="none"))
    assert [one for page in pages for one in page] == []
    assert len(pages) == NUM // LOOKED_AT_MAX + 1
    before = reads(world)
    next(world.pages(10, stage="none"))
    assert reads(world) - before <= 1 + LOOKED_AT_MAX * 2, "the index; of each its record and its shards"


def test_new_batches_do_not_move_the_pages(world: World) -> None:
    pages = world.pages(2, stage="email")
    first = next(pages)
    for n in range(5):
        world.create(f"batch_new{n}", stage="email")
    rest = [one for page in pages for one in page]
    assert [*first, *rest] == [f"batch_{n:03d}" for n in range(90, -1, -10)]


def test_a_time_ends_the_search_without_reading_what_is_older(world: World) -> None:
    before = reads(world)
    assert list(world.pages(50, stage="email", since=world.clock.now() - 25)) == [["batch_090", "batch_080"]]
    assert reads(world) - before <= 1 + 26 * 3, "the index; of each its record, its plan and its shards"


def test_a_page_that_is_full_with_the_last_batch_has_no_next(world: World) -> None:
    assert list(world.pages(10, stage="email", since=world.clock.now() - 9.5)) == [["batch_090"]]


def test_several_are_found_in_their_order_and_only_ones_own(world: World) -> None:
    world.create("batch_theirs", tenant="zeta")
    found = world.service.several(ACME, ["batch_005", "batch_theirs", "batch_none", "../x", "batch_003"])
    assert [one.batch.batch_id for one in found] == ["batch_005", "batch_003"]


def reads(world: World) -> int:
    verbs: Callable[[str], bool] = {"get", "list"}.__contains__
    return sum(spent.num for call, spent in world.store.figures().items() if verbs(call.verb))
