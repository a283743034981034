"""A connection to a service over HTTP or to a store, for the Python API and the commands."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Self, Unpack

from batchfile.client.base import Access, BatchStatus, Remote
from batchfile.client.batch import Batch
from batchfile.errors import BatchfileError, SettingsError
from batchfile.ledger.keys import is_pool_name
from batchfile.types import METADATA_MAX, METADATA_NAME_CHARS_MAX, METADATA_VALUE_CHARS_MAX, TENANT

if TYPE_CHECKING:
    from batchfile.client.upload import Upload
    from batchfile.local.options import TableArguments
    from batchfile.store.base import Store

API_KEY_VARIABLES = ("BATCHFILE_API_KEY", "LOCAL_BATCH_API_KEY")
ACCESSES: tuple[Access, ...] = ("read", "write", "create")  # each includes those before it

log = logging.getLogger("batchfile")


def connect(
    place: "str | os.PathLike[str] | Store",
    *,
    api_key: str | None = None,
    tenant: str = TENANT,
    on_wait: Callable[[str], None] = log.warning,
) -> "Connection":
    """Connect to a service (`https://batch.example`) or a store (`s3://bucket/prefix`, a directory, a `Store`).

    Nothing is sent before the first call. `api_key`: of a service; by default BATCHFILE_API_KEY. `tenant`: the owner
    of the batches, in a store. The first `submit` creates a missing directory. `on_wait` is called with a message when
    the client waits for an unavailable service.

    Raises: SettingsError for an invalid place or key. The calls of the connection raise SettingsError for a wrong
    address, key or stage, ServiceUnavailable and StoreUnavailable, and the errors that they document.

    >>> with batchfile.connect("./store") as client:
    ...     batch = client.submit("requests.jsonl", stage="email", metadata={"campaign": "spring"})
    >>> batch.last_status.total
    2
    """
    if isinstance(place, str) and place.startswith(("http://", "https://")):
        from batchfile.client.http import HttpRemote

        key = api_key or next(filter(None, map(os.environ.get, API_KEY_VARIABLES)), None)
        service = HttpRemote(place, key, on_wait)
        return Connection(lambda _: service, service)
    if api_key is not None:
        raise SettingsError(f"api_key is for a service, and {place} is a store: remove api_key")
    from batchfile import logs
    from batchfile.store.open import open_store

    if not is_pool_name(tenant):
        raise SettingsError(f"tenant: {tenant!r} is not a valid name; use lower-case letters, digits, dots and dashes")
    logs.for_library()
    place = open_store(place) if place == "memory:" else place  # a new store each time that it is opened
    return Connection(lambda access: open_store_remote(place, tenant, access))


def open_store_remote(
    place: "str | os.PathLike[str] | Store | None", tenant: str, access: Access, name: str | None = None
) -> Remote:
    """`place` None: the store of the settings, or the directory of a run next to its output `name`."""
    from batchfile.client.store import StoreRemote
    from batchfile.ledger.base import IN_FLIGHT, Ledger
    from batchfile.open_ledger import existing_ledger, open_service_ledger
    from batchfile.settings import load_settings

    settings = load_settings()
    if place is not None and not isinstance(place, str | os.PathLike):
        limits = settings.ledger_limits(is_local=True, is_service=True)
        return StoreRemote(Ledger(store=place, limits=limits, num_in_flight=IN_FLIGHT), settings, tenant)
    url = None if place is None else os.fspath(place)
    if access == "create":
        return StoreRemote(open_service_ledger(url, settings), settings, tenant)
    return StoreRemote(existing_ledger(url, settings, name, is_read_only=access == "read"), settings, tenant)


class Connection:
    """The batches of a service or a store. From `connect`; closed by `close` or at the end of a `with`.

    >>> with batchfile.connect("./store") as client:
    ...     [batch.last_status.state for batch in client.batches()]
    ['ended']
    """

    def __init__(self, open_remote: Callable[[Access], Remote], remote: Remote | None = None) -> None:
        """`open_remote`: opens a remote for an access when it is needed. `remote`: one for every access."""
        self._open_remote = open_remote
        self._remotes: dict[Access, Remote] = {} if remote is None else {"create": remote}
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Further calls raise BatchfileError."""
        self._is_closed = True
        for remote in self._remotes.values():
            remote.close()
        self._remotes.clear()

    def submit(
        self,
        file: "str | os.PathLike[str] | Upload",
        *,
        stage: str | None = None,
        pool: str | None = None,
        priority: int = 5,
        metadata: Mapping[str, str] | None = None,
        strict: bool = False,
        reuse: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
        **rows: "Unpack[TableArguments]",
    ) -> Batch:
        """Create a batch from a file or an address: requests, rows or lines of text, in the formats of `batchfile run`.
        `rows`: how they become requests (`prompt`, `choices`, ...), as in `batchfile submit`; each has its result under
        its custom_id.

        `stage`: of all requests; it has a pool and perhaps a schema. `pool`: for all requests, regardless of their
        lines. Without either, each line selects its pool by its model or `model_hint`. `priority`: 0 (first) to 9. A
        line that cannot run becomes an `errored` result; with `strict` it rejects the file. HTTP retries within a call
        create one batch; a second call creates a second batch.

        `reuse`: the id of an ended batch, or "auto" for the latest ones that the same model made. Requests that are the
        same as one that succeeded there get its result, and do not run; `status().reused` counts them. With "auto" only
        those that are answered the same each time: temperature 0, or a seed.

        Raises: InvalidFile (TooLarge, RequestRefused), SettingsError, NotFound for `reuse`; then nothing was created.
        """
        from batchfile.client.upload import open_upload
        from batchfile.local.options import RunOptions, TableArguments, check_arguments
        from batchfile.plan.options import CreateOptions

        check_arguments("submit", TableArguments, rows)
        options = CreateOptions(
            stage=stage,
            pool=pool,
            priority=priority,
            metadata=checked_metadata(metadata or {}),
            is_strict=strict,
            reuse=reuse,
        )
        if isinstance(file, str | os.PathLike):
            upload = open_upload(os.fspath(file), RunOptions(input=os.fspath(file), **rows))
        else:
            upload = file
        return self._made(self._at("create").submit(upload, options, on_bytes or (lambda num_bytes: None)))

    def batch(self, id: str) -> Batch:
        """A batch by its id; in a store also by the path of a local run's output. Raises: NotFound."""
        return self._made(self._at("read").batch(id))

    def batches(self) -> Iterator[Batch]:
        """All batches, newest first, read page by page."""
        return map(self._made, self._at("read").batches())

    def delete(self, id: str, *, now: bool = False) -> str:
        """As `Batch.delete`; with `now` also for a deleted batch. Returns its id. Raises: NotFound, NotEnded."""
        return self._at("write").delete(id, now=now)

    def live_pools(self) -> set[str]:
        """The pools that have a live runner."""
        return {runner.pool for runner in self._at("read").runners()}

    def _made(self, status: BatchStatus) -> Batch:
        return Batch(self._at, status)

    def _at(self, access: Access) -> Remote:
        if self._is_closed:
            raise BatchfileError("the connection is closed; connect again")
        for enough in ACCESSES[ACCESSES.index(access) :]:
            if enough in self._remotes:
                return self._remotes[enough]
        self._remotes[access] = self._open_remote(access)
        return self._remotes[access]


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Raises: SettingsError where the metadata exceeds the limits of a batch."""
    if len(metadata) > METADATA_MAX:
        raise SettingsError(f"metadata: has {len(metadata)} pairs; at most {METADATA_MAX} are allowed")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise SettingsError(f"metadata {name[:80]!r}: {value!r:.80} is not a string; use str(value)")
        if not 0 < len(name) <= METADATA_NAME_CHARS_MAX or len(value) > METADATA_VALUE_CHARS_MAX:
            raise SettingsError(
                f"metadata {name[:80]!r}: use names of 1 to {METADATA_NAME_CHARS_MAX} and values of at most "
                f"{METADATA_VALUE_CHARS_MAX} characters"
            )
    return dict(metadata)
