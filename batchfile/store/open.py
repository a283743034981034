"""Opens the store that a URL names. Loads only the wanted kind of store (boto3 is slow to load)."""

import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from batchfile.errors import SettingsError, StoreError, StoreUnavailable, check_installed
from batchfile.store.base import Store
from batchfile.store.conformance import Proof, prove_conditions

ACCEPTED = "a directory, file:PATH, memory: or s3://BUCKET/PREFIX?endpoint=URL&region=NAME"
_QUERY = {"endpoint", "region"}


def open_store(url: str, *, prove: bool = True) -> Store:
    """The store that `url` names: a directory, `s3://bucket/prefix` or `memory:`.

    A bucket is tested for conditional writes (about a second) unless `prove` is False.

    >>> store = batchfile.open_store("./store")
    >>> any(entry.key.startswith("batches/") for entry in store.list("batches/"))
    True

    Raises: SettingsError for an unknown form of URL; StoreUnfit; StoreUnavailable, also if the store was too busy for
    the test; StoreError.
    """
    if not url.strip():
        raise SettingsError(f"the store is empty; give {ACCEPTED}")
    path = local_path(url)
    if path is not None:
        return _directory(path)
    if url == "memory:":
        from batchfile.store.memory import MemoryStore

        return MemoryStore()
    if url.startswith("s3://"):
        return _bucket(url, prove=prove)
    raise SettingsError(f"{url} is not a store URL; give {ACCEPTED}")


def prove_store(url: str) -> Proof:
    """Test the write conditions of a store at length: ten seconds, a minute if it is busy. Raises: as `open_store`."""
    store = open_store(url, prove=False)
    if url.startswith("s3://"):
        from batchfile.store.s3 import S3Store

        assert isinstance(store, S3Store)
        return store.prove(heavy=True)
    return prove_conditions(store, heavy=True)


def local_path(url: str) -> Path | None:
    """The directory that a store URL names, with ~ as home; None if it does not name one."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "file":
        return _expanded(unquote(urlsplit(url).path) if rest.startswith("//") else rest)
    if not colon or "/" in scheme:
        return _expanded(url)
    if "://" in url or scheme in {"s3", "memory"}:
        return None
    return _expanded(url)  # a file name may contain a colon


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))


def _directory(path: Path) -> Store:
    from batchfile.store.directory import DirectoryStore

    try:
        return DirectoryStore(path)
    except StoreUnavailable:
        raise
    except StoreError as error:  # no store can be here, for any user
        raise SettingsError(str(error)) from error


def _bucket(url: str, *, prove: bool) -> Store:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.netloc or "@" in urlsplit(query.get("endpoint", "")).netloc:
        raise SettingsError("credentials do not belong in a store's URL: set AWS_ACCESS_KEY_ID and its secret")
    if not parts.netloc:
        raise SettingsError(f"{url} has no bucket; give s3://BUCKET/PREFIX")
    if unknown := sorted(set(query) - _QUERY):
        raise SettingsError(f"{url}: {unknown[0]!r} is unknown; use one of {', '.join(sorted(_QUERY))}")
    check_installed("boto3", extra="s3", what=url)
    from batchfile.store.s3 import S3Store

    store = S3Store(
        parts.netloc,
        unquote(parts.path),
        endpoint_url=query.get("endpoint") or None,  # without it boto3 reads AWS_ENDPOINT_URL
        region=query.get("region") or None,
    )
    if prove and (unclear := store.prove().unclear):
        raise StoreUnavailable(f"{url} is too busy to prove that it enforces write conditions: {unclear}")
    return store
