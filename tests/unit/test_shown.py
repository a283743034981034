"""What the line of progress says."""

from batchfile.cli.shown import line
from batchfile.local.progress import Meter
from batchfile.runner.tally import Tally
from batchfile.words import Counts, Usage


def test_a_run_whose_endpoint_is_down_says_that_it_waits() -> None:
    meter = Meter(10, Counts(), Usage(), 0.0)
    tally = Tally(succeeded=3, engine_ready_at=1.0)
    assert line(meter.look(tally, 100.0, 12.0)) == (
        "the endpoint has been down for 12 s, waiting for it; 3/10 requests are done"
    )
    assert line(meter.look(tally, 101.0)).startswith("3/10 requests (30 %)")
