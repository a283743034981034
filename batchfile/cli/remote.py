"""What the commands for batches elsewhere share: the options that say where, and the batch's end as an exit code."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from batchfile.cli import logs
from batchfile.cli.exits import Exit
from batchfile.remote.base import BatchView, Remote


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which batches a command means."""

    url: str | None
    api_key: str | None
    store: str | None
    tenant: str

    @contextmanager
    def opened(self, name: str | None = None, *, writes: bool = False, is_new: bool = False) -> Iterator[Remote]:
        """`name`: the batch that is meant. `is_new`: the store may have none yet."""
        from batchfile.remote.open import open_remote

        logs.configure()
        remote = open_remote(
            url=self.url,
            api_key=self.api_key,
            store=self.store,
            tenant=self.tenant,
            on_wait=lambda message: click.echo(f"waiting: {message}", err=True),
            name=name,
            writes=writes,
            is_new=is_new,
        )
        try:
            yield remote
        finally:
            remote.close()


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --url, --api-key, --store and --tenant, which the command gets as one `where`."""

    @functools.wraps(command)
    def with_where(url: str | None, api_key: str | None, store: str | None, tenant: str, **options: Any) -> None:
        if store is not None and click.get_current_context().get_parameter_source("url") != _TYPED:
            url = None  # what is typed stands over what is set
        command(where=Where(url=url, api_key=api_key, store=store, tenant=tenant), **options)

    return _URL(_API_KEY(_STORE(_TENANT(with_where))))


REMOTE_EXITS = """\b
Exit codes:
  0    every request succeeded, or is on its way
  1    something unexpected, or the service or the store does not answer
  2    wrong usage, a wrong URL or key, or no such batch
  3    ended, and some requests failed; or not ended yet, where an end is needed
  4    the input can not be used
  7    the output is there already
  130  interrupted (Ctrl-C); the batch goes on, the same command continues"""

_TYPED = click.core.ParameterSource.COMMANDLINE
_URL = click.option("--url", envvar="BATCHFILE_URL", metavar="URL", help="A service.  [env: BATCHFILE_URL]")
_API_KEY = click.option(
    "--api-key",
    envvar=["BATCHFILE_API_KEY", "LOCAL_BATCH_API_KEY"],
    metavar="KEY",
    help="With --url; better kept in the environment.  [env: BATCHFILE_API_KEY]",
)
_STORE = click.option("--store", metavar="STORE", help="A directory or s3://bucket/prefix.  [default: .batchfile here]")
_TENANT = click.option("--tenant", default="default", show_default=True, help="With --store: whose batches.")


def exit_of_batch(batch: BatchView) -> Exit:
    return Exit.OK if batch.is_all_succeeded else Exit.FAILED_REQUESTS
