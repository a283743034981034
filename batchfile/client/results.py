"""Reads the results of a batch as Python objects, and saves them as files. Interrupted downloads are resumed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from batchfile.client.base import BatchFile, BatchStatus, Download, Remote, ResultFormat
from batchfile.errors import BatchfileError, SettingsError
from batchfile.lines.file_formats import file_chunks
from batchfile.lines.formats.openai_results import openai_file
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import RESULT_BYTES_MAX, NativeChoice, NativeError, NativeMedia, NativeResult, decode_result
from batchfile.local.outputs import ERRORS_ENDING, PARQUET_ENDING, REASONS_ENDING
from batchfile.types import Choice, PromptLogprobs, ResultStatus, StopReason, TokenLogprob, ToolCall, Usage, Vector

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultError:
    """Why a request has no answer. `code`: `invalid_request_error` if the request itself must be fixed.

    `http_status`: the status that the endpoint of an HTTP engine answered.
    """

    code: str
    message: str
    http_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one request.

    `status`: `succeeded`; `errored`, then `error` says why; `canceled` or `expired`: the batch ended before it ran.
    `choices`: one answer, or the requested `n`; empty if it did not succeed. `vectors`: of an embedding, or
    the scores, probabilities or vectors of other requests without text. `labels`: of a classification.
    `usage`: in tokens. `line`: the line in the input file, if the request has no custom_id.
    `prompt_logprobs`, `prompt_token_ids`: if requested; the logprobs and token ids of an answer are in its choice.
    `media`: of the request, in its order, each with its `type` and `sha256`.

    >>> [(result.custom_id, result.text) for result in done.results()]
    [('a', 'Hello.'), ('b', 'Goodbye.')]
    """

    custom_id: str | None
    status: ResultStatus
    choices: tuple[Choice, ...]
    vectors: tuple[Vector, ...]
    labels: tuple[str | None, ...]
    model: str | None
    usage: Usage
    error: ResultError | None
    line: int | None
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: tuple[int, ...] | None
    media: tuple[NativeMedia, ...]

    @property
    def text(self) -> str | None:
        """The text of the first choice; None without choices."""
        return self.choices[0].text if self.choices else None

    @property
    def is_succeeded(self) -> bool:
        return self.status == "succeeded"


def read_results(chunks: Iterable[bytes]) -> Iterator[Result]:
    """The results from native lines, one at a time."""
    for line in iter_lines(chunks, line_bytes_max=RESULT_BYTES_MAX):
        yield read_result(line.data or b"")


def read_result(line: bytes) -> Result:
    found = decode_result(line)
    return Result(
        custom_id=found.custom_id,
        status=cast(ResultStatus, found.status),
        choices=_choices(found),
        vectors=tuple(msgspec.json.decode(one, type=Vector) for one in found.vectors or ()),
        labels=tuple(found.labels or ()),
        model=found.model,
        usage=_usage(found),
        error=_error(found.error),
        line=found.line,
        prompt_logprobs=_decoded(found.prompt_logprobs, _PromptToken),
        prompt_token_ids=None if found.prompt_token_ids is None else tuple(found.prompt_token_ids),
        media=tuple(found.media or ()),
    )


_PromptToken = dict[str, dict[str, Any]] | None


def _decoded(given: list[msgspec.Raw] | None, kind: Any) -> list[Any] | None:
    return None if given is None else [msgspec.json.decode(one, type=kind) for one in given]


def _error(error: NativeError | None) -> ResultError | None:
    if error is None:
        return None
    return ResultError(code=error.type, message=error.message, http_status=error.http_status)


def _usage(found: NativeResult) -> Usage:
    usage = found.usage
    if usage is None:
        return Usage(unknown=int(found.status == "succeeded"))
    return Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cached_tokens=usage.cached_tokens)


