"""From what a person types to a store. Loads only the store that is asked for (boto3 is slow to load)."""

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from batchfile.errors import SettingsError, StoreError, StoreUnavailable
from batchfile.store.base import Store

ACCEPTED = "a directory, file:PATH, memory: or s3://BUCKET/PREFIX?endpoint=URL&region=NAME"
_QUERY = {"endpoint", "region"}


def open_store(url: str, *, prove: bool = True) -> Store:
    """The store that `url` names. A bucket is proven fit (about a second) unless `prove` is False.

    Raises: SettingsError for a URL of no known form; StoreUnfit; StoreUnavailable; StoreError.
    """
    scheme, colon, rest = url.partition(":")
    if not url.strip():
        raise SettingsError(f"the store is empty; give {ACCEPTED}")
    if not colon or "/" in scheme or scheme == ".":
        return _directory(url)
    if scheme == "file":
        return _directory(unquote(urlsplit(url).path) if rest.startswith("//") else rest)
    if url == "memory:":
        from batchfile.store.memory import MemoryStore

        return MemoryStore()
    if url.startswith("s3://"):
        return _bucket(url, prove=prove)
    if "://" in url or scheme in {"s3", "memory"}:
        raise SettingsError(f"{url} is not a store; give {ACCEPTED}")
    return _directory(url)  # a file name may have a colon


def _directory(path: str) -> Store:
    from batchfile.store.directory import DirectoryStore

    try:
        return DirectoryStore(Path(path).expanduser())
    except StoreUnavailable:
        raise
    except StoreError as error:  # no store can be here, whoever tries
        raise SettingsError(str(error)) from error


def _bucket(url: str, *, prove: bool) -> Store:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.netloc or "@" in urlsplit(query.get("endpoint", "")).netloc:
        raise SettingsError("credentials do not belong in a store's URL: set AWS_ACCESS_KEY_ID and its secret")
    if not parts.netloc:
        raise SettingsError(f"{url} names no bucket; give s3://BUCKET/PREFIX")
    if unknown := sorted(set(query) - _QUERY):
        raise SettingsError(f"{url}: {unknown[0]!r} is not known; accepted are {', '.join(sorted(_QUERY))}")
    from batchfile.store.s3 import S3Store

    store = S3Store(
        parts.netloc,
        unquote(parts.path),
        endpoint_url=query.get("endpoint") or None,  # without it boto3 reads AWS_ENDPOINT_URL
        region=query.get("region") or None,
    )
    if prove:
        store.prove()
    return store
