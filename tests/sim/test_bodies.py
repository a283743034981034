"""No two clients send the same bytes: the model and the store tell their bodies apart by them."""

from random import Random
from typing import get_args

import pytest

from tests.sim import bodies

POOLS = ("one", "two")


@pytest.mark.parametrize("way", get_args(bodies.Way))
def test_bodies_of_two_clients_have_no_line_in_common(way: bodies.Way) -> None:
    for seed in range(50):
        drawn = [bodies.draw(Random(seed), key, POOLS, num_lines=4, way=way, odd=0.1) for key in ("k0", "k1")]
        rows = [line.raw for sent in drawn for line in sent.lines]
        assert len(set(rows)) == len(rows)
