"""Fixed schedules with dropped files and webhooks, the same every time."""

import pytest

from tests.sim.simulation import run


@pytest.mark.usefixtures("simulated")
def test_dropped_files_keep_every_promise() -> None:
    for seed in range(100):
        outcome = run(seed, kind="inbox")
        assert outcome.error is None, f"seed {seed}: {outcome.error!r}"
