"""The rules of a shard record."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.ledger import bitmaps, lease
from batchfile.types import Counts, Usage
from tests.helpers.ledger import PartRef, ShardRecord

PART = PartRef(key="p", size=1, sha256="0")


def fresh(num_lines: int = 8) -> ShardRecord:
    return lease.fresh("mistral", 3, num_lines, lease="a", runner="r1")


def progress(record: ShardRecord, lines: list[int], bisect_set: tuple[int, ...] | None = None) -> ShardRecord:
    return lease.checkpointed(
        record,
        seq=record.seq + 1,
        part=PART if lines else None,
        done=bitmaps.of(lines),
        counts=Counts(succeeded=len(lines)),
        usage=Usage(output_tokens=len(lines)),
        has_dispatched=True,
        bisect_set=bisect_set,
    )


def expire(record: ShardRecord) -> ShardRecord:
    return lease.claimed(record, lease="b", runner="r2")


@pytest.mark.parametrize(
    ("state", "age_s", "is_process_dead", "expected"),
    [
        ("open", 0, False, True),
        ("leased", 89.9, False, False),
        ("leased", 90, False, True),
        ("leased", 0, True, True),
        ("done", 1e6, True, False),
        ("closed", 1e6, True, False),
    ],
)
def test_a_record_is_claimable_when_open_or_expired(
    state: str, age_s: float, is_process_dead: bool, expected: bool
) -> None:
    record = replace(fresh(), state=state)
    assert lease.is_claimable(record, age_s=age_s, ttl_s=90, is_owner_dead=is_process_dead) is expected


def test_a_takeover_keeps_what_is_committed_and_counts_the_owners() -> None:
    before = progress(fresh(), [0, 2])
    after = expire(before)
    assert (after.parts, after.done, after.counts, after.usage) == (
        before.parts,
        before.done,
        before.counts,
        before.usage,
    )
    assert (after.epoch, after.lease, after.state) == (2, "b", "leased")


def test_the_last_line_makes_the_shard_done() -> None:
    record = progress(fresh(2), [0])
    assert record.state == "leased"
    assert progress(record, [1]).state == "done"


def test_a_release_counts_as_no_crash() -> None:
    record = progress(fresh(), [])
    assert expire(lease.released(record, seq=9)).crash_count == 0


def test_an_expired_lease_of_a_holder_that_announced_nothing_counts_only_once() -> None:
    record = expire(fresh())
    assert record.crash_count == 1
    assert lease.must_announce(record)
    assert expire(record).crash_count == 1


def test_progress_forgets_the_crashes() -> None:
    record = progress(expire(fresh()), [0])
    assert record.crash_count == 0
    assert not lease.must_announce(record)


def test_closing_fences_the_holder_and_keeps_what_is_committed() -> None:
    record = progress(fresh(), [1])
    closed = lease.closed(record, lease="z", reason="canceled")
    assert (closed.state, closed.done, closed.parts) == ("closed", record.done, record.parts)
    assert closed.lease != record.lease


@given(num_lines=st.integers(1, 200), data=st.data())
def test_a_line_that_kills_its_process_is_found_and_no_other_is_blamed(num_lines: int, data: st.DataObject) -> None:
    """Play the holder: whatever is dispatched together with the poison kills before anything is committed."""
    poison = data.draw(st.integers(0, num_lines - 1))
    record, crashes_alone = fresh(num_lines), list[int]()
    for _ in range(200):
        missing = ((1 << num_lines) - 1) & ~bitmaps.parse(record.done)
        if not missing:
            break
        culprit = lease.poison_line(record)
        if culprit is not None:
            crashes_alone.append(culprit)
            record = progress(record, [culprit], ())
        elif lease.is_bisecting(record):
            bisect_set = lease.next_bisect_set(record, missing)
            record = progress(record, [], bisect_set)
            record = expire(record) if poison in bisect_set else progress(record, list(bisect_set))
        else:
            record = progress(record, [])
            lines = list(bitmaps.lines(missing))
            record = expire(record) if poison in lines else progress(record, lines)
    assert crashes_alone == [poison]
    assert record.state == "done"


def test_a_spot_kill_blames_nobody() -> None:
    """Every holder dies once before it commits anything, three times over; then one lives."""
    record = fresh()
    for _ in range(3):
        record = expire(progress(record, []))
    assert lease.poison_line(record) is None


def accuse(record: ShardRecord, line: int, lines: list[int]) -> ShardRecord:
    return lease.checkpointed(
        record,
        seq=record.seq + 1,
        part=PART if lines else None,
        done=bitmaps.of(lines),
        counts=Counts(succeeded=len(lines)),
        usage=Usage(),
        has_dispatched=False,
        accused=line,
    )


@pytest.mark.parametrize("lines", [[], [0, 1]])
def test_a_line_that_its_holder_ends_for_is_tried_alone_and_guilty_at_the_third_time(lines: list[int]) -> None:
    record = accuse(fresh(), 5, lines)
    assert record.counts.finished == len(lines)
    for num in range(1, lease.CRASHES_OF_ONE_LINE + 1):
        record = expire(record)
        assert lease.is_bisecting(record)
        assert lease.next_bisect_set(record, 0b11111100) == (5,)
        assert lease.poison_line(record) == (5 if num == lease.CRASHES_OF_ONE_LINE else None)
        if lease.poison_line(record) is None:
            record = accuse(record, 5, [])


def test_a_holder_that_says_it_ends_for_a_line_is_not_asked_whether_it_lives() -> None:
    accused = accuse(fresh(), 5, [])
    assert not lease.must_ask(accused, is_owner_dead=False)
    assert lease.must_ask(progress(expire(accused), [], (5,)), is_owner_dead=False)


def test_accusing_another_line_begins_to_count_anew() -> None:
    record = expire(accuse(expire(accuse(fresh(), 5, [])), 5, []))
    assert record.crashes_alone == 2
    record = expire(accuse(record, 6, []))
    assert (record.bisect_set, record.crashes_alone) == ((6,), 1)


def test_a_line_that_was_accused_for_nothing_is_not_guilty_once_it_is_done() -> None:
    record = progress(expire(accuse(fresh(), 5, [])), [5])
    assert lease.poison_line(expire(expire(record))) is None
