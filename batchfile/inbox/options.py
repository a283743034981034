"""The options of a dropped file, in a file next to it: `name.batch.toml` for `name.jsonl`. Pure."""

import re
import tomllib
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from batchfile.errors import UNREADABLE, InvalidFile
from batchfile.lines.formats.shared import TOKENS_MAX
from batchfile.types import REUSE_CHARS_MAX

OPTIONS_ENDING = ".batch.toml"
OPTIONS_BYTES_MAX = 64 * 1024
CALLBACK_CHARS_MAX = 2048
_CALLBACK = re.compile(r"https?://[^\s/?#@]+(/[^\s#]*)?")


class InboxOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`stage`: instead of the folder's. `priority`: 0 (first) to 9. `deadline`: when the batch expires.

    `max_tokens` and `temperature`: for requests without them. `results`: Parquet is written in addition to the lines.
    `callback`: the URL that is notified of the end. `move_done` None: as the settings say. `reuse`: the id of an ended
    batch, or "auto": results that need not be generated again.
    """

    stage: Annotated[str, Meta(min_length=1)] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    deadline: Annotated[datetime, Meta(tz=True)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=TOKENS_MAX)] = 2048
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    results: Literal["jsonl", "parquet"] = "jsonl"
    callback: Annotated[str, Meta(max_length=CALLBACK_CHARS_MAX)] | None = None
    move_done: bool | None = None
    reuse: Annotated[str, Meta(min_length=1, max_length=REUSE_CHARS_MAX)] | None = None


_MUST_BE = {
    "stage": "the name of a stage",
    "priority": "a whole number from 0 (first) to 9",
    "deadline": "a time with its time zone, such as 2030-01-31T18:00:00Z",
    "max_tokens": f"a whole number from 1 to {TOKENS_MAX}",
    "temperature": "a number from 0 to 2",
    "results": "'jsonl' or 'parquet'",
    "callback": f"a URL of at most {CALLBACK_CHARS_MAX} characters",
    "move_done": "true or false",
    "reuse": "the id of an ended batch, or 'auto'",
}


def _why(data: bytes) -> str | None:
    """What is wrong with the options; None if nothing is found."""
    try:
        given = tomllib.loads(data.decode())
    except tomllib.TOMLDecodeError as error:
        return f"is not valid TOML: {error}; write `key = value` lines with text in double quotes"
    except UnicodeDecodeError:
        return "is not UTF-8; save it as UTF-8"
    except UNREADABLE:
        return "has a value that is too long or nested too deeply; write `key = value` lines"
    for key, value in given.items():
        if key not in _MUST_BE:
            return f"{key!r} is an unknown option"
        try:
            msgspec.convert({key: value}, InboxOptions)
        except UNREADABLE:
            return f"{key}: must be {_MUST_BE[key]}, got {str(value)[:80]!r}"
    return None


def read_options(name: str, data: bytes) -> InboxOptions:
    """Raises: InvalidFile."""
    try:
        options = msgspec.toml.decode(data, type=InboxOptions)
    except UNREADABLE as error:
        raise InvalidFile(f"{name}: {_why(data) or error}; the options are {', '.join(_MUST_BE)}") from None
    if options.callback is not None and not _CALLBACK.fullmatch(options.callback):
        raise InvalidFile(
            f"{name}: callback: must be an http:// or https:// URL without a user, without # and with a / before any ?"
        )
    return options
