"""The results of an ended batch to where a person wants them: a file that is continued, or stdout."""

import os
import sys

import click

from batchfile.cli.transfer import transfer
from batchfile.client.batch import Batch
from batchfile.errors import BatchFailed, OutputTaken
from batchfile.local.outputs import STDOUT, check_output


def check_free(output: str, *, is_forced: bool | None = None) -> str:
    """The path of an output that may be written; `-` stays. `is_forced` None: the command has no --force.

    Raises: SettingsError, OutputTaken.
    """
    if output == STDOUT:
        return output
    path = check_output(output, None)
    if os.path.exists(path) and not is_forced:
        way_out = "" if is_forced is None else ", or add --force to replace it"
        raise OutputTaken(f"{output} exists; choose another output{way_out}")
    return path


def save(batch: Batch, path: str) -> bool:
    """The results of an ended batch to `path`. False, and said why, where it has none."""
    try:
        if path == STDOUT:
            batch.save(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with transfer(os.path.basename(path), batch.results_size()) as on_bytes:
                batch.save(path, on_bytes=on_bytes)
    except BatchFailed as error:
        click.echo(str(error), err=True)
        return False
    return True
