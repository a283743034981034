"""The results of an ended batch to where a person wants them: a file that is continued, or stdout."""

import os
import sys

import click

from batchfile.cli.transfer import transfer
from batchfile.errors import OutputTaken
from batchfile.local.outputs import STDOUT, check_output
from batchfile.remote.base import BatchStatus, Remote
from batchfile.remote.download import in_dialect, save_results


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


def save(remote: Remote, batch: BatchStatus, path: str) -> bool:
    """The results of an ended batch to `path`. False, and said why, where it has none."""
    results = remote.results(batch)
    if results is None:
        click.echo(f"{batch.batch_id} ended before any request ran: {batch.detail or batch.reason}", err=True)
        return False
    if path == STDOUT:
        for chunk in in_dialect(batch, results.read(0)):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return True
    with transfer(os.path.basename(path), results.size) as on_bytes:
        save_results(remote, batch, results, path, on_bytes)
    return True
