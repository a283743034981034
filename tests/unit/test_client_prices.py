"""Hosted prices are the package's own."""

import pytest

from batchfile.client.estimate import hosted_price
from batchfile.errors import SettingsError


def test_a_batch_costs_the_batch_price_where_one_is_known() -> None:
    found = hosted_price("anthropic:claude-haiku-4-5", 1_000_000, 1_000_000)
    assert (found.provider, found.is_batch) == ("anthropic", True)
    assert 0 < found.input_usd < found.max_output_usd


def test_tokens_cost_in_proportion() -> None:
    one, ten = (hosted_price("gpt-4o-mini", num, 0) for num in (1_000_000, 10_000_000))
    assert ten.input_usd == pytest.approx(10 * one.input_usd)
    assert ten.max_output_usd == 0


def test_an_unknown_model_is_said() -> None:
    with pytest.raises(SettingsError, match="--against nonesuch: genai-prices has no price"):
        hosted_price("nonesuch", 1, 1)
