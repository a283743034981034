"""The command line itself: its help, its reference, its exit codes. What the commands do is in tests/service."""

import errno
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batchfile.cli.exits import Exit, exit_of, explain
from batchfile.cli.group import COMMANDS, LazyGroup, root
from batchfile.cli.reference import reference
from batchfile.cli.shown import duration, line
from batchfile.errors import BatchfileError, InvalidFile, OutputTaken, SettingsError, StoreUnavailable
from batchfile.local.progress import Meter, Snapshot
from batchfile.runner.tally import Tally
from batchfile.words import Counts, Usage

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_is_current() -> None:
    assert DOCS.read_text() == reference(), "run: python -m batchfile.cli.reference > docs/cli.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_line_in_the_group_is_the_first_of_its_own_help(name: str) -> None:
    assert isinstance(root, LazyGroup)
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.name == name
    if name == "run":
        return  # says more than one line can
    assert (command.help or "").strip()


def test_every_exit_code_is_documented_in_the_help_of_run() -> None:
    text = CliRunner().invoke(root, ["run", "--help"]).output
    for code in Exit:
        assert f"  {code.value:<4}" in text


def test_a_misspelt_command_is_told_the_right_one() -> None:
    done = CliRunner().invoke(root, ["statsu"])
    assert done.exit_code == Exit.USAGE
    assert "Did you mean status?" in done.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_completion_script(shell: str) -> None:
    done = CliRunner().invoke(root, ["completion", shell])
    assert done.exit_code == 0
    assert "_BATCHFILE_COMPLETE" in done.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidFile("x"), 4),
        (OutputTaken("x"), 7),
        (SettingsError("x"), 2),
        (StoreUnavailable("x"), 1),
        (BatchfileError("x"), 1),
        (ValueError("x"), 1),
    ],
)
def test_what_was_raised_decides_the_exit_code(error: Exception, code: int) -> None:
    assert exit_of(error) == code


def test_a_full_disk_is_explained_and_a_bug_is_not() -> None:
    assert "free some space" in (explain(OSError(errno.ENOSPC, "No space left")) or "")
    assert explain(KeyError("x")) is None


def test_the_eta_is_the_tokens_left_at_the_rate_of_now() -> None:
    meter = Meter(100, Counts(succeeded=20), Usage(input_tokens=200, output_tokens=400), started_at=0.0)
    tally = Tally(succeeded=10, failed=2, input_tokens=100, output_tokens=200, cached_tokens=150)
    snap = meter.look(tally, now=10.0)
    assert (snap.done, snap.failed, snap.input_rate, snap.output_rate) == (32, 2, 10.0, 20.0)
    assert snap.cache_hit_rate == 0.5
    assert snap.eta_s == 68 * 20 / 20.0


def test_loading_the_engine_does_not_count_as_slow() -> None:
    meter = Meter(100, Counts(), Usage(), started_at=0.0)
    meter.look(Tally(), now=30.0)
    tally = Tally(succeeded=10, output_tokens=100, engine_ready_at=60.0)
    assert meter.look(tally, now=70.0).output_rate == 10.0


def test_progress_names_everything_that_is_asked_for() -> None:
    snap = Snapshot(
        total=2000,
        done=1000,
        failed=3,
        input_tokens=0,
        output_tokens=0,
        input_rate=1234.5,
        output_rate=99.9,
        cache_hit_rate=0.61,
        elapsed_s=75,
        eta_s=7300,
    )
    assert line(snap) == (
        "1,000/2,000 requests (50 %), 3 failed, 1,234 tok/s in, 100 tok/s out, 61 % cached, 1 min 15 s, ETA 2 h 01 min"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59 s"), (61, "1 min 01 s"), (3661, "1 h 01 min")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
