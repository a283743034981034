"""Shared by the commands for batches of a service or a store: the options for the place, exit codes, saved results."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from batchfile import logs
from batchfile.cli.exits import Exit
from batchfile.cli.progress import transfer
from batchfile.client.base import Access, BatchStatus, Remote
from batchfile.client.batch import Batch
from batchfile.client.connection import Connection, open_store_remote
from batchfile.errors import BatchFailed, OutputTaken, SettingsError
from batchfile.ledger.keys import is_pool_name
from batchfile.local.display import say
from batchfile.local.options import STDOUT
from batchfile.types import NAME_RULE, TENANT

if TYPE_CHECKING:
    from batchfile.client.upload import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The service or store, and the tenant, that a command works with."""

    url: str | None
    api_key: str | None
    store: str | None
    tenant: str

    @contextmanager
    def opened(self, name: str | None = None, *, writes: bool = False, is_new: bool = False) -> Iterator[Remote]:
        """The service at `url`, else a store: of the option, the settings, or next to the output `name`.

        `writes`: something will be changed; the conditional writes of a bucket are tested first. `is_new`: create a
        missing directory; batches are kept as long as those of a service.
        """
        logs.for_command()
        remote: Remote
        if self.url is not None and self.store is not None:
            raise SettingsError("--url and --store cannot be combined; use one of them")
        if self.url is not None:
            from batchfile.client.http import HttpRemote

            remote = HttpRemote(self.url, self.api_key, lambda message: say(f"waiting: {message}"))
        else:
            access: Access = "create" if is_new else "write" if writes else "read"
            remote = open_store_remote(self.store, self.tenant, access, name)
        try:
            yield remote
        finally:
            remote.close()

    @contextmanager
    def connected(self, name: str | None = None, *, writes: bool = False, is_new: bool = False) -> Iterator[Connection]:
        """The same as a connection of the Python API."""
        with self.opened(name, writes=writes, is_new=is_new) as remote:
            yield Connection(lambda access: remote)


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --url, --api-key, --store and --tenant, which the command gets as one `where`."""
    return _URL(_API_KEY(_STORE(_TENANT(_with_where(command)))))


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same without --tenant, for a command that reads no batches."""
    return _URL(_API_KEY(_STORE(_with_where(command))))


def _with_where(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def with_where(
        url: str | None, api_key: str | None, store: str | None, tenant: str = TENANT, **options: Any
    ) -> None:
        if store is not None and click.get_current_context().get_parameter_source("url") != _TYPED:
            url = None  # an option overrides a variable
        command(where=Where(url=url, api_key=api_key, store=store, tenant=tenant), **options)

    return with_where


def checked_tenant(context: click.Context, option: click.Parameter, tenant: str) -> str:
    """Raises: click.BadParameter for an invalid tenant name."""
    if not is_pool_name(tenant):
        raise click.BadParameter(f"{tenant!r} is not a valid tenant name; {NAME_RULE}", context, option)
    return tenant


_EXITS = """\b
Exit codes:
  0    every request succeeded, or the batch is still running
  1    unexpected error, or the service or the store does not answer
  2    wrong usage, a wrong URL or key, or no such batch
  3    ended, and some requests failed; or not ended, but the command needs an ended batch
  4    the input cannot be used
  7    the output exists already
  130  interrupted (Ctrl-C); """
REMOTE_EXITS = _EXITS + "the batch keeps running; run the same command again to resume"
CREATE_EXITS = (  # each call of these commands creates a batch
    _EXITS + "the batch keeps running: `batchfile watch ID`, `batchfile results ID -o OUT`"
)

_TYPED = click.core.ParameterSource.COMMANDLINE
_URL = click.option("--url", envvar="BATCHFILE_URL", metavar="URL", help="The service.  [env: BATCHFILE_URL]")
_API_KEY = click.option(
    "--api-key",
    envvar=["BATCHFILE_API_KEY", "LOCAL_BATCH_API_KEY"],
    metavar="KEY",
    help="With --url: the API key; prefer the variable.  [env: BATCHFILE_API_KEY]",
)
_STORE = click.option("--store", metavar="STORE", help="A directory or s3://bucket/prefix.  [default: .batchfile here]")
_TENANT = click.option(
    "--tenant",
    default=TENANT,
    show_default=True,
    callback=checked_tenant,
    help="With --store: the owner of the batches.",
)


def exit_of_batch(batch: BatchStatus) -> Exit:
    return Exit.OK if batch.is_all_succeeded else Exit.FAILED_REQUESTS


def check_free(output: str, *, is_forced: bool | None = None, upload: "Upload | None" = None) -> str:
    """The path of an output that may be written; `-` stays `-`. `is_forced` None: the command has no --force. `upload`:
    whose rows are to be written there.

    Raises: SettingsError, OutputTaken.
    """
    from batchfile.local.outputs import check_output

    if output == STDOUT:
        return output
    path = check_output(output, None, None if upload is None else upload.table)
    if os.path.exists(path) and not is_forced:
        way_out = "" if is_forced is None else ", or add --force to replace it"
        raise OutputTaken(f"{output} exists; choose another output{way_out}")
    return path


def save(batch: Batch, path: str, upload: "Upload | None" = None) -> bool:
    """Write the results of an ended batch to `path`, of the rows of its `upload` these rows with their answers. False,
    with a message, where it has no results.
    """
    try:
        if upload is not None and upload.table is not None:
            from batchfile.client.upload import save_rows

            save_rows(batch, upload, path)
        elif path == STDOUT:
            batch.save(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            with transfer(os.path.basename(path), batch.results_size()) as on_bytes:
                batch.save(path, on_bytes=on_bytes)
    except BatchFailed as error:
        click.echo(str(error), err=True)
        return False
    return True
