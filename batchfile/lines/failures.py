"""Groups requests that did not succeed by reason, in bounded memory, and says what to do about each. Pure.

A reason is the type of a failure, its HTTP status, and its message without what differs between requests.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import msgspec
from msgspec import Struct

from batchfile.errors import UNREADABLE
from batchfile.lines.result import REFUSALS, NativeError
from batchfile.types import FailureGroup

GROUPS_MAX = 20  # kept in a record and shown; the rest are counted as others
_COUNTED_MAX = 1_000  # reasons that are counted at a time; then the rare ones are forgotten
_READ_CHARS_MAX = 2_000  # of a message
_REASON_CHARS_MAX = 200
_ID_CHARS_MAX = 200

REJECTED = "invalid_request_error"  # the type of a request that is invalid, so that no answer was generated

_AGAIN = "Run it again."
_ADVICE = {
    REJECTED: "Fix the request as the message says, and run it again.",
    "api_error": _AGAIN,
    "authentication_error": "Check the API key of the endpoint, then run it again.",
    "billing_error": "Check the account of the endpoint, then run it again.",
    "canceled": "The batch was canceled before this ran: run it again if you still need the answer.",
    "content_filter": "Rephrase the request, or use another model.",
    "engine_crash": "Do not run it again unchanged: shorten it, or use another model, and report the crash.",
    "expired": "Add runners or allow more time (limits.completion_window_s), then run it again.",
    "input_changed": "Leave the input unchanged while it runs, and run it again.",
    "media_unavailable": "Check that the server or bucket answers, then run it again.",
    "model_error": "Run it again. If it keeps failing, change the prompt, the schema or max_tokens, or the model.",
    "not_found_error": "Check the name of the model and the address of the endpoint, then run it again.",
    "permission_error": "Check what the API key of the endpoint may use, then run it again.",
    "rate_limit_error": "Lower the concurrency, or raise the limit of the endpoint, then run it again.",
    "refusal": "Rephrase the request, or use another model.",
    "runner_crash": "Do not run it again unchanged: shorten it, or use another model, and report the crash.",
    "storage_error": "Check the store for lost objects, then run it again.",
}
_OTHER_ADVICE = "Read the messages in the results, then run it again."

_PLACE = re.compile(r"^(line \d+: |requests\[\d+\][.:] ?)")
_QUOTED = re.compile(r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`""")
_WORD = re.compile(r"[\w.+/=-]+")
_WORD_CHARS_MAX = 32  # longer ones are data
_SEVERAL = re.compile(r"…(?:[\s,]*…)+")


class _Failed(Struct, frozen=True):
    """What a result line says about a request that did not succeed."""

    custom_id: str | None = None
    status: str = "errored"
    error: NativeError = NativeError(type="api_error", message="")


class _Reason(Struct, frozen=True):
    """A line of a reasons file."""

    line: int
    type: str
    message: str
    custom_id: str | None = None
    status: str = "errored"
    http_status: int | None = None


