"""What the line of progress says."""

import io
import re
import sys
import time
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from batchfile.local.display import Progress, about, line, picture, say
from batchfile.local.progress import Meter, Snapshot
from batchfile.types import Counts, Usage
from tests.helpers.runner import RunnerStats

SNAP = Snapshot(
    total=2000,
    done=1000,
    failed=3,
    input_tokens=181_200,
    output_tokens=23_456,
    input_rate=1234.5,
    output_rate=9.9,
    cache_hit_rate=0.61,
    elapsed_s=75,
    eta_s=7300,
    num_running=61,
    num_waiting=16,
    quiet_s=12,
)


def test_a_line_without_news_is_not_repeated_while_results_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    progress, done = Progress(lambda: None, is_json=False), replace(SNAP, done=2000, num_files=2, num_files_done=1)
    for snap in (SNAP, SNAP, done, replace(done, elapsed_s=90.0), replace(done, num_files_done=2)):
        progress.show(snap)
    assert [found.split(",")[0] for found in capsys.readouterr().err.splitlines()] == [
        "1",
        "1",
        "2",
        "2",
    ], "requests that are done, in thousands"


def test_a_run_whose_endpoint_is_down_says_that_it_waits() -> None:
    meter = Meter(10, Counts(), Usage(), 0.0)
    runner_stats = RunnerStats(succeeded=3, engine_ready_at=1.0)
    assert line(meter.look(runner_stats, 100.0, 12.0)) == (
        "waiting for the endpoint, unavailable for 12 s; 3/10 requests are done"
    )
    assert line(meter.look(runner_stats, 101.0)).startswith("3/10 requests (30 %)")


def test_progress_names_everything_that_is_asked_for() -> None:
    assert line(SNAP) == (
        "1,000/2,000 requests (50 %), 3 failed, 61 running, 16 waiting, 181,200 tokens in (1,234 tok/s), "
        "23,456 tokens out (9.9 tok/s), 61 % cached, in one step for 12 s, 1 min 15 s, about 2 h 02 min left"
    )


def test_of_several_files_it_says_how_many_are_done() -> None:
    snap = replace(SNAP, num_files=5, num_files_done=2)
    assert line(snap).startswith("1,000/2,000 requests (50 %), 2/5 files, 3 failed, ")


def test_rejected_requests_and_a_known_cost_are_told_apart_from_the_rest() -> None:
    assert ", 2 rejected, 3 failed, 61 running" in line(replace(SNAP, rejected=2))
    assert "61 % cached, $1.23 so far, in one step" in line(replace(SNAP, cost_usd=1.2345))
    assert "61 % cached, $0.0034 so far, in one step" in line(replace(SNAP, cost_usd=0.0034))


def test_answers_without_usage_are_told_next_to_the_tokens() -> None:
    runner_stats = RunnerStats(engine_ready_at=0.0, succeeded=2, input_tokens=80, output_tokens=30, usage_unknown=1)
    snap = Meter(2, Counts(), Usage(), 0.0).look(runner_stats, 5.0)
    assert "80 tokens in, 30 tokens out, usage unknown for 1 result" in line(snap)


def test_nothing_is_said_of_what_is_not_known_or_zero() -> None:
    snap = replace(SNAP, done=0, failed=0, input_tokens=0, output_tokens=0, input_rate=0, output_rate=0)
    snap = replace(snap, cache_hit_rate=0, eta_s=None)
    assert line(snap) == "0/2,000 requests (0 %), 61 running, 16 waiting, in one step for 12 s, 1 min 15 s"


def test_while_the_model_loads_the_time_and_what_is_done_are_shown() -> None:
    snap = Meter(100, Counts(succeeded=7), Usage(), 0.0).look(RunnerStats(), 34.0)
    assert line(snap) == "loading the model, 34 s; 7/100 requests are done"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2, "less than 5 s"),
        (38, "about 40 s"),
        (58, "about 1 min"),
        (700, "about 12 min"),
        (3580, "about 1 h 00 min"),
        (7300, "about 2 h 02 min"),
    ],
)
def test_an_estimate_has_no_false_precision(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_a_message_during_a_live_display_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), write_through=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Live(Text("loading"), console=Console(file=terminal, force_terminal=True), auto_refresh=False):
        say("a message")
    sent = terminal.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "a message" in [re.sub(r".*\r|\x1b\[\??\d*[A-Za-z]", "", row) for row in sent.split("\n")]


def test_the_percentage_is_that_of_the_bar() -> None:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(picture(replace(SNAP, share=0.79)))
    assert " 79 %, 1,000/2,000 requests, 1 min 15 s, about 2 h 02 min left" in captured.get()


class FakeCell:
    """As IPython in the kernel of a notebook: an output, and what replaced it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = self
        self.outputs: list[list[dict[str, str]]] = []
        ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
        ipython.get_ipython = lambda: self  # type: ignore[attr-defined]
        display.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, shown: dict[str, str], *, raw: bool, display_id: bool) -> "FakeCell":
        assert raw
        assert display_id
        self.outputs.append([shown])
        return self

    def update(self, shown: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.outputs[-1].append(shown)


def test_a_notebook_has_one_output_that_is_replaced_and_messages_that_are_not_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = FakeCell(monkeypatch)
    over = replace(SNAP, done=2000, num_files_done=1, eta_s=0.0, failed=0, quiet_s=0.0, num_running=0, num_waiting=0)
    left: list[Any] = [None, replace(SNAP, is_loading=True), SNAP]
    with Progress(lambda: left.pop(0) if left else over, is_json=False):
        say("a message")
        while left:
            time.sleep(0.01)
    (shown,) = cell.outputs
    assert [one["text/plain"] for one in shown] == [
        "loading the model, 1 min 15 s; 1,000/2,000 requests are done",
        line(SNAP),
        line(over),
    ]
    assert shown[1]["text/html"].startswith('<progress value="0.500" style="width: 30ch"></progress> 50 %, 1,000/2,000')
    assert "writing" not in shown[2]["text/html"], "the last picture stays in the notebook"
    assert capsys.readouterr() == ("a message\n", "")
