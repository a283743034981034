"""Which results a new batch takes over from ended ones, and that no request gets the result of another."""

from collections.abc import Callable
from typing import TypeVar

import pytest

from batchfile.errors import BatchDamaged, StoreUnavailable
from batchfile.testing import FaultyStore, Ill
from batchfile.types import Choice, Completion, Defaults, Failure, RoutingTable, Usage
from tests.contract.reuse_kit import LOCAL, World, from_, line
from tests.helpers.faults import Phase
from tests.helpers.ledger import (
    BatchRecord,
    Draft,
    InputRef,
    Lease,
    PendingInput,
    PlanRules,
    batches,
    ending,
    keys,
    origin_of,
    retention,
    shards,
)
from tests.helpers.lines import FinishedLine, encode_result
from tests.helpers.plan import pending, plan_upload, range_buckets, source_of
from tests.helpers.store import Store, WrappedStore

T = TypeVar("T")


def rows(*numbers: int, shift: int = 0) -> list[bytes]:
    return [line(f"r{n + shift}", f"lead {n}") for n in numbers]


@pytest.mark.parametrize(
    ("changed", "generated"),
    [
        (rows(*range(40)), []),
        (rows(*range(39, -1, -1)), []),
        (rows(*range(40), 40, 41), ["r40", "r41"]),
        (rows(*range(10), *range(20, 40)), []),
        (rows(*range(40), shift=7), []),
        (rows(*range(5), 77, *range(5, 40)), ["r77"]),
        (rows(*range(5)), []),
    ],
    ids=["same", "reversed", "appended", "deleted", "renamed", "inserted", "fewer"],
)
def test_only_what_changed_is_generated(changed: list[bytes], generated: list[str]) -> None:
    world = World()
    old = world.finished("old", rows(*range(40)))
    planned = world.plan("new", changed, from_(old))
    assert planned.num_reused == len(changed) - len(generated)
    assert planned.reused_from == {"old": planned.num_reused}
    assert planned.reuse_note is None
    created = world.create("new", planned)
    assert created.reused == planned.reused_from
    ended = world.run("new")
    assert world.generated.custom_ids == generated
    fresh = World()
    assert world.answers(ended) == fresh.answers(fresh.finished("new", changed))
    assert ended.usage.output_tokens == (0 if not generated else ended.usage.output_tokens)


def test_a_damaged_or_missing_object_of_the_source_is_told_and_everything_is_generated() -> None:
    world = World()
    old = world.finished("old", rows(*range(40)))
    hashes = batches.read_plan(world.ledger, old).hashes
    assert hashes is not None
    assert old.results is not None
    found = {key: world.store.get(key) for key in (hashes.key, old.results.key, old.plan_key)}
    for key, stored in found.items():
        assert stored is not None
        for number, damaged in enumerate(
            (None, stored.data[:-1], stored.data[:-20], b"", stored.data[:50] + stored.data)
        ):
            world.store.delete(key) if damaged is None else world.store.put(key, damaged)
            planned = world.plan(f"new-{number}", rows(*range(40)), from_(old))
            assert planned.num_reused == 0, (key, number)
            note = planned.reuse_note or ""
            assert note.startswith("no result of old was reused: "), (key, number)
            assert "batches/" not in note, "keys of the store are for the log"
        world.store.put(key, stored.data)
    assert world.plan("whole", rows(*range(40)), from_(old)).num_reused == 40


def answered(world: World, batch_id: str, lines: list[bytes], texts: dict[int, str]) -> BatchRecord:
    """An ended batch in which the line `n` was answered with `texts[n]`; the others failed."""
    batch = world.create(batch_id, world.plan(batch_id, lines))
    held = shards.claim(world.ledger, batch, batches.read_plan(world.ledger, batch), "local", 0, runner="r")
    assert isinstance(held, Lease)
    done = []
    for n, one in enumerate(lines):
        custom_id = one.split(b'"')[3].decode()
        outcome = (
            Completion(choices=(Choice(texts[n], "end_turn"),), usage=Usage(output_tokens=5))
            if n in texts
            else Failure(type="api_error", message="no")
        )
        status = "succeeded" if n in texts else "errored"
        done.append(FinishedLine(n, status, encode_result(custom_id, outcome, "m")))  # type: ignore[arg-type]
    shards.checkpoint(world.ledger, held, done, has_dispatched=True)
    ended = ending.finish(world.ledger, batch_id, runner="r")
    assert ended is not None
    return ended


