"""The batch object of the Python API and the commands. Knows no HTTP and no store."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_args

from batchfile.client.base import LOOK_AGAIN_S, Access, BatchStatus, Download, Remote, ResultFormat
from batchfile.errors import (
    BatchFailed,
    InvalidFile,
    NotEnded,
    ServiceUnavailable,
    SettingsError,
    StoreUnavailable,
    WaitTimeout,
    check_installed,
)

if TYPE_CHECKING:  # reading a batch loads no line formats
    from batchfile.client.results import Result

AWAY_S_MAX = 900.0  # how long to wait for a service or a store that has answered before


class Batch:
    """A batch of a service or a store. From `Connection.submit`, `batch` or `batches`.

    `last_status`: the status as it was last read; reading it sends no request.

    >>> batch = client.submit("requests.jsonl", stage="email")
    >>> batch.last_status.state
    'open'
    >>> batch.cancel().reason
    'canceled'
    """

    def __init__(self, open_remote: Callable[[Access], Remote], status: BatchStatus) -> None:
        self._open = open_remote
        self.last_status = status
        self._download: Download | None = None  # of the results, which never change

    def __repr__(self) -> str:
        return f"<batchfile.Batch {self.id} {self.last_status.state}>"

    @property
    def id(self) -> str:
        return self.last_status.batch_id

    def status(self) -> BatchStatus:
        """Its current status. Raises: NotFound where it was deleted."""
        self.last_status = self._open("read").batch(self.id)
        return self.last_status

    def watch(self, *, timeout_s: float | None = None, every_s: float = LOOK_AGAIN_S) -> Iterator[BatchStatus]:
        """Its status every `every_s` seconds, and last as it ended. Waits for a service that is unavailable.

        Raises: WaitTimeout after `timeout_s`; the batch keeps running.
        """
        started_at = seen_at = time.monotonic()
        while True:
            try:
                status = self.status()
            except (ServiceUnavailable, StoreUnavailable):
                if time.monotonic() - seen_at > AWAY_S_MAX:
                    raise
            else:
                seen_at = time.monotonic()
                yield status
                if status.has_ended:
                    return
            left_s = float("inf") if timeout_s is None else started_at + timeout_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(f"{self._how_far()} after {timeout_s:g} s; it keeps running: wait again or cancel()")
            time.sleep(min(every_s, left_s))

    def wait(self, timeout_s: float | None = None) -> BatchStatus:
        """Wait until it has ended; `reason` and `counts` say how.

        Raises: WaitTimeout, which is a TimeoutError, after `timeout_s`; the batch keeps running.
        """
        for _ in self.watch(timeout_s=timeout_s):
            pass
        return self.last_status

    def results(self) -> "Iterator[Result]":
        """Every result in the order of the input, including requests that did not succeed.

        Raises: NotEnded; BatchFailed where it ended without any.
        """
        from batchfile.client.results import read_results

        return read_results(self._results().read(0))

    def tail(self) -> "Iterator[Result]":
        """Results as they arrive, each once, in any order, until it has ended."""
        from batchfile.client.results import read_result

        return (read_result(line) for lines in self.tail_lines() for line in lines)

    def tail_lines(self) -> Iterator[list[bytes]]:
        """The same as native lines; a list is empty if nothing arrived for a while."""
        return self._open("read").live(self.id)

    def results_size(self) -> int:
        """The size of the results in bytes. Raises: as `results`."""
        return self._results().size

    def save(
        self,
        output: str | os.PathLike[str] | BinaryIO,
        *,
        format: ResultFormat | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Write the results to a path, which is replaced only once all are there, or to a binary file.

        `format`: JSONL in the native or in OpenAI's format, or Parquet, for a path only. None: Parquet if the path
        ends with .parquet, else JSONL in the format of the input. The input lines that did not succeed are written to
        `PATH.errors.jsonl`, and why to `PATH.reasons.jsonl`. The same call resumes an interrupted download. `on_bytes`
        is called with the size of each chunk that arrived.

        Raises: as `results`; SettingsError for an unknown format and for a path that cannot be written.
        """
        from batchfile.client.results import in_format, save_results
        from batchfile.local.outputs import check_output

        if format is not None and format not in get_args(ResultFormat):
            known = ", ".join(get_args(ResultFormat))
            raise SettingsError(f"format: {format!r} is unknown; use one of {known}")
        if format == "parquet":
            check_installed("pyarrow", extra="parquet", what="format='parquet'")
        results, count = self._results(), on_bytes or (lambda num_bytes: None)
        if isinstance(output, str | os.PathLike):
            path = check_output(os.fspath(output), None)
            save_results(self._open("read"), self.last_status, results, path, count, format)
            return
        for chunk in in_format(self.last_status, results.read(0), format):
            output.write(chunk)
            count(len(chunk))

    def save_errors(self, output: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the input lines that did not succeed, ready to be fixed and run again. Raises: NotEnded."""
        self._check_ended()
        errors = self._open("read").download(self.last_status, "errors")
        data = iter(()) if errors is None or not errors.size else errors.read(0)
        if not isinstance(output, str | os.PathLike):
            output.writelines(data)
            return
        with Path(output).open("wb") as file:
            file.writelines(data)

    def report(
        self,
        output: str | os.PathLike[str],
        *,
        gpu_hour: float | None = None,
        on_bytes: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """Write a report to this path, as one HTML file. `gpu_hour`: the price of a GPU in US dollars, for the cost;
        None: as the run was told. `on_bytes`, and what is raised: as `save`.
        """
        from batchfile.client.report.page import write_report
        from batchfile.local.outputs import check_place, replaced

        if not os.fspath(output).endswith((".html", ".htm")):
            raise SettingsError(f"{os.fspath(output)}: a report is HTML; use a name ending in .html")
        path, results = check_place(os.fspath(output), None), self._results()
        with replaced(path) as temporary:
            write_report(self.last_status, results.read(0), temporary, gpu_hour=gpu_hour, on_bytes=on_bytes)

    def cancel(self) -> BatchStatus:
        """End it early. Finished requests keep their results; the others become `canceled`. No effect once ended."""
        self.last_status = self._open("write").cancel(self.id)
        return self.last_status

    def rerun_failed(self) -> "Batch":
        """Create a batch of its requests that did not succeed. Raises: NotEnded; InvalidFile where all succeeded."""
        try:
            return Batch(self._open, self._open("write").rerun(self.id))
        except InvalidFile as error:  # the service answers both with the same HTTP status
            if self.status().has_ended:
                raise
            raise NotEnded(f"{self._how_far()}: wait for its end, or cancel it first") from error

    def delete(self, *, now: bool = False) -> None:
        """Delete it; it can no longer be read. `now`: its data is removed before this returns. Raises: NotEnded."""
        try:
            self._open("write").delete(self.id, now=now)
        except NotEnded as error:
            self.status()
            raise NotEnded(f"{self._how_far()}: wait for its end, or cancel it first") from error

    def _results(self) -> Download:
        self._check_ended()
        self._download = self._download or self._open("read").download(self.last_status, "results")
        if self._download is None:
            status = self.last_status
            raise BatchFailed(f"{self.id} ended before any request ran: {status.detail or status.reason}")
        return self._download

    def _check_ended(self) -> None:
        if not self.last_status.has_ended and not self.status().has_ended:
            raise NotEnded(f"{self._how_far()}: wait() for its end, or tail() its results")

    def _how_far(self) -> str:
        status = self.last_status
        return f"{self.id} has not ended ({status.counts.finished:,} of {status.total:,} requests are done)"
