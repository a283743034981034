"""From what a person types to the batches that are meant: a service's or a store's. Loads only what is asked for."""

from collections.abc import Callable

from batchfile.errors import SettingsError
from batchfile.remote.base import Remote


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
        from batchfile.remote.http import HttpRemote

        return HttpRemote(url, api_key, on_wait)
    from batchfile.places import existing_ledger, open_service_ledger
    from batchfile.remote.store import StoreRemote
    from batchfile.settings import load_settings

    settings = load_settings()
    if is_new:
        return StoreRemote(open_service_ledger(store, settings), settings, tenant)
    return StoreRemote(existing_ledger(store, settings, name, is_read_only=not writes), settings, tenant)