def test_the_kth_of_equal_requests_gets_the_kth_result_if_that_succeeded() -> None:
    world = World()
    old = answered(world, "old", [line(f"r{n}", "same") for n in range(4)], {0: "one", 1: "two", 3: "four"})
    new = [line("x", "other"), *(line(f"s{n}", "same") for n in range(5))]
    world.create("new", world.plan("new", new, from_(old)))
    assert world.answers(world.run("new")) == [
        ("x", "other"),
        ("s0", "one"),
        ("s1", "two"),
        ("s2", "same"),
        ("s3", "four"),
        ("s4", "same"),
    ]


def test_an_earlier_source_wins_and_a_later_one_fills_the_gaps() -> None:
    world = World()
    lines = rows(*range(4))
    first = answered(world, "first", lines, {0: "first 0", 2: "first 2"})
    second = answered(world, "second", lines, {0: "second 0", 1: "second 1"})
    planned = world.plan("new", lines, from_(source_of(world.ledger, "gone"), first, second))
    assert planned.reused_from == {"first": 2, "second": 1}
    assert planned.reuse_note == "no result of gone was reused: it has expired or was deleted"
    world.create("new", planned)
    texts = [text for _, text in world.answers(world.run("new"))]
    assert texts == ["first 0", "second 1", "first 2", "lead 3"]


def test_sampled_requests_are_reused_only_when_asked() -> None:
    world = World()
    lines = [line("a", "hi", temperature=1), line("b", "hi", temperature=1, seed=7), line("c", "hi")]
    old = answered(world, "old", lines, {0: "A", 1: "B", 2: "C"})
    assert world.plan("new", lines, from_(old)).num_reused == 2
    assert world.plan("asked", lines, from_(old, is_sampled_too=True)).num_reused == 3


def test_a_batch_reuses_what_another_has_reused() -> None:
    world = World()
    first = world.finished("first", rows(*range(10)))
    second = world.finished("second", rows(*range(20), shift=3), from_(first))
    retention.delete(world.ledger, "first")
    retention.purge(world.ledger, "first")
    planned = world.plan("third", rows(*range(20)), from_(second))
    assert planned.reused_from == {"second": 20}


def test_lines_that_cannot_run_take_no_result() -> None:
    world = World()
    old = world.finished("old", rows(0, 1, 2))
    new = [*rows(0), b"rubbish", line("r0", "lead 1"), line("r9", "lead 2")]
    planned = world.plan("new", new, from_(old))
    assert planned.plan.pools == {"_rejected": {0: 2}, "_reused": {0: 2}}
    world.create("new", planned)
    ended = ending.finish(world.ledger, "new", runner="r")
    assert ended is not None
    assert [text for _, text in world.answers(ended)] == [
        "lead 0",
        "invalid_request_error",
        "invalid_request_error",
        "lead 2",
    ]


def test_other_defaults_or_another_pool_are_other_requests() -> None:
    world = World()
    pools = RoutingTable(pools={"one": (), "two": ()})
    lines = [line(f"r{n}", f"lead {n}", {"model_hint": "one" if n % 2 else "two"}) for n in range(8)]
    swapped = [line(f"r{n}", f"lead {n}", {"model_hint": "two" if n < 4 or n % 2 == 0 else "one"}) for n in range(8)]
    planned = world.plan("old", lines, routing=pools)
    batch = world.create("old", planned, routing=pools)
    for pool in ("one", "two"):
        held = shards.claim(world.ledger, batch, planned.plan, pool, 0, runner="r")
        assert isinstance(held, Lease)
        answer = Completion(choices=(Choice(pool, "end_turn"),), usage=Usage())
        own = [n for n in range(8) if n % 2 == (pool == "one")]
        done = [FinishedLine(n, "succeeded", encode_result(f"r{n}", answer, "m")) for n in own]
        shards.checkpoint(world.ledger, held, done, has_dispatched=True)
    old = ending.finish(world.ledger, "old", runner="r")
    assert old is not None
    again = world.plan("again", swapped, from_(old), routing=pools)
    assert again.plan.pools == {"two": {0: 2}, "_reused": {0: 6}}
    for changes in (Defaults(max_tokens=9), Defaults(temperature=0.0), Defaults(output_schema={})):
        assert world.plan("other", lines, from_(old), routing=pools, defaults=changes).num_reused == 0
    assert world.plan("stage", lines, from_(old), routing=pools, stage="email").num_reused == 0


