"""The command group with a one-line summary of each command, so that `batchfile --help` loads no command."""

import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from typing import NoReturn

import click
from click.shell_completion import get_completion_class

from batchfile import __version__
from batchfile.cli.exits import Exit, end_process, exit_of, message_of, say_json, tell_lost_output
from batchfile.cli.help import epilog


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is not loaded yet: `module` holds it under its name; `summary` is its first help line."""

    module: str
    summary: str


COMMANDS = {
    "run": Lazy("run", "Answer every request of a file with one engine on this machine."),
    "validate": Lazy("validate", "Check files of requests without running them."),
    "stats": Lazy("stats", "Show what is in a file of requests."),
    "sample": Lazy("excerpts", "Write random lines of a file to another file."),
    "split": Lazy("excerpts", "Split a file into parts."),
    "submit": Lazy("submit", "Create a batch from a file, in a service or a store."),
    "watch": Lazy("batches", "Follow the progress of batches until they end."),
    "tail": Lazy("batches", "Write the results of a batch as they arrive."),
    "results": Lazy("batches", "Write the results of an ended batch."),
    "report": Lazy("report", "Write a report of an ended batch as one HTML file."),
    "ls": Lazy("batches", "List batches, newest first."),
    "status": Lazy("batches", "Show the progress of a batch."),
    "runners": Lazy("pools", "List the live runners."),
    "pools": Lazy("pools", "List the pools, their runners and what waits for them."),
    "cancel": Lazy("batches", "End a batch early; finished results are kept."),
    "delete": Lazy("batches", "Delete an ended batch and its results."),
    "estimate": Lazy("estimate", "Estimate the tokens, time and cost of a file."),
    "merge": Lazy("merge", "Join the results of requests that were run again into a file of results."),
    "rerun": Lazy("submit", "Run the requests that did not succeed as a new batch."),
    "doctor": Lazy("doctor", "Check this machine, the engine and the store."),
    "config": Lazy("config", "Show the settings and where each was set."),
    "serve": Lazy("program", "Serve batches over HTTP from a store."),
    "worker": Lazy("program", "Run the requests of pools of a store."),
    "keys": Lazy("config", "Create API keys for the service."),
    "completion": Lazy("group", "Print the completion script of a shell."),
}
OLD_NAMES = {"retry": "rerun"}  # still accepted, but not documented


class LazyGroup(click.Group):
    """Loads a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"batchfile.cli.{lazy.module}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        args = [OLD_NAMES.get(name, name) for name in args[:1]] + args[1:]
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else " `batchfile --help` lists them."
            ctx.fail(f"unknown command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=epilog(
        "batchfile run requests.jsonl -o results.jsonl",
        "batchfile submit requests.jsonl --url https://batch.example --stage email --wait",
        "batchfile run --help",
    ),
)
@click.version_option(__version__, prog_name="batchfile")
def root() -> None:
    """One JSONL of LLM requests in, one JSONL of results out.

    A batch is kept in a store (a directory or an S3 bucket) and survives the end of any process.
    """


@click.command(
    "completion",
    epilog=epilog(
        'eval "$(batchfile completion bash)"    # in ~/.bashrc',
        'eval "$(batchfile completion zsh)"     # in ~/.zshrc',
        "batchfile completion fish > ~/.config/fish/completions/batchfile.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"completion is not supported for {shell}")
    click.echo(kind(root, {}, "batchfile", "_BATCHFILE_COMPLETE").source())


def main() -> None:
    """The console script: prints every expected error as one line on stderr, and exits with its code."""
    _open_closed_streams()
    tell_lost_output()
    try:
        root.main(prog_name="batchfile", standalone_mode=False)
    except click.ClickException as raised:
        error = _without_guess(raised) if isinstance(raised, click.NoSuchOption) else raised
        if _wants_json():
            say_json(error.format_message(), Exit.USAGE)
        else:
            error.show()
        sys.exit(Exit.USAGE)
    except click.Abort as abort:  # click raises it for Ctrl-C, and for an EOFError, which is an ordinary error
        if isinstance(abort.__cause__, EOFError):
            _fail(abort.__cause__)
        sys.exit(Exit.INTERRUPTED)
    except SystemExit as stop:
        if stop.code in {Exit.INTERRUPTED, Exit.TERMINATED}:
            end_process(int(stop.code or 0))
        raise
    except Exception as error:  # noqa: BLE001 the top of the process
        _fail(error)


def _without_guess(error: click.NoSuchOption) -> click.UsageError:
    """Suggest an option only for a typing error or the beginning of its name; click suggests any similar one."""
    from batchfile.lines.key_advice import typo_of

    name, command = error.option_name, error.ctx.command_path if error.ctx else "batchfile"
    options = error.possibilities or []
    begun = [option for option in options if option.startswith(name)]
    meant = begun[0] if len(begun) == 1 else typo_of(name, options)
    hint = f"Did you mean {meant}?" if meant else f"`{command} --help` lists the options."
    return click.UsageError(f"unknown option {name}. {hint}", error.ctx)


def _open_closed_streams() -> None:
    """Reopen streams that the parent has closed, as daemons do. Otherwise one of our files would get their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 open as long as the process


def _fail(error: Exception) -> NoReturn:
    message = message_of(error)
    if message is None or os.environ.get("BATCHFILE_DEBUG"):
        traceback.print_exception(error)
    message, code = message or f"unexpected error: {error!r}", exit_of(error)
    if _wants_json():
        say_json(message, code)
    else:
        click.echo(f"batchfile: {message}", err=True)
    sys.exit(code)


def _wants_json() -> bool:
    """Errors are JSON if the command was asked for JSON."""
    return "--json" in sys.argv[1:]
