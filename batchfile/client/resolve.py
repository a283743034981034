"""Where a command's batches are: the store it names, the ledger over it, a batch by its id or its output's path."""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import structlog

from batchfile.errors import InvalidRequest, NotFound, SettingsError, StoreUnavailable
from batchfile.ledger import keys
from batchfile.ledger.base import IN_FLIGHT, Ledger
from batchfile.ledger.batches import read_batch
from batchfile.ledger.cas import load
from batchfile.ledger.records import BatchRecord, IdempotencyRecord
from batchfile.settings import Settings
from batchfile.store.base import Store
from batchfile.store.open import local_path, open_store

log = structlog.get_logger()

T = TypeVar("T")

STORE_FOLDER = ".batchfile"
WAIT_S = 1.0  # between the first two tries to open a store that is down; doubles
WAIT_S_MAX = 15.0


def check_stage(stages: Collection[str], stage: str) -> None:
    """Raises: SettingsError where there is no such stage."""
    if stage not in stages:
        raise SettingsError(f"stage: {stage!r} is unknown; use one of {', '.join(sorted(stages))}")


def check_pool(pools: Collection[str], pool: str) -> None:
    """Raises: SettingsError where there is no such pool."""
    if pool not in pools:
        raise SettingsError(f"pool: {pool!r} is unknown; use one of {', '.join(sorted(pools))}")


def open_ledger(url: str, settings: Settings, *, is_read_only: bool = False) -> Ledger:
    """A bucket is proven fit first, unless nothing will be written with a condition."""
    store = _opened(url, prove=not is_read_only)
    limits = settings.ledger_limits(is_local=local_path(url) is not None)
    return Ledger(store=store, limits=limits, num_in_flight=IN_FLIGHT)


def open_service_ledger(url: str | None, settings: Settings) -> Ledger:
    """The ledger of a service or a runner of one: named, set, or in the current directory."""
    chosen = url or settings.store or STORE_FOLDER
    limits = settings.ledger_limits(is_local=local_path(chosen) is not None, is_service=True)
    return Ledger(store=_opened(chosen), limits=limits, num_in_flight=IN_FLIGHT)


def existing_ledger(
    url: str | None, settings: Settings, name: str | None = None, *, is_read_only: bool = True
) -> Ledger:
    """The ledger of a store that must exist: named, set, beside the output `name`, or beside the current directory.

    Raises: SettingsError where there is none.
    """
    chosen = url or settings.store
    if chosen is None:
        folders = [Path(STORE_FOLDER)]
        if name is not None:
            folders.insert(0, Path(os.path.realpath(name)).parent / STORE_FOLDER)
        found = [folder for folder in folders if folder.is_dir()]
        if not found:
            raise SettingsError(f"there is no {STORE_FOLDER} here; name the store: --store DIR or --store s3://…")
        chosen = str(found[0])
    elif (path := local_path(chosen)) is not None and not path.is_dir():
        raise SettingsError(f"store {chosen}: there is no such directory")
    return open_ledger(chosen, settings, is_read_only=is_read_only)


def find_batch_id(ledger: Ledger, name: str) -> str:
    """The id that `name` is, or that the path of an output stands for."""
    path = os.path.realpath(name)
    pointer = load(ledger, keys.idempotency_key("output", path), IdempotencyRecord)
    return name if pointer is None else pointer.record.batch_id


def find_batch(ledger: Ledger, name: str) -> BatchRecord:
    """A batch by its id or by the path of its output. Raises: NotFound, BatchDamaged."""
    try:
        batch = read_batch(ledger, find_batch_id(ledger, name))
    except InvalidRequest:
        batch = None
    if batch is None:
        raise NotFound(f"{name}: no such batch in {ledger.store.url}; `batchfile ls` lists them")
    return batch


def wait_for_store(open_store: Callable[[], T]) -> T:
    """What `open_store` returns, as soon as the store answers. Raises: what waiting does not fix."""
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
