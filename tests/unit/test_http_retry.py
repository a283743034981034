"""When a request that is not served is at fault itself."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.engine.http import retry
from batchfile.engine.http.retry import CHANCE_MAX, FRESH_TRIES, OTHERS_MIN, TRIES_MIN, Judge, Kind, Tries

KINDS: list[Kind] = ["good", "bad", "throttled"]


def answer(judge: Judge, tries: Tries | None, kind: Kind, now: float) -> None:
    if tries is not None and kind == "bad":
        judge.note_bad(tries, now)
    elif tries is not None and kind == "throttled":
        judge.note_throttled(tries, now)
    else:
        judge.note(tries, kind, now)


def others(judge: Judge, kind: Kind, num: int, now: float) -> None:
    for _ in range(num):
        answer(judge, Tries(), kind, now)


def test_one_bad_request_among_good_ones_fails_at_its_third_try() -> None:
    judge, tries = Judge(), Tries()
    verdicts = []
    for now in (0.0, 1.0, 3.0):
        others(judge, "good", 10, now)
        judge.note_bad(tries, now)
        verdicts.append(judge.verdict(tries, now))
    assert verdicts == ["wait", "wait", "fail"]


def test_too_few_others_are_made_up_for_by_probes() -> None:
    judge, tries = Judge(), Tries()
    for now in (0.0, 1.0, 3.0):
        judge.note_bad(tries, now)
    for _ in range(OTHERS_MIN):
        assert judge.verdict(tries, 3.0) == "probe"
        judge.note(None, "good", 3.0)
    assert judge.verdict(tries, 3.0) == "fail"


def test_probes_that_are_not_served_either_clear_the_request() -> None:
    judge, tries = Judge(), Tries()
    for now in (0.0, 1.0, 3.0):
        judge.note_bad(tries, now)
    judge.note(None, "bad", 3.0)
    assert judge.verdict(tries, 3.0) == "wait"


def test_an_endpoint_that_began_to_restart_is_not_taken_for_what_it_was_a_moment_ago() -> None:
    judge, tries = Judge(), Tries()
    others(judge, "good", 2_000, 59.0)
    for now in (60.0, 61.0, 63.0):
        judge.note_bad(tries, now)
        others(judge, "bad", 10, now)
        others(judge, "good", 10, now)
    assert judge.verdict(tries, 63.0) == "wait"


def test_tries_of_an_outage_do_not_count_after_it() -> None:
    judge, tries = Judge(), Tries()
    for now in range(0, 3_000, 30):
        judge.note(None, "bad", now)
        judge.note_bad(tries, now)
    others(judge, "good", 1_000, 3_090.0)
    judge.note_bad(tries, 3_100.0)
    assert judge.verdict(tries, 3_100.0) == "wait"


def test_one_that_only_fails_late_is_blamed_for_that_alone() -> None:
    """It met one bad answer, long ago; what it meets now is as improbable as for any other."""
    judge, tries = Judge(), Tries()
    judge.note_bad(tries, 0.0)
    for now in (1_000.0, 1_001.0):
        others(judge, "good", 30, now)
        judge.note_bad(tries, now)
    assert judge.verdict(tries, 1_001.0) == "fail"


def test_bad_requests_do_not_clear_each_other_for_good() -> None:
    judge, both = Judge(), [Tries(), Tries()]
    found = {}
    for now in (0.0, 1.0, 3.0, 7.0, 15.0):
        others(judge, "good", 40, now)
        for name, tries in enumerate(both):
            judge.note_bad(tries, now)
            if judge.verdict(tries, now) == "fail":
                found.setdefault(name, tries.num_bad)
    assert set(found) == {0, 1}
    assert max(found.values()) <= 4


@given(st.lists(st.floats(0, 30), min_size=3, max_size=60), st.integers(0, 10))
def test_no_request_fails_while_others_are_not_served(pauses: list[float], num_others: int) -> None:
    judge, tries, now = Judge(), Tries(), 0.0
    for pause in pauses:
        now += pause
        others(judge, "bad", num_others, now)
        judge.note_bad(tries, now)
        judge.note(None, "bad", now)
        assert judge.verdict(tries, now) == "wait"


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(KINDS), st.floats(0, 20)), max_size=120))
def test_what_others_got_is_counted_exactly(events: list[tuple[int, Kind, float]]) -> None:
    """Against a plain list of everything: others' first tries and probes within the window, by whole seconds."""
    judge, of, now = Judge(), {key: Tries() for key in range(4)}, 0.0
    log: list[tuple[int, int, Kind]] = []  # key (4: a probe), second, kind
    for key, kind, pause in events:
        now += pause
        tries = of.get(key)
        if tries is None or tries.num < FRESH_TRIES:
            log.append((key, int(now), kind))
        answer(judge, tries, kind, now)
        for mine, its in of.items():
            counts = judge._others(its, now - retry.WINDOW_S, now)
            within = [seen for who, second, seen in log if who != mine and second >= int(now - retry.WINDOW_S)]
            assert (counts.good, counts.bad, counts.throttled) == tuple(within.count(one) for one in KINDS)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KINDS), st.floats(0, 40)), max_size=120))
def test_it_never_fails_early_or_by_a_likely_chance(events: list[tuple[int, Kind, float]]) -> None:
    judge, of, now = Judge(), [Tries() for _ in range(4)], 0.0
    for key, kind, pause in events:
        now += pause
        answer(judge, of[key], kind, now)
        if kind == "bad" and judge.verdict(of[key], now) == "fail":
            assert of[key].num_bad >= TRIES_MIN
            assert prod(share or 0.0 for share in of[key].shares) < CHANCE_MAX
        if kind == "throttled" and judge.throttle_verdict(of[key], now) == "fail":
            since = of[key].throttled_since
            assert since is not None
            assert now - since >= retry.THROTTLE_S


def test_a_429_is_waited_out_for_ten_minutes_while_others_are_served() -> None:
    judge, tries = Judge(), Tries()
    for now in range(0, 600, 30):
        others(judge, "good", 20, now)
        judge.note_throttled(tries, now)
        assert judge.throttle_verdict(tries, now) == "wait"
    others(judge, "good", 20, 600.0)
    judge.note_throttled(tries, 600.0)
    assert judge.throttle_verdict(tries, 600.0) == "fail"


def test_the_ten_minutes_begin_anew_with_every_other_answer() -> None:
    judge, tries = Judge(), Tries()
    judge.note_throttled(tries, 0.0)
    judge.note_bad(tries, 500.0)
    judge.note_throttled(tries, 601.0)
    others(judge, "good", 50, 601.0)
    assert judge.throttle_verdict(tries, 601.0) == "wait"


@pytest.mark.parametrize("num_throttled", [5, 50])
def test_a_429_that_others_meet_too_is_nobodys_fault(num_throttled: int) -> None:
    judge, tries = Judge(), Tries()
    judge.note_throttled(tries, 0.0)
    others(judge, "good", 50, 4_000.0)
    others(judge, "throttled", num_throttled, 4_000.0)
    judge.note_throttled(tries, 4_000.0)
    assert judge.throttle_verdict(tries, 4_000.0) == "wait"


def test_two_that_always_meet_429_do_not_clear_each_other() -> None:
    judge, both = Judge(), [Tries(), Tries()]
    for now in (0.0, 300.0, 601.0):
        others(judge, "good", 25, now)
        for tries in both:
            judge.note_throttled(tries, now)
    assert [judge.throttle_verdict(tries, 601.0) for tries in both] == ["fail", "fail"]
