"""Latency histograms: every value is counted once, and quantiles are of the last thousand."""

from pathlib import Path

import yaml

from tests.helpers.runner import CHECKPOINT_BOUNDS_S, LAST, Histogram


def test_a_value_counts_in_the_first_bucket_that_reaches_it() -> None:
    seen = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        seen.add(value)
    assert seen.counts == [2, 2, 1]
    assert seen.sum == 104.0


def test_quantiles_are_of_the_last_thousand_values() -> None:
    seen = Histogram((1.0,))
    assert seen.quantile(0.5) is None
    for value in (*[1_000.0] * 50, *range(1, LAST + 1)):
        seen.add(float(value))
    assert seen.quantile(0.5) == LAST / 2
    assert seen.quantile(0.95) == LAST * 0.95
    assert seen.quantile(1.0) == LAST


def test_the_alert_on_slow_checkpoints_asks_for_the_edge_of_a_bucket() -> None:
    """Between two edges a quantile is a guess."""
    rules = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "monitoring" / "alerts.yaml").read_text())
    (rule,) = (rule for rule in rules["groups"][0]["rules"] if rule["alert"] == "CheckpointsSlow")
    assert float(rule["expr"].rpartition(">")[2]) in CHECKPOINT_BOUNDS_S
