"""The commands `serve` and `worker`, which are separate programs: found by entry point, with their own options."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

import click

import batchfile
from batchfile.errors import SettingsError, install_hint

GROUP = "batchfile.commands"
LIBRARY = "batchfile."

Main = Callable[[list[str], str], int]  # the arguments, and what the help calls the command; returns the exit code


class Program(click.Command):
    """`name`: of the command and of its entry point. `extra`: the extra of the distribution that it needs."""

    def __init__(self, name: str, summary: str, extra: str) -> None:
        super().__init__(name, help=summary)
        self._extra = extra

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> None:
        sys.exit(self._load(ctx)(ctx.args, ctx.command_path))

    def get_help(self, ctx: click.Context) -> str:
        """For the reference. Runs in a separate process, with the width in a variable."""
        width = {"COLUMNS": str(ctx.terminal_width or 80), "NO_COLOR": "1"}
        command = [sys.executable, "-m", "batchfile", self.name or "", "--help"]
        done = subprocess.run(command, env={**os.environ, **width}, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.rstrip()

    def _load(self, ctx: click.Context) -> Main:
        """Raises: SettingsError where the extra is missing, or this installation is older than the entry point."""
        found = list(entry_points(group=GROUP, name=self.name or ""))
        if not found:
            raise SettingsError(f"`{ctx.command_path}` is not installed: {install_hint(self._extra)}")
        try:
            main: Main = _in_place(found[0]).load()
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in {"batchfile", "api", "runners"}:
                raise
            raise SettingsError(
                f"`{ctx.command_path}` needs {error.name}, which is not installed: {install_hint(self._extra)}"
            ) from error
        return main


def _in_place(entry: EntryPoint) -> EntryPoint:
    """In the wheel the program is within `batchfile`; in a checkout it is next to it, with a shorter name."""
    if find_spec(entry.module.rpartition(".")[0]) is not None:
        return entry
    sys.path.insert(0, str(Path(batchfile.__file__).parents[1]))  # before other packages of that name
    return EntryPoint(entry.name, entry.value.removeprefix(LIBRARY), entry.group)


serve = Program("serve", "Serve batches over HTTP from a store.", extra="api")
worker = Program("worker", "Run the requests of pools of a store.", extra="fleet")
