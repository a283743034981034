"""From what a person types to the batches that are meant: a service's or a store's. Loads only what is asked for."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchfile.client.base import Access, Remote
from batchfile.errors import SettingsError

if TYPE_CHECKING:
    from batchfile.store.base import Store


def open_remote(
    *,
    url: str | None,
    api_key: str | None,
    store: str | None,
    tenant: str,
    on_wait: Callable[[str], None],
    name: str | None = None,
    writes: bool = False,
    is_new: bool = False,
) -> Remote:
    """A service's where there is a `url`, else a store's: named, set, or beside the output `name`.

    `on_wait` hears of a service that is waited for. `writes`: something will be changed; a bucket is proven fit first.
    `is_new`: a directory that is not there yet is made, and a batch lives as long as a service's.
    Raises: SettingsError, StoreUnfit, StoreUnavailable; ServiceUnavailable only when it is asked.
    """
    if url is not None and store is not None:
        raise SettingsError("--url and --store name two places; give one of them")
    if url is not None:
        from batchfile.client.http import HttpRemote

        return HttpRemote(url, api_key, on_wait)
    return open_store_remote(store, tenant, "create" if is_new else "write" if writes else "read", name)


def open_store_remote(
    place: "str | os.PathLike[str] | Store | None", tenant: str, access: Access, name: str | None = None
) -> Remote:
    """`place` None: as the settings say, or the folder that a run keeps next to its output `name`."""
    from batchfile.client.resolve import existing_ledger, open_service_ledger
    from batchfile.client.store import StoreRemote
    from batchfile.ledger.base import IN_FLIGHT, Ledger
    from batchfile.settings import load_settings

    settings = load_settings()
    if place is not None and not isinstance(place, str | os.PathLike):
        limits = settings.ledger_limits(is_local=True, is_service=True)
        return StoreRemote(Ledger(store=place, limits=limits, num_in_flight=IN_FLIGHT), settings, tenant)
    url = None if place is None else os.fspath(place)
    if access == "create":
        return StoreRemote(open_service_ledger(url, settings), settings, tenant)
    return StoreRemote(existing_ledger(url, settings, name, is_read_only=access == "read"), settings, tenant)
