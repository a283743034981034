"""The `batchfile` command. Only this package knows click and rich; the commands are loaded when they are called."""

from batchfile.cli.group import main

__all__ = ["main"]