def _choices(found: NativeResult) -> tuple[Choice, ...]:
    choices = found.choices
    if choices is None and found.message is not None:
        reason = found.stop_reason or "end_turn"
        choices = [
            NativeChoice(message=found.message, stop_reason=reason, logprobs=found.logprobs, token_ids=found.token_ids)
        ]
    return tuple(_choice(one, None if index else found.stop_sequence) for index, one in enumerate(choices or ()))


def _choice(choice: NativeChoice, stop_sequence: str | None) -> Choice:
    blocks = choice.message.content
    thinking = [block.thinking for block in blocks if block.type == "thinking"]
    logprobs = _decoded(choice.logprobs, TokenLogprob)
    return Choice(
        text="".join(block.text for block in blocks if block.type == "text"),
        stop_reason=cast(StopReason, choice.stop_reason),
        stop_sequence=stop_sequence,
        calls=tuple(ToolCall(block.id, block.name, block.input or {}) for block in blocks if block.type == "tool_use"),
        thinking="".join(thinking) if thinking else None,
        logprobs=None if logprobs is None else tuple(logprobs),
        token_ids=None if choice.token_ids is None else tuple(choice.token_ids),
    )


def fetch(download: Download, path: str, on_bytes: OnBytes) -> None:
    """Download to `path`, which is replaced only by a complete, verified file. A partial one is kept next to it.

    Raises: BatchfileError where the digest does not match; OSError where the disk is full.
    """
    os.replace(_arrived(download, path, on_bytes), path)


def save_results(
    remote: Remote,
    batch: BatchStatus,
    results: Download,
    path: str,
    on_bytes: OnBytes,
    form: ResultFormat | None = None,
) -> None:
    """Write the results to `path`; next to it the input lines that did not succeed, if any, and why each did not.

    `form` None: Parquet by the name of `path`, else the format of the batch's input.
    """
    form = form or ("parquet" if path.endswith(PARQUET_ENDING) else batch.dialect)
    if form == "native":
        fetch(results, path, on_bytes)
    else:
        arrived = _arrived(results, path, on_bytes)
        made = _beside(path, "unfinished")
        if form == "parquet":
            from batchfile.lines.parquet import write_results

            lines = iter_lines(file_chunks(arrived), line_bytes_max=RESULT_BYTES_MAX)
            write_results((line.data or b"" for line in lines), made)
        else:
            with open(made, "wb") as file:
                for chunk in in_format(batch, file_chunks(arrived), form):
                    file.write(chunk)
        os.replace(made, path)
        os.unlink(arrived)
    endings: dict[BatchFile, str] = {"errors": ERRORS_ENDING, "reasons": REASONS_ENDING}
    for name, ending in endings.items():
        download = remote.download(batch, name)
        if download is not None and download.size:
            fetch(download, path + ending, on_bytes)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path + ending)


def in_format(batch: BatchStatus, chunks: Iterator[bytes], form: ResultFormat | None = None) -> Iterator[bytes]:
    """Native result lines in this format; None: the format of the input. Raises: SettingsError for Parquet."""
    form = form or batch.dialect
    if form == "parquet":
        raise SettingsError("Parquet cannot be written to an open file; use a path")
    if form == "native":
        return chunks
    return openai_file(chunks, batch_id=batch.batch_id, created=int(batch.created_at), is_output=None)


def _arrived(download: Download, path: str, on_bytes: OnBytes) -> str:
    """Download the file, or the rest of it, to a temporary path; returns that path once it is complete and verified."""
    partial = _beside(path, f"{download.sha256[:12]}.partial")
    if os.path.exists(partial) and os.path.getsize(partial) > download.size:
        os.unlink(partial)
    with open(partial, "ab+") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        size = file.tell()
        on_bytes(size)
        for chunk in download.read(size) if size < download.size else ():
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            on_bytes(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if size != download.size or not digest.hexdigest().startswith(download.sha256[:32]):
        os.unlink(partial)
        raise BatchfileError(f"{path}: the download is damaged; run the same command again")
    return partial


def _beside(path: str, kind: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{kind}")
