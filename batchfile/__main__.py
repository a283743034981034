"""`python -m batchfile` is the `batchfile` command."""

from batchfile.cli import main

main()
