"""The `batchfile` command."""

from batchfile.cli import group
from batchfile.cli.exits import Exit, exit_of
from batchfile.cli.group import COMMANDS, LazyGroup, main, root