def test_an_adapter_that_the_metadata_names_is_another_model() -> None:
    world = World()
    old = world.finished("old", [line("a", "lead")])
    routing = RoutingTable(everything="local", adapters={"x": "local"})
    hinted = [line(hint, "lead", {"model_hint": hint}) for hint in ("x", "not-an-adapter")]
    assert world.plan("again", hinted[:1], from_(old), routing=routing).num_reused == 0
    assert world.plan("other", hinted, from_(old), routing=routing).num_reused == 1


def test_results_are_copied_byte_for_byte_but_for_the_id() -> None:
    world = World()
    answer = 'a "quoted"\u2028 line \\ and {"custom_id":"r0"}'
    old = answered(world, "old", [line('r"0\u2028\\', "x")], {0: answer})
    for number, custom_id in enumerate(("plain", 'q"\u2029\\', 'r"0\u2028\\')):
        world.create(f"new{number}", world.plan(f"new{number}", [line(custom_id, "x")], from_(old)))
        ended = ending.finish(world.ledger, f"new{number}", runner="r")
        assert ended is not None
        assert world.answers(ended) == [(custom_id, answer)]
        assert ended.usage == Usage()


class DeletingStore(WrappedStore):
    """Deletes everything of the batch `old` right before the read of it with this number."""

    def __init__(self, inner: Store, number: int) -> None:
        super().__init__(inner)
        self.num_reads, self._number = 0, number

    def _call(self, verb: str, key: str, do: Callable[[], T]) -> T:
        if verb in {"get", "stream"} and key.startswith(keys.batch_prefix("old")):
            self.num_reads += 1
            if self.num_reads == self._number:
                self._inner.delete_many([entry.key for entry in self._inner.list(keys.batch_prefix("old"))])
        return do()


def test_a_source_may_be_deleted_at_any_read_of_it() -> None:
    lines = rows(*range(6))
    outcomes = []
    while True:
        world = World()
        old = answered(world, "old", lines, dict.fromkeys(range(6), "kept"))
        store = DeletingStore(world.store, len(outcomes) + 1)
        planned = world.plan("new", lines, from_(old), ledger=world.ledger_over(store))
        outcomes.append((planned.num_reused, planned.reuse_note))
        if store.num_reads < len(outcomes):
            break
    gone = (0, "no result of old was reused: it has expired or was deleted")
    assert outcomes == [gone, gone, gone, (6, None)], "the plan, the hashes, the results"


def test_a_source_that_the_store_does_not_give_is_told() -> None:
    world = World()
    old = world.finished("old", rows(*range(6)))
    for pattern in ("*/old/plan-*", "*/old/hashes-*", "*/old/results-*"):
        store = FaultyStore(world.store)
        store.ills = [Ill(pattern=pattern, answer="403")]
        planned = world.plan("new", rows(*range(6)), from_(old), ledger=world.ledger_over(store))
        assert planned.num_reused == 0
        assert planned.reuse_note == "no result of old was reused: one of its objects cannot be read"
        store.ills = [Ill(pattern=pattern, answer="500")]
        with pytest.raises(StoreUnavailable):
            world.plan("new", rows(*range(6)), from_(old), ledger=world.ledger_over(store))


def test_a_full_disk_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    world = World()
    old = world.finished("old", rows(*range(40)))
    monkeypatch.setattr(range_buckets, "MEMORY_BYTES", 1000)
    monkeypatch.setattr("batchfile.store.memory.CHUNK_BYTES", 100)  # so that a range gets its lines one by one
    monkeypatch.setattr(range_buckets.tempfile, "TemporaryFile", full)
    assert world.plan("ordered", rows(*range(40)), from_(old), lines_per_range=1).num_reused == 40, "needs no file"
    planned = world.plan("new", rows(*range(39, -1, -1)), from_(old))
    assert planned.num_reused == 0
    assert "set TMPDIR to a folder with more space" in (planned.reuse_note or "")