class ResultLine(Protocol):
    """A finished request at `line` of its range, from 0, and its native result line."""

    @property
    def line(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def result(self) -> bytes: ...


_decoder = msgspec.json.Decoder(_Failed)
_reasons = msgspec.json.Decoder(_Reason)
_encoder = msgspec.json.Encoder()


def advice_of(type: str) -> str:
    """What to do about failures of this type: one sentence or two, the same words everywhere."""
    return _ADVICE.get(type, _OTHER_ADVICE)


def is_rejected(type: str) -> bool:
    """Was the request invalid, so that no answer was generated?"""
    return type == REJECTED


def reason_of(type: str, message: str) -> str:
    """The message without numbers, ids, quoted values and its place in the input; at most 200 characters.

    >>> reason_of("invalid_request_error", "line 7: max_tokens: 9000 exceeds 8192 of 'mistral-7b'")
    'max_tokens: … exceeds … of …'
    """
    return _reason(type, _PLACE.sub("", message[:_READ_CHARS_MAX]))


def example_of(message: str) -> str:
    """The beginning of one message, without its place in the input, on one line."""
    text = " ".join(_PLACE.sub("", message[:_READ_CHARS_MAX]).split())
    return text if len(text) <= _REASON_CHARS_MAX else text[: _REASON_CHARS_MAX - 1] + "…"


@lru_cache(maxsize=1_024)
def _reason(type: str, message: str) -> str:
    if type in REFUSALS:  # what follows is the model's answer
        message = message.partition(":")[0]
    text = _SEVERAL.sub("…", _WORD.sub(_without_value, _QUOTED.sub("…", message)))
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= _REASON_CHARS_MAX else text[: _REASON_CHARS_MAX - 1] + "…"


def _without_value(word: re.Match[str]) -> str:
    """Numbers, ids and digests have a digit. A dot or a slash after a word is not part of it."""
    text = word.group()
    if len(text) <= _WORD_CHARS_MAX and (text.isalpha() or not any(map(str.isdigit, text))):
        return text
    return "…" + text[len(text.rstrip(".-/=+")) :]


class FailureTally:
    """Counts failures by reason. `num_rejected`: all of them with this type, also those in no group any more.

    The most frequent reasons are kept. Memory: a thousand groups, whatever the messages are.
    """

    def __init__(self, groups: Iterable[FailureGroup] = ()) -> None:
        self.num_rejected = 0
        self._groups: dict[tuple[str, int | None, str], FailureGroup] = {}
        for group in groups:
            self.add(group)

    def add(self, group: FailureGroup) -> None:
        key = (group.type, group.http_status, group.message)
        known = self._groups.get(key)
        if known is None:
            self._groups[key] = group
            if len(self._groups) > _COUNTED_MAX:
                self._groups = dict(self._most(_COUNTED_MAX // 2))
        else:
            self._groups[key] = msgspec.structs.replace(known, num_requests=known.num_requests + group.num_requests)

    def add_result(self, result: bytes, row: int) -> bytes:
        """Count a native result line that did not succeed. Returns its line of the reasons file."""
        failed = _decoder.decode(result)
        return self._add(failed, row)

    def add_reason(self, reason: bytes, again: bytes = b"") -> bytes:
        """Count a line of a reasons file. `again`: the newer result of the same request; in OpenAI's format, it does
        not count. Returns its line of the new reasons file.
        """
        try:
            known = _reasons.decode(reason)
        except UNREADABLE:  # it was edited by hand
            return reason
        newer = _decoder.decode(again) if again else None
        if newer is not None and newer.error.message:
            return self._add(newer, known.line)
        error = NativeError(type=known.type, message=known.message, http_status=known.http_status)
        self._add(_Failed(known.custom_id, known.status, error), known.line)
        return reason

    def _add(self, failed: _Failed, row: int) -> bytes:
        result = failed.error
        self.num_rejected += is_rejected(result.type)
        group = FailureGroup(
            type=result.type,
            http_status=result.http_status,
            message=reason_of(result.type, result.message),
            num_requests=1,
            line=row,
            custom_id=failed.custom_id and failed.custom_id[:_ID_CHARS_MAX],
            example=example_of(result.message),
        )
        self.add(group)
        return _encoder.encode(
            {
                "line": row,
                "custom_id": failed.custom_id,
                "status": failed.status,
                "type": result.type,
                "message": result.message[:_READ_CHARS_MAX],
                "http_status": result.http_status,
            }
        )

    def top(self) -> tuple[FailureGroup, ...]:
        """The most frequent reasons first; of equals, the one that was seen first."""
        return tuple(group for _, group in self._most(GROUPS_MAX))

    def _most(self, num: int) -> list[tuple[tuple[str, int | None, str], FailureGroup]]:
        return sorted(self._groups.items(), key=lambda item: -item[1].num_requests)[:num]


def tally_of(lines: Iterable[ResultLine], first_row: int) -> FailureTally:
    """Of the `lines` that did not succeed, in a range whose first line is `first_row` of the input."""
    tally = FailureTally()
    for item in lines:
        if item.status != "succeeded":
            tally.add_result(item.result, first_row + item.line)
    return tally


def merged(*groups: Iterable[FailureGroup]) -> tuple[FailureGroup, ...]:
    """The most frequent reasons of all."""
    return FailureTally(group for some in groups for group in some).top()


def with_advice(groups: Iterable[FailureGroup]) -> tuple[FailureGroup, ...]:
    """For readers."""
    return tuple(msgspec.structs.replace(group, advice=advice_of(group.type)) for group in groups)
