"""Opens inputs that are addresses: https://… and s3://BUCKET/KEY. Read by this process, with its own credentials."""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from batchfile.errors import InvalidFile, ObjectChanged, StoreError, StoreUnavailable
from batchfile.lines.kinds import KIND_BYTES
from batchfile.store.open import open_store

_S3 = "s3://"
_SCHEMES = ("https://", "http://", _S3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """`name`: its address, without credentials. `size` in bytes; 0: unknown. `head`: its first bytes.

    `version`: changes with the file; empty where that is not known. `chunks()`: the whole file, from its start.
    Raises: InvalidFile where it ends early, or has changed since it was opened.
    """

    name: str
    size: int
    version: str
    head: bytes
    chunks: Callable[[], Iterator[bytes]]


def changed(name: str) -> InvalidFile:
    return InvalidFile(f"{name}: was changed while it was read; run the command again once it is complete")


def is_url(name: str) -> bool:
    return name.lower().startswith(_SCHEMES)


def path_of(url: str) -> str:
    """The path in an address, such as /folder/requests.jsonl."""
    return unquote(_split(url).path)


def _split(url: str) -> SplitResult:
    """Raises: InvalidFile for an address without a host."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.hostname:
            return parts
    shown = url.partition("?")[0].rpartition("@")[2]  # it may contain credentials
    raise InvalidFile(f"{shown}: is not a valid address; use https://HOST/PATH or {_S3}BUCKET/KEY")


def open_remote(url: str) -> RemoteFile:
    """Raises: InvalidFile where it cannot be used; SettingsError for a wrong address; StoreUnavailable."""
    file = _of_bucket(url) if url.lower().startswith(_S3) else _of_server(url)
    if not file.head:
        raise InvalidFile(f"{file.name}: is empty; it needs at least one request line")
    return file


def _of_server(url: str) -> RemoteFile:
    from batchfile.local.http_input import InputDownload

    parts = _split(url)
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # a query may be a signature
    download = InputDownload(url, name)
    head, version = b"", download.head.version
    with closing(download.chunks()) as begin:
        while len(head) < KIND_BYTES and (more := next(begin, b"")):
            head += more

    def chunks() -> Iterator[bytes]:
        again = InputDownload(url, name)
        if again.head.version != version:
            again.close()
            raise changed(name)
        yield from again.chunks()

    return RemoteFile(name=name, size=download.head.size or 0, version=version, head=head[:KIND_BYTES], chunks=chunks)


def _of_bucket(url: str) -> RemoteFile:
    parts = _split(url)
    key = unquote(parts.path).lstrip("/")
    if not key or key.endswith("/"):
        raise InvalidFile(f"{url}: is not the URL of an object; use s3://BUCKET/PATH/NAME.jsonl")
    store = open_store(f"{_S3}{parts.netloc}" + (f"?{parts.query}" if parts.query else ""), prove=False)
    try:
        entry = store.head(key)
        if entry is None:
            store.get(key)  # unlike a HEAD, this reports a missing bucket
            raise InvalidFile(f"{url}: no such object")
        head = b"".join(store.stream(key, 0, min(KIND_BYTES, entry.size))) if entry.size else b""
    except StoreUnavailable:
        raise
    except StoreError as error:
        raise InvalidFile(f"{url}: {error}") from error
    etag = entry.etag

    def chunks() -> Iterator[bytes]:
        try:
            yield from store.stream(key, match=etag)
        except ObjectChanged:
            raise changed(url) from None
        except StoreError as error:
            raise InvalidFile(f"{url}: cannot be read to its end: {error}") from error

    return RemoteFile(name=url, size=entry.size, version=etag, head=head, chunks=chunks)
