"""Every error that batchfile raises on purpose.

    BatchfileError
    ├── InvalidFile          the input file as a whole was rejected; nothing ran
    │   ├── RequestRefused       an upload was rejected because of one of its requests
    │   └── TooLarge             the input exceeds a limit
    ├── KeyReused            an idempotency key was used for another request before
    ├── InvalidRequest       one request can never run; it becomes an errored result
    │   └── NotFound             no such batch
    ├── NotEnded             a batch has not ended; wait for it, or cancel it
    │   └── WaitTimeout          it did not end in time and keeps running; wait again (also a TimeoutError)
    ├── BatchFailed          a batch ended before it had any results; fix the input and submit it again
    ├── SettingsError        a setting has a wrong value; the process stops
    ├── OutputTaken          the output path belongs to another run
    ├── StoreError           an error of the store
    │   ├── PreconditionFailed   a conditional write failed, or its outcome is unknown: read back
    │   ├── ObjectChanged        a pinned object has changed
    │   ├── ObjectMissing        an object that must exist does not
    │   ├── StoreUnavailable     the store does not answer; wait and try again
    │   │   └── StoreFull        the store is full; a person must free space
    │   └── StoreUnfit           the store ignores conditional writes; do not use it
    ├── LeaseLost            another runner has the shard now; drop it at once, write nothing
    │   └── ShardClosed          its batch is ending or was removed: no runner has the shard any more
    ├── ServiceUnavailable   a service does not answer; wait and try again
    ├── ConverterKilled      the process that converts a file was killed; try again a few times
    ├── BatchDamaged         the stored documents of a batch contradict each other; stop and report
    │   ├── RecordDamaged        a stored record cannot be read; a cancel, a delete or a restart may replace it
    │   └── RecordNewer          a newer version wrote a record; never write, cancel or delete it
    └── EngineDead           the engine cannot continue; build another one

A class exists only where a caller acts differently. A message says what happened and what to do.

>>> issubclass(batchfile.errors.TooLarge, batchfile.InvalidFile), issubclass(batchfile.WaitTimeout, TimeoutError)
(True, True)
"""

from importlib.util import find_spec

# What a JSON decoder raises for bytes that it cannot read: every msgspec error and UnicodeDecodeError is a ValueError.
# Versions differ in which of them they raise, so the code does not distinguish them.
UNREADABLE = (ValueError, RecursionError)


class BatchfileError(Exception):
    """The base class of every error that batchfile raises on purpose.

    >>> try:
    ...     batchfile.connect("./nowhere").batch("batch_0123456789ab")
    ... except batchfile.BatchfileError as error:
    ...     print(error)
    store ./nowhere: no such directory
    """


class InvalidFile(BatchfileError):
    """The input as a whole cannot be used. The caller rejects it before any engine is loaded.

    >>> try:
    ...     batchfile.run("leads.jsonl", "results.jsonl", engine="echo")
    ... except batchfile.InvalidFile as error:
    ...     print(error)
    leads.jsonl: no such file
    """


class RequestRefused(InvalidFile):
    """An upload was rejected because of one of its requests. `index` counts requests from 0."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class TooLarge(InvalidFile):
    """The input is larger than a limit allows. The caller answers 413: smaller files are accepted."""


class KeyReused(BatchfileError):
    """An idempotency key was used for another request before. The caller answers 422; nothing was created."""


class InvalidRequest(BatchfileError):
    """One request can never run. The caller writes an errored result and continues.

    `type` is the error type of the result line, `invalid_request_error` unless said otherwise.
    """

    def __init__(self, message: str, type: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.type = type


class NotFound(InvalidRequest):
    """The batch does not exist, or was deleted. The caller checks the id, or submits the file.

    >>> try:
    ...     client.batch("batch_0123456789ab")
    ... except batchfile.NotFound:
    ...     batch = client.submit("requests.jsonl", stage="email")
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, type="not_found_error")


class NotEnded(BatchfileError):
    """A call needs an ended batch, and this one has not ended. The caller waits for it, or cancels it.

    >>> batch = client.submit("requests.jsonl", stage="email")
    >>> try:
    ...     batch.save("results.jsonl")
    ... except batchfile.NotEnded:
    ...     print("not yet")
    not yet
    """


