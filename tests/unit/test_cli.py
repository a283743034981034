"""The command line itself: its help, its reference, its exit codes. What the commands do is in tests/service."""

import errno
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
from click.testing import CliRunner

from batchfile.cli.estimate import _time_lines
from batchfile.cli.exits import Exit, exit_of, message_of
from batchfile.cli.numbers import Finite, Whole
from batchfile.client.estimate import PoolTime
from batchfile.errors import BatchfileError, InvalidFile, OutputTaken, SettingsError, StoreFull, StoreUnavailable
from batchfile.local import engines
from batchfile.local.api import run
from batchfile.local.display import duration
from docs.pages.commands import reference
from tests.helpers.cli import COMMANDS, LazyGroup, group, main, root
from tests.helpers.engine import EngineMaker
from tests.helpers.local import Dtype, RunArguments, RunOptions, outputs
from tests.helpers.settings import load_settings

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.mark.slow
def test_the_reference_is_current_and_has_the_short_option_of_help_too() -> None:
    text = reference()
    assert DOCS.read_text() == text, "run: python -m docs.pages"
    assert text.count("-h, --help ") == text.count("--help ") > len(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_line_in_the_group_is_the_first_of_its_own_help(name: str) -> None:
    assert isinstance(root, LazyGroup)
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.name == name
    if name == "run":
        return  # says more than one line can
    assert (command.help or "").strip()


@pytest.mark.parametrize("name", ["", *sorted(COMMANDS.keys() - {"serve", "worker"}), "config show", "keys new"])
def test_the_help_of_every_command_ends_with_examples(name: str) -> None:
    text = CliRunner().invoke(root, [*name.split(), "--help"]).output
    examples = text.partition("\n  Examples:\n")[2].splitlines()
    assert 2 <= len(examples) <= 3
    assert all("batchfile" in example for example in examples)


def test_every_exit_code_is_documented_in_the_help_of_run() -> None:
    text = CliRunner().invoke(root, ["run", "--help"]).output
    for code in Exit:
        assert f"  {code.value:<4}" in text


def test_a_misspelt_command_is_told_the_right_one() -> None:
    for misspelt, right in (("submti", "submit"), ("statsu", "stats or status")):
        done = CliRunner().invoke(root, [misspelt])
        assert done.exit_code == Exit.USAGE
        assert f"Did you mean {right}?" in done.output


def test_the_old_name_of_rerun_is_understood_and_shown_nowhere() -> None:
    done = CliRunner().invoke(root, ["retry", "--help"], prog_name="batchfile")
    assert done.output.startswith("Usage: batchfile rerun [OPTIONS] BATCH")
    assert "retry" not in CliRunner().invoke(root, ["--help"]).output + DOCS.read_text().replace("retry_of", "")


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
    assert "free some space" in (message_of(OSError(errno.ENOSPC, "No space left")) or "")
    assert "free some space" in (message_of(StoreFull("reported by another process")) or "")
    assert message_of(KeyError("x")) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59 s"), (61, "1 min 01 s"), (3661, "1 h 01 min")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_stray_end_of_file_is_an_error_like_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(shell: str) -> None:
        raise EOFError("the stream broke off")

    monkeypatch.setattr(sys, "argv", ["batchfile", "completion", "bash"])
    monkeypatch.setattr(group, "get_completion_class", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == Exit.UNEXPECTED
    assert "unexpected error: EOFError('the stream broke off')" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    near, far = os.pipe()
    os.close(near)
    command = [sys.executable, "-m", "batchfile", "completion", "bash"]
    with open(far, "wb") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=1200)
    assert (done.returncode, done.stderr) == (Exit.UNEXPECTED, b"")


@pytest.mark.parametrize("name", ["submit", "rerun"])
def test_a_command_that_makes_a_batch_each_time_does_not_advise_to_call_it_again(name: str) -> None:
    text = CliRunner().invoke(root, [name, "--help"]).output
    assert "the batch keeps running: `batchfile watch ID`" in text
    assert "same command" not in text


@pytest.mark.parametrize("name", ["submit", "rerun"])
def test_a_command_without_force_does_not_advise_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "out.jsonl").write_text('{"prompt": "x"}')
    out = str(tmp_path / "out.jsonl")
    with pytest.raises(OutputTaken) as refused:
        CliRunner().invoke(root, [name, out, "-o", out], catch_exceptions=False)
    assert str(refused.value).endswith("out.jsonl exists; choose another output")
    with pytest.raises(OutputTaken, match="add --force"):
        CliRunner().invoke(root, ["results", "x", "-o", str(tmp_path / "out.jsonl")], catch_exceptions=False)


def test_failed_lines_go_to_stdout_and_to_no_other_output(tmp_path: Path) -> None:
    done = CliRunner().invoke(root, ["results", "x", "--errors", "-o", str(tmp_path / "out.jsonl")])
    assert done.exit_code == Exit.USAGE
    assert "--errors writes to stdout" in done.output


@pytest.mark.parametrize("tenant", ["Acme", "A B/..", ""])
@pytest.mark.parametrize("command", [["submit", "in.jsonl"], ["ls"], ["status", "batch_a"]])
def test_a_tenant_that_no_key_can_have_is_wrong_usage(command: list[str], tenant: str) -> None:
    done = CliRunner().invoke(root, [*command, "--tenant", tenant])
    assert done.exit_code == Exit.USAGE
    assert "is not a valid tenant name" in done.output


def test_an_estimate_is_nobodys_batch() -> None:
    assert "--tenant" not in CliRunner().invoke(root, ["estimate", "--help"]).output


