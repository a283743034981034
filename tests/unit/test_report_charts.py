"""The bars, axes and samples of the report."""

import json
import random
from itertools import pairwise

import msgspec
import pytest

from batchfile.client.report.charts import Chart, nice, rate_charts, short, time_chart, token_chart
from batchfile.client.report.page import percent
from batchfile.client.report.rows import RowSample, TokenCounts, gather
from batchfile.types import Choice, Completion, Failure, Usage
from tests.helpers.ledger import REQUEST_BOUNDS_S, Profile, ShardEnd, profile_of, spread, summed
from tests.helpers.lines import encode_result


def profile(**known: object) -> Profile:
    usual: dict[str, object] = {"started_at": 0.0, "step_s": 2.0, "requests": (4, 0, 8), "output_tokens": (0, 0, 0)}
    return Profile(**usual | {"request_s": ()} | known)  # type: ignore[arg-type]


def counts(*tokens: int) -> TokenCounts:
    made = TokenCounts()
    for one in tokens:
        made.add(one)
    return made


def test_every_request_is_in_one_bar_and_every_bar_is_in_the_picture() -> None:
    rng = random.Random(4)
    tokens = [int(rng.lognormvariate(5, 1.2)) for _ in range(5_000)]
    chart = token_chart("t", counts(*tokens))
    assert chart is not None
    assert sum(int(bar.tip.rpartition(" ")[2].replace(",", "")) for bar in chart.bars) == 5_000
    for bar in chart.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= chart.width + 46
        assert bar.y >= 12
        assert bar.y + bar.height == pytest.approx(140, abs=0.02)
    assert "median" in chart.note
    assert "(in the last bar)" in chart.note


@pytest.mark.parametrize("tokens", [(0,), (1,), (7, 7), (3, 1_000_000), tuple(range(100))])
def test_any_number_of_tokens_has_a_chart(tokens: tuple[int, ...]) -> None:
    chart = token_chart("t", counts(*tokens))
    assert chart is not None
    assert chart.bars
    assert token_chart("t", counts()) is None


def test_tokens_are_kept_to_three_digits_so_that_memory_is_bounded() -> None:
    seen = counts(*range(0, 200_000, 3))
    assert len(seen.num) < 4_000
    assert seen.quantile(0.5) == pytest.approx(100_000, rel=0.01)


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25"), (950, "950"), (1_200, "1.2k"), (3e6, "3M"), (0, "0")])
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_only_all_are_100_percent() -> None:
    assert [percent(num, 100_000) for num in (100_000, 99_999, 38_500, 0)] == ["100 %", "99.99 %", "38.5 %", "0 %"]


def test_ticks_are_round() -> None:
    assert [nice(value) for value in (0, 0.03, 1, 1.1, 4, 7, 120)] == [1, 0.05, 1, 2, 5, 10, 200]


def test_rates_are_per_second_and_a_chart_of_unknown_tokens_is_left_out() -> None:
    (chart,) = rate_charts(profile())
    assert [bar.tip for bar in chart.bars] == ["0 s: 2 requests/s", "4.0 s: 4 requests/s"]
    assert chart.note == "average 2 · peak 4 · in steps of 2.0 s"
    assert len(rate_charts(profile(output_tokens=(1, 0, 0)))) == 2
    assert rate_charts(None) == []


def test_times_are_in_their_buckets() -> None:
    assert time_chart(None) is time_chart(profile()) is None
    seen = spread([0.3, 0.4, 0.5, 4.0, 5_000.0, 0.0])
    assert sum(seen) == 5, "what no engine had does not count"
    assert summed(seen, ()) == summed((), seen) == seen
    chart = time_chart(profile(request_s=seen))
    assert isinstance(chart, Chart)
    assert [bar.tip for bar in chart.bars] == ["≤ 0.5 s: 3", "≤ 5 s: 1", "> 1000 s: 1"]
    assert chart.note.startswith("half took ≤ 0.5 s")
    assert len(seen) == len(REQUEST_BOUNDS_S) + 1


def test_labels_of_a_narrow_chart_do_not_overlap() -> None:
    chart = time_chart(profile(request_s=(1,) * (len(REQUEST_BOUNDS_S) + 1)))
    assert chart is not None
    for charted in (chart, token_chart("t", counts(*range(3_000)))):
        assert charted is not None
        for (left, text), (right, other) in pairwise(charted.across):
            assert right - left > 2.5 * (len(text) + len(other)), "half of each, at 5 px for a character"


def test_a_profile_counts_each_shard_where_it_was_done_and_has_no_more_steps_than_shards() -> None:
    assert profile_of(10.0, []) is profile_of(10.0, [ShardEnd(11.0, 0, 0, ())]) is None
    ends = [ShardEnd(12.0, 3, 30, (1, 2)), ShardEnd(20.0, 5, 50, (0, 5)), ShardEnd(9.0, 1, 1, ())]
    made = profile_of(10.0, ends)
    assert made is not None
    assert (len(made.requests), sum(made.requests), sum(made.output_tokens)) == (3, 9, 81)
    assert (made.requests[0], made.requests[-1]) == (4, 5), "a clock that was set back counts in the first step"
    assert made.request_s == (1, 7)
    many = profile_of(0.0, [ShardEnd(float(n), 1, 1, ()) for n in range(1, 5_000)])
    assert many is not None
    assert len(many.requests) == 120


def test_a_sample_is_evenly_spread_and_bounded_whatever_the_rows_are() -> None:
    sample = RowSample(10_000)
    for number in range(5_000):
        if sample.takes_next():
            sample.add(number, b"x" * (number % 50))
    numbers = [number for number, _ in sample.rows]
    assert 100 < sum(len(row) for _, row in sample.rows) <= 10_000
    assert {after - before for before, after in pairwise(numbers)} == {numbers[1]}
    assert numbers[-1] > 4_900


def test_what_failed_is_kept_among_many_that_were_canceled() -> None:
    bad = Failure(type="model_error", message="x" * 100)
    ended = Failure(type="canceled", message="x" * 100, status="canceled")
    found = gather(encode_result(f"r{n}", bad if n % 1_000 == 0 else ended, "m") for n in range(20_000))
    assert len(found.failed.rows) == 20
    assert 500 < len(found.ended_early.rows) < 3_000
    assert found.ended_early.num_offered == 19_980


@pytest.mark.slow
def test_rows_keep_what_failed_when_what_succeeded_is_sampled() -> None:
    answer = Completion(choices=(Choice("<b>\u2028" + "long " * 1_000, "end_turn"),), usage=Usage(output_tokens=9))
    bad = Failure(type="invalid_request_error", message="no")
    lines = (encode_result(f"r{n}", bad if n % 1_000 == 0 else answer, "m") for n in range(20_000))
    found = gather(lines)
    assert found.num == 20_000
    assert found.models == {"m": 19_980}
    rows = [json.loads(row) for row in found.rows]
    assert [row[1] for row in rows if row[2] == "rejected"] == [f"r{n}" for n in range(0, 20_000, 1_000)]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert 1_000 < len(rows) < 5_000
    assert sum(map(len, found.rows)) < 12 * 1024 * 1024
    assert all(b"<" not in row for row in found.rows)
    assert rows[1][7].startswith("<b>\u2028long")
    assert rows[1][8] == len("<b>\u2028" + "long " * 1_000) - 2_000
    assert msgspec.json.decode(found.rows[0])[4:7] == [None, None, None]
