"""What the first signal says, by what is true at that moment."""

import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from batchfile.cli.stopping import RunSignals, _first_words
from batchfile.local.progress import Snapshot

SEEN = Snapshot(
    total=100,
    done=39,
    failed=0,
    input_tokens=0,
    output_tokens=0,
    input_rate=0,
    output_rate=0,
    cache_hit_rate=0,
    elapsed_s=60,
    eta_s=None,
    in_flight_s=20,
)


def runner(**more: Any) -> Any:
    return SimpleNamespace(**{"num_in_flight": 61, "is_assembling": False, "down_s": 0.0} | more)


@pytest.mark.parametrize(
    ("more", "seen", "grace_s", "words"),
    [
        ({}, SEEN, 30, "finishing 61 requests takes about 20 s; giving up after 30 s; press X to stop now"),
        ({}, replace(SEEN, in_flight_s=None), 30, "finishing 61 requests, for 30 s at most; press X to stop now"),
        ({}, None, 2.5, "finishing 61 requests, for 2.5 s at most; press X to stop now"),
        (
            {},
            replace(SEEN, in_flight_s=130),
            30,
            "finishing 61 requests would take about 2 min; requests that are not finished in 30 s (--grace) run again "
            "with the same command; press X to stop now",
        ),
        ({"num_in_flight": 0}, SEEN, 30, "nothing is in flight"),
        ({"down_s": 12.0}, SEEN, 30, "the endpoint is unavailable, so 61 requests in flight cannot finish"),
        (
            {"is_assembling": True, "num_in_flight": 0},
            SEEN,
            30,
            "every request is done; the next run of this command writes the results",
        ),
    ],
)
def test_the_first_signal_says_what_is_true(
    more: dict[str, Any], seen: Snapshot | None, grace_s: float, words: str
) -> None:
    assert _first_words(runner(**more), seen, grace_s, "press X") == f"stopping: {words}"


def test_a_second_signal_in_the_middle_of_the_first_one_stops_at_once() -> None:
    called: list[str] = []

    def say(text: str) -> None:
        called.append(text)
        if text.startswith("stopping: "):
            signals.handle(signal.SIGINT, None)  # as Python does: between two instructions of the running handler

    ours = runner(is_building=False, stop=lambda: called.append("stop"), stop_now=lambda: called.append("stop_now"))
    signals = RunSignals(say=say, on_end=lambda: None, grace_s=30, runner=ours)
    signals.handle(signal.SIGINT, None)
    assert called[1:] == ["stopping now", "stop_now", "stop"]
    assert signals.num == 2