@pytest.mark.parametrize(
    ("num", "text"), [(1, "1 runner of mistral is running"), (2, "2 runners of mistral are running")]
)
def test_an_estimate_says_how_many_runners_are_there(num: int, text: str) -> None:
    time = PoolTime(
        pool="mistral", num_requests=1, num_runners=num, waiting=0, requests_per_s=None, output_tokens_each=None
    )
    assert text in next(_time_lines([time]))


def test_the_key_of_a_service_of_ours_is_sent_to_no_other_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str | None] = []
    monkeypatch.setenv("BATCHFILE_API_KEY", "bf_ours")
    for key in ("", "sk-theirs"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        options = RunOptions(engine="http", model="m", base_url="https://api.example/v1")
        sent.append(engines.choose_engine(load_settings(), options).arguments["api_key"])
    assert sent == [None, "sk-theirs"]


def test_the_data_type_of_a_run_is_vllms_argument_and_no_other_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    maker = engines.engine_factory("echo", model="m")

    def factory(kind: str, engine_args: dict[str, Any], **_: Any) -> EngineMaker:
        given.append(engine_args)
        return maker

    monkeypatch.setattr(engines, "engine_factory", factory)
    monkeypatch.setattr(engines, "check_vllm", lambda model, revision: None)
    dtypes: tuple[Dtype | None, ...] = (None, "float32")
    for dtype in dtypes:
        engines.choose_engine(load_settings(), RunOptions(engine="vllm", model="m", dtype=dtype))
    assert given == [{}, {"dtype": "float32"}]
    with pytest.raises(SettingsError, match="--dtype is for --engine vllm, not for echo"):
        engines.choose_engine(load_settings(), RunOptions(engine="echo", dtype="auto"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["sql"], "'sql' must be NAME=PATH"),
        (["=/x"], "'=/x' must be NAME=PATH"),
        (["a=/x", "a=/y"], "'a' is given twice"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_wrong_usage(tmp_path: Path, given: list[str], words: str) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    options = [f"--lora={one}" for one in given]
    command = ["run", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", "m", *options]
    done = CliRunner().invoke(root, command)
    assert done.exit_code == Exit.USAGE
    assert words in " ".join(done.output.split())


def test_the_function_takes_the_options_of_the_command() -> None:
    explicit = {"input", "output", "store"}
    kinds = {name: kind for name, kind in get_type_hints(RunOptions).items() if name not in explicit}
    assert get_type_hints(RunArguments) == kinds
    assert {*inspect.signature(run).parameters} == explicit | {"progress", "options"}


def test_a_signal_while_the_files_are_written_interrupts_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id":"a","params":{"messages":[{"role":"user","content":"hi"}]}}\n')
    monkeypatch.chdir(tmp_path)
    command = ["run", "--engine", "echo", "in.jsonl", "-o", "out.jsonl"]
    export = outputs.export

    def interrupted(*given: Any, **more: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return export(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "export", interrupted)
        stopped = CliRunner().invoke(root, command)
    assert stopped.exit_code == Exit.INTERRUPTED
    assert "stopping:" not in stopped.output
    assert not (tmp_path / "out.jsonl").exists()
    assert CliRunner().invoke(root, command).exit_code == Exit.OK
    assert (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    "arguments",
    [["run", "in", "-o", "out", "--grace"], ["run", "in", "-o", "out", "--temperature"]],
    ids=lambda x: x[-1],
)
def test_a_number_that_is_none_is_refused(arguments: list[str], value: str) -> None:
    said = CliRunner().invoke(root, [*arguments, value])
    assert said.exit_code == Exit.USAGE
    assert "Invalid value" in said.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run in -o out --limit 0", "'--limit': '0' is not a whole number of at least 1."),
        ("run in -o out --limit many", "'--limit': 'many' is not a whole number of at least 1."),
        ("run in -o out --temperature 3", "'--temperature': '3' is not a finite number from 0 to 2."),
        ("run in -o out --grace nan", "'--grace': 'nan' is not a finite number of at least 0."),
        ("submit in --priority 12", "'--priority': '12' is not a whole number from 0 to 9."),
        ("ls -n -1", "'-n' / '--limit': '-1' is not a whole number of at least 1."),
    ],
)
def test_a_number_out_of_range_is_told_which_would_do(words: str, message: str) -> None:
    done = CliRunner().invoke(root, words.split())
    assert done.exit_code == Exit.USAGE
    assert message in done.output


def test_every_option_that_is_a_number_is_in_our_words() -> None:
    bare = (click.types.IntParamType, click.types.FloatParamType)
    assert [str(one) for one in _parameters(root) if isinstance(one.type, bare)] == [
        str(one) for one in _parameters(root) if isinstance(one.type, Whole | Finite)
    ]


def _parameters(command: click.Command) -> list[click.Parameter]:
    found = list(command.params)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            found += _parameters(inner)
    return found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("cancel b --json", "unknown option --json. `batchfile cancel --help` lists the options."),
        ("ls --stor x", "unknown option --stor. Did you mean --store?"),
        ("run in.jsonl --ouput o", "unknown option --ouput. Did you mean --output?"),
        ("run in.jsonl --out o", "unknown option --out. Did you mean --output?"),
        ("ls --nothing", "unknown option --nothing. `batchfile ls --help` lists the options."),
    ],
)
def test_an_unknown_option_is_told_another_only_where_it_is_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["batchfile", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, said in capsys.readouterr().err) == (Exit.USAGE, True)
