"""Opens the ledger of a store by its name and the settings: for a service, a local run, or an existing store."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from batchfile.errors import SettingsError, StoreUnavailable
from batchfile.ledger.base import IN_FLIGHT, Ledger
from batchfile.settings import Settings
from batchfile.store.base import Store
from batchfile.store.open import local_path, open_store

log = structlog.get_logger()

T = TypeVar("T")

STORE_FOLDER = ".batchfile"
WAIT_S = 1.0  # between the first two tries to open a store that is down; doubles
WAIT_S_MAX = 15.0


def open_ledger(url: str, settings: Settings, *, is_read_only: bool = False) -> Ledger:
    """Tests first whether a bucket enforces conditional writes, unless it is only read."""
    store = _opened(url, prove=not is_read_only)
    limits = settings.ledger_limits(is_local=local_path(url) is not None)
    return Ledger(store=store, limits=limits, num_in_flight=IN_FLIGHT)


def open_service_ledger(url: str | None, settings: Settings) -> Ledger:
    """The ledger of a service or of its runners: of `url`, else of the settings, else in the current directory."""
    chosen = url or settings.store or STORE_FOLDER
    limits = settings.ledger_limits(is_local=local_path(chosen) is not None, is_service=True)
    return Ledger(store=_opened(chosen), limits=limits, num_in_flight=IN_FLIGHT)


def existing_ledger(
    url: str | None, settings: Settings, name: str | None = None, *, is_read_only: bool = True
) -> Ledger:
    """The ledger of a store that must exist: of `url`, the settings, next to the output `name`, or in this directory.

    Raises: SettingsError where it does not exist.
    """
    chosen = url or settings.store
    if chosen is None:
        folders = [Path(STORE_FOLDER)]
        if name is not None:
            folders.insert(0, Path(os.path.realpath(name)).parent / STORE_FOLDER)
        found = [folder for folder in folders if folder.is_dir()]
        if not found:
            raise SettingsError(
                f"no store found: {STORE_FOLDER} does not exist here; use --store DIR or --store s3://…"
            )
        chosen = str(found[0])
    elif (path := local_path(chosen)) is not None and not path.is_dir():
        raise SettingsError(f"store {chosen}: no such directory")
    return open_ledger(chosen, settings, is_read_only=is_read_only)


def wait_for_store(open_store: Callable[[], T]) -> T:
    """What `open_store` returns, as soon as the store answers. Raises: errors that waiting does not fix."""
    wait_s = WAIT_S
    while True:
        try:
            return open_store()
        except StoreUnavailable as error:
            log.warning("store.awaited", error=str(error), again_in_s=wait_s)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, WAIT_S_MAX)


def _opened(url: str, *, prove: bool = True) -> Store:
    store = open_store(url, prove=prove)
    if os.environ.get("BATCHFILE_CRASH_AT"):  # tests of processes that die at a named write
        from batchfile.testing.crash_points import armed

        return armed(store)
    return store
