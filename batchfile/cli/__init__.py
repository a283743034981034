"""The `batchfile` command. Only this package uses click and rich; each command is loaded when it is called."""

from batchfile.cli.group import main

__all__ = ["main"]