class Gone(BaseException):
    """The process is no more: nothing may catch this and go on."""


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.parametrize("is_source_left", [True, False])
def test_a_planner_may_die_at_any_write_and_another_plans_the_same(phase: Phase, is_source_left: bool) -> None:
    """Also where the source is gone by then: what the first one has recorded stands."""
    lines = [*rows(*range(20)), *rows(50, 51)]
    number = 0
    seen = set()
    while True:
        number += 1
        world = World()
        answered(world, "old", rows(*range(20)), dict.fromkeys(range(18), "kept"))
        create_pending(world, "new", lines, ("old",))

        def on_call(now: int, verb: str, key: str, at: Phase, number: int = number) -> None:
            if (now, at) >= (number, phase) and at == phase:
                raise Gone

        has_died = False
        try:
            pending.plan(world.ledger_over(FaultyStore(world.store, on_call=on_call)), "new", runner="r1")
        except Gone:
            has_died = True
        if not is_source_left:
            retention.delete(world.ledger, "old")
            retention.purge(world.ledger, "old")
        world.store.kill("r1")
        batch = pending.plan(world.ledger, "new", runner="r2")
        assert batch is not None
        assert batch.state == "open", number
        plan = batches.read_plan(world.ledger, batch)
        num = sum(plan.pools.get("_reused", {}).values())
        assert num in ({18} if is_source_left else {0, 18}), number
        seen.add(num)
        assert sum(batch.reused.values()) == num, number
        expected = [("kept" if n < num else f"lead {n}") for n in range(20)] + ["lead 50", "lead 51"]
        assert [text for _, text in world.answers(world.run("new"))] == expected, number
        if not has_died:
            break
    assert number > 5
    assert seen == ({18} if is_source_left else {0, 18})


def create_pending(world: World, batch_id: str, lines: list[bytes], reuse_from: tuple[str, ...]) -> None:
    """A batch that exists before its plan, and names its sources in its rules."""
    key = keys.input_key(batch_id, "n")
    etag = world.store.put(key, b"\n".join(lines))
    size = sum(len(one) + 1 for one in lines) - 1
    pinned = InputRef(key=key, etag=etag, size=size, sha256="", format="native")
    draft = Draft(batch_id=batch_id, routing=LOCAL, defaults=Defaults(), created_at=world.clock.now())
    rules = PlanRules(reuse_from=reuse_from)
    pending.create(
        world.ledger, draft, PendingInput(input=pinned, origin=origin_of("test", batch_id, rules), rules=rules)
    )


def test_a_batch_that_is_planned_later_reuses_too_and_says_what_it_could_not() -> None:
    world = World()
    world.finished("old", rows(*range(6)))
    create_pending(world, "new", rows(*range(8)), ("gone", "old"))
    batch = pending.plan(world.ledger, "new", runner="r")
    assert batch is not None
    assert batch.reused == {"old": 6}
    assert batch.reuse_note == "no result of gone was reused: it has expired or was deleted"
    world.run("new")
    assert world.generated.custom_ids == ["r6", "r7"]


def test_an_upload_reuses_too() -> None:
    world = World()
    old = world.finished("old", rows(*range(6)))
    lines = rows(*range(8))
    data = b"\n".join(lines)
    planned = plan_upload(
        world.ledger, "new", [data], size=len(data), routing=LOCAL, defaults=Defaults(), reuse=from_(old)
    )
    assert planned.reused_from == {"old": 6}
    assert planned.plan.pools == {"local": {0: 2}, "_reused": {0: 6}}


def test_a_batch_keeps_its_hashes_when_it_ends_and_loses_them_with_its_results() -> None:
    world = World()
    old = world.finished("old", rows(*range(6)))
    hashes = batches.read_plan(world.ledger, old).hashes
    assert hashes is not None
    assert world.store.head(hashes.key) is not None
    assert hashes.size == 16 + 6 * 16
    retention.delete(world.ledger, "old")
    retention.purge(world.ledger, "old")
    assert world.store.head(hashes.key) is None


def test_records_of_an_attempt_that_cut_the_input_otherwise_are_never_mistaken_for_ours() -> None:
    world = World()
    old = world.finished("old", rows(*range(200)))
    world.plan("new", [b"rubbish", *rows(*range(200))], from_(old))
    for reuse in (from_(old), None):
        with pytest.raises(BatchDamaged, match="submit it again as a new batch"):
            world.plan("new", [b"rubbish", *rows(*range(200))], reuse, lines_per_range=67)
