"""Every error that batchfile raises on purpose.

    BatchfileError
    ├── InvalidFile          the input file as a whole is refused; nothing ran
    │   ├── RequestRefused       an upload is refused for one of its requests
    │   └── TooLarge             the input is over a limit that was set
    ├── KeyReused            an idempotency key stands for another request
    ├── InvalidRequest       one request can never be served; it becomes an errored result
    │   └── NotFound             there is no such batch
    ├── NotEnded             a batch has not ended; wait for it, or cancel it
    │   └── WaitTimeout          it had not ended in time; it keeps running, wait again (also a TimeoutError)
    ├── BatchFailed          a batch ended before it had any results; fix the input and submit it again
    ├── SettingsError        a setting has a wrong value; the process stops
    ├── OutputTaken          the output path belongs to another run
    ├── StoreError           something about the store
    │   ├── PreconditionFailed   a conditional write did not (or perhaps did) take effect: read back
    │   ├── ObjectChanged        a pinned object is no longer the one that was pinned
    │   ├── ObjectMissing        an object that must exist does not
    │   ├── StoreUnavailable     the store does not answer; wait and try again
    │   │   └── StoreFull        there is no room; only a person can help
    │   └── StoreUnfit           the store ignores conditions; refuse to use it
    ├── LeaseLost            a shard is someone else's now; drop it at once, write nothing
    │   └── ShardClosed          its batch is ending, or was removed: nobody has the shard any more
    ├── ServiceUnavailable   a service does not answer; wait and try again
    ├── ConverterKilled      the process that converts a file was killed from outside; try again, a few times
    ├── BatchDamaged         the stored documents of a batch contradict each other; stop and report
    │   ├── RecordDamaged        a stored record cannot be read; a cancel, a delete or a restart may replace it
    │   └── RecordNewer          a newer version wrote a record; never write, cancel or delete it
    └── EngineDead           the engine can not go on; build another one

A class exists only where a caller acts differently. A message says what happened and what to do.

>>> issubclass(batchfile.errors.TooLarge, batchfile.InvalidFile), issubclass(batchfile.WaitTimeout, TimeoutError)
(True, True)
"""

from importlib.util import find_spec

# What a JSON decoder raises for bytes that it cannot read: every msgspec error and UnicodeDecodeError is a ValueError.
# Which of them comes for what differs between versions, so nothing asks.
UNREADABLE = (ValueError, RecursionError)


class BatchfileError(Exception):
    """The root: nothing else is raised on purpose.

    >>> try:
    ...     batchfile.connect("./nowhere").batch("batch_0123456789ab")
    ... except batchfile.BatchfileError as error:
    ...     print(error)
    store ./nowhere: there is no such directory
    """


class InvalidFile(BatchfileError):
    """The input as a whole can not be used. The caller refuses it before any engine is loaded.

    >>> try:
    ...     batchfile.run("leads.jsonl", "results.jsonl", engine="echo")
    ... except batchfile.InvalidFile as error:
    ...     print(error)
    leads.jsonl: there is no such file
    """


class RequestRefused(InvalidFile):
    """One request of an upload is refused, and so is the upload. `index` counts requests from 0."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class TooLarge(InvalidFile):
    """The input is larger than a limit allows. The caller answers 413: the same in pieces is fine."""


class KeyReused(BatchfileError):
    """An idempotency key came with another request than before. The caller answers 422; nothing was made."""


class InvalidRequest(BatchfileError):
    """One request can never be served. The caller writes an errored result and goes on.

    `type` is the error type of the result line, `invalid_request_error` unless said otherwise.
    """

    def __init__(self, message: str, type: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.type = type


class NotFound(InvalidRequest):
    """There is no such batch, or it was deleted. The caller checks the id, or submits the file.

    >>> try:
    ...     client.batch("batch_0123456789ab")
    ... except batchfile.NotFound:
    ...     batch = client.submit("requests.jsonl", stage="email")
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, type="not_found_error")


class NotEnded(BatchfileError):
    """A batch has not ended, and what was asked needs its end. The caller waits for it, or cancels it.

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
    """A setting, an option, an address or a key can not be used. A process prints it and stops.

    >>> try:
    ...     client.submit("requests.jsonl", stage="emial")
    ... except batchfile.SettingsError as error:
    ...     print(error)
    stage: 'emial' is unknown; use one of email, polish, sales_intel, subject
    """


class OutputTaken(BatchfileError):
    """The output path belongs to another run. The caller chooses another path or restarts.

    >>> receipt = batchfile.run("requests.jsonl", "results.jsonl", engine="echo", progress=False)
    >>> try:
    ...     batchfile.run("requests.jsonl", "results.jsonl", engine="echo", limit=1, progress=False)
    ... except batchfile.OutputTaken:
    ...     receipt = batchfile.run(
    ...         "requests.jsonl", "results.jsonl", engine="echo", limit=1, restart=True, progress=False
    ...     )
    >>> receipt.counts.succeeded
    1
    """


class StoreError(BatchfileError):
    """Something about the store. Callers catch the subclasses."""


class PreconditionFailed(StoreError):
    """A conditional write was refused. The caller reads the object back and decides by what is inside."""


class ObjectChanged(StoreError):
    """An object is no longer the one whose etag was pinned. The caller ends the batch as `input_changed`."""


class ObjectMissing(StoreError):
    """An object that must exist does not. The caller treats it as damage, or as not yet created."""


class StoreUnavailable(StoreError):
    """The store did not answer, or said that it can not now. The outcome of a write is unknown. Wait, retry."""


class StoreFull(StoreUnavailable):
    """There is no room. A service waits for a person to make some; a run on one machine says so and ends."""


class StoreUnfit(StoreError):
    """The store does not keep its conditions. The process refuses to use it."""


class LeaseLost(BatchfileError):
    """The shard is someone else's, or closed. The caller drops it, aborts its requests and writes nothing."""


class ShardClosed(LeaseLost):
    """The batch of the shard is ending, or is gone: to drop it is no sign of trouble, which a lost lease is."""


class ServiceUnavailable(BatchfileError):
    """A service over HTTP did not answer, or said that it can not now. The outcome is unknown. Wait, ask again."""


class ConverterKilled(BatchfileError):
    """The process that reads a file was killed, for want of memory perhaps. The caller counts it as its own death."""


class BatchDamaged(BatchfileError):
    """Stored documents contradict each other. The caller stops and reports; nothing is guessed."""


class RecordDamaged(BatchDamaged):
    """A stored record cannot be read, however often. The caller leaves it alone, or replaces it on demand.

    `key` and `etag`: of the object, so that exactly these bytes are replaced and nothing that is restored meanwhile.
    """

    def __init__(self, message: str, *, key: str, etag: str) -> None:
        super().__init__(message)
        self.key = key
        self.etag = etag


class RecordNewer(BatchDamaged):
    """A newer version of batchfile wrote a record. The caller leaves it alone: what it does not know would be lost."""


class EngineDead(BatchfileError):
    """The engine can not go on. The caller closes it, builds another and runs the in-flight requests again."""


def install_hint(extra: str) -> str:
    """What installs an extra that is missing, for a message."""
    return f"pip install 'batchfile[{extra}]', or '.[{extra}]' in a checkout"


def check_installed(package: str, *, extra: str, what: str) -> None:
    """`what`: that needs the package. Raises: SettingsError naming the extra."""
    if find_spec(package) is None:
        raise SettingsError(f"{what} needs {package}, which is not installed: {install_hint(extra)}")