class WaitTimeout(NotEnded, TimeoutError):
    """A batch had not ended after `timeout_s`. It keeps running: the caller waits again, or cancels it.

    >>> batch = client.submit("requests.jsonl", stage="email")
    >>> try:
    ...     batch.wait(timeout_s=0)
    ... except TimeoutError:  # or batchfile.WaitTimeout
    ...     print(batch.cancel().reason)
    canceled
    """


class BatchFailed(BatchfileError):
    """A batch ended before it had any results: its input could not be read. The message says why.

    >>> try:
    ...     results = list(done.results())
    ... except batchfile.BatchFailed as error:
    ...     print("fix the input:", error)
    """


class SettingsError(BatchfileError):
    """A setting, an option, an address or a key cannot be used. A process prints it and stops.

    >>> try:
    ...     client.submit("requests.jsonl", stage="emial")
    ... except batchfile.SettingsError as error:
    ...     print(error)
    stage: 'emial' is unknown; use one of email, polish, sales_intel, subject
    """


class OutputTaken(BatchfileError):
    """The output has results of a run that differs, and none can be kept. The caller chooses another path or restarts.

    >>> receipt = batchfile.run("requests.jsonl", "results.jsonl", engine="echo", progress=False)
    >>> try:
    ...     batchfile.run("requests.jsonl", "results.jsonl", engine="echo", max_tokens=9, progress=False)
    ... except batchfile.OutputTaken:
    ...     receipt = batchfile.run(
    ...         "requests.jsonl", "results.jsonl", engine="echo", max_tokens=9, restart=True, progress=False
    ...     )
    >>> receipt.counts.succeeded
    2
    """


class StoreError(BatchfileError):
    """An error of the store. Callers catch the subclasses."""


class PreconditionFailed(StoreError):
    """A conditional write failed. The caller reads the object back and decides by its content."""


class ObjectChanged(StoreError):
    """An object no longer has the etag that was pinned. The caller ends the batch as `input_changed`."""


class ObjectMissing(StoreError):
    """An object that must exist does not. The caller treats it as damage, or as not yet created."""


class StoreUnavailable(StoreError):
    """The store did not answer, or is temporarily unavailable. The outcome of a write is unknown. Wait, retry."""


class StoreFull(StoreUnavailable):
    """The store is full. A service waits until a person frees space; a run on one machine reports it and ends."""


class StoreUnfit(StoreError):
    """The store does not enforce conditional writes. The process does not use it."""


class LeaseLost(BatchfileError):
    """Another runner has the shard, or it is closed. The caller drops it, aborts its requests and writes nothing."""


class ShardClosed(LeaseLost):
    """The batch of the shard is ending or was removed. Unlike a lost lease, this is expected."""


class ServiceUnavailable(BatchfileError):
    """An HTTP service did not answer, or is temporarily unavailable. The outcome is unknown. Wait, retry."""


class ConverterKilled(BatchfileError):
    """The process that reads a file was killed, perhaps out of memory. The caller counts it as its own crash."""


class BatchDamaged(BatchfileError):
    """Stored documents contradict each other. The caller stops and reports it."""


class RecordDamaged(BatchDamaged):
    """A stored record cannot be read, even after retries. The caller leaves it alone, or replaces it on demand.

    `key` and `etag`: of the object, so that only these bytes are replaced, and not a record restored meanwhile.
    """

    def __init__(self, message: str, *, key: str, etag: str) -> None:
        super().__init__(message)
        self.key = key
        self.etag = etag


class RecordNewer(BatchDamaged):
    """A newer version of batchfile wrote a record. The caller leaves it alone: unknown fields would be lost."""


class EngineDead(BatchfileError):
    """The engine cannot continue. The caller closes it, builds another and runs the in-flight requests again."""


def install_hint(extra: str) -> str:
    """How to install a missing extra, for a message."""
    return f"pip install 'batchfile[{extra}]', or '.[{extra}]' in a checkout"


def check_installed(package: str, *, extra: str, what: str) -> None:
    """`what`: the feature that needs the package. Raises: SettingsError naming the extra."""
    if find_spec(package) is None:
        raise SettingsError(f"{what} needs {package}, which is not installed: {install_hint(extra)}")
