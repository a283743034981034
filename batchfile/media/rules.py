"""What the requests of a batch may read, and how much of it. Pure, except that paths are resolved."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from batchfile.errors import InvalidRequest
from batchfile.types import TENANT

FETCH_S = 30.0  # for one object, with all attempts
PIXELS_MAX = 178_956_970  # what Pillow opens
SHOWN_CHARS = 120

_SCHEME = re.compile(r"(data|https?|s3):", re.IGNORECASE)
_PATHS = "only `batchfile run` reads paths; upload the file and use its https: or s3: URL, or put it into the request"
_NO_FOLDER = "the input has no folder to start from; name the folder of its paths with --media-folder"
_NOT_ALLOWED = "this service does not read from {where}; its operator can allow it under media.{tenant}.allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBucket:
    """The bucket of the service's store. `inbox`: the keys in it that the tenant's requests may name begin so."""

    name: str
    inbox: str
    query: str = ""  # of the store's URL: its endpoint and region


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLimits:
    """Of an object, of an image, and of the media of one request: bytes as the engine gets them, and their number."""

    object_bytes: int = 20 * 1024 * 1024
    pixels: int = 40_000_000
    request_bytes: int = 256 * 1024 * 1024
    objects: int = 1_000


DEFAULT_LIMITS = MediaLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRules:
    """What may be read, in addition to the request itself.

    `folder`: files below it; None: no files. `allow`: hosts (`images.example`, `images.example:8443`) and buckets
    (`s3://photos/public/`) of a tenant; None: all. `allow_private`: also servers whose address is not public.
    """

    tenant: str = TENANT
    folder: Path | None = None
    allow: tuple[str, ...] | None = ()
    allow_private: bool = False
    own_bucket: OwnBucket | None = None
    limits: MediaLimits = DEFAULT_LIMITS

    def check(self, source: str) -> None:
        """Raises: InvalidRequest if this source may not be read. Its address is not looked up."""
        scheme = scheme_of(source)
        if scheme == "s3":
            self._check_key(_split(source))
        elif scheme in {"http", "https"}:
            self._check_host(_split(source))

    def above(self, what: str, limit: str, key: str) -> InvalidRequest:
        """The error for what is above a limit. `key`: the setting that raises it."""
        return InvalidRequest(f"{what}; the limit is {limit} (media.{self.tenant}.{key})")

    def file(self, source: str) -> Path:
        """The file that a relative path means. Raises: InvalidRequest if it is not below the folder."""
        if self.folder is None:
            raise InvalidRequest(_PATHS if self.allow is not None else _NO_FOLDER)
        root = self.folder.resolve()
        try:
            path = (root / source).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidRequest(f"is not a valid path: {error}") from error
        if Path(source).is_absolute() or not path.is_relative_to(root):
            raise InvalidRequest(f"is not below {root}; move it there, or name another folder with --media-folder")
        return path

    def _check_host(self, parts: SplitResult) -> None:
        try:
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            host, port = "", None
        if not host or parts.username is not None:
            raise InvalidRequest("is not a valid URL; use https://HOST/PATH without credentials")
        names = {host if port is None else f"{host}:{port}"}
        if port == {"http": 80, "https": 443}[parts.scheme]:
            names.add(host)
        if self.allow is not None and names.isdisjoint(one.lower() for one in self.allow):
            raise InvalidRequest(_NOT_ALLOWED.format(where=host, tenant=self.tenant))

    def _check_key(self, parts: SplitResult) -> None:
        bucket, key = parts.netloc, unquote(parts.path).lstrip("/")
        if not bucket or "@" in bucket or not key:
            raise InvalidRequest("is not the URL of an object; use s3://BUCKET/KEY")
        if parts.fragment:
            raise InvalidRequest("has a # in its key; write it as %23")
        if self.allow is None:
            return
        if parts.query or {"", ".", ".."} & set(key.split("/")):
            raise InvalidRequest("must not have a query, or `..` in its key")
        prefixes = [one.removesuffix("/") + "/" for one in self.allow if one.startswith("s3://")]
        is_own = self.own_bucket is not None and self.own_bucket.name == bucket
        is_inside = self.own_bucket is not None and key.startswith(self.own_bucket.inbox)
        if not f"s3://{bucket}/{key}".startswith(tuple(prefixes)) or (is_own and not is_inside):
            raise InvalidRequest(_NOT_ALLOWED.format(where="that place", tenant=self.tenant))


def in_words(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size:,} bytes"


def scheme_of(source: str) -> str:
    """`data`, `http`, `https` or `s3`; empty for a path."""
    found = _SCHEME.match(source)
    return found[1].lower() if found is not None else ""


def _split(source: str) -> SplitResult:
    try:
        return urlsplit(source)
    except ValueError as error:
        raise InvalidRequest(f"is not a valid URL: {error}") from error


def shown(source: str) -> str:
    """A source for messages, without credentials, and without a query, which may be a signature."""
    if source[:5].lower() == "data:":
        return source.partition(",")[0][:SHOWN_CHARS]
    scheme, separator, rest = source.partition("://")
    if not separator:
        return source[:SHOWN_CHARS]
    place, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"[:SHOWN_CHARS]
