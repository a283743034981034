"""`python -m batchfile` is the `batchfile` command."""

from batchfile.cli import main

if __name__ == "__main__":
    main()
