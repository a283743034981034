"""What a person may ask for beside a dropped file: `name.batch.toml` for `name.jsonl`. Pure."""

import re
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from batchfile.errors import UNREADABLE, InvalidFile
from batchfile.lines.chat import TOKENS_MAX

OPTIONS_ENDING = ".batch.toml"
OPTIONS_BYTES_MAX = 64 * 1024
CALLBACK_CHARS_MAX = 2048
_CALLBACK = re.compile(r"https?://[^\s/?#@]+(/[^\s#]*)?")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`stage`: instead of what the folder says. `priority`: 0 (first) to 9. `deadline`: when the batch expires.

    `max_tokens` and `temperature`: of requests that do not say. `results`: Parquet is written beside the lines, not
    instead. `callback`: who is told of the end. `move_done` None: what the settings say.
    """

    stage: Annotated[str, Meta(min_length=1)] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    deadline: Annotated[datetime, Meta(tz=True)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=TOKENS_MAX)] = 2048
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    results: Literal["jsonl", "parquet"] = "jsonl"
    callback: Annotated[str, Meta(max_length=CALLBACK_CHARS_MAX)] | None = None
    move_done: bool | None = None


def read_options(name: str, data: bytes) -> Options:
    """Raises: InvalidFile."""
    try:
        options = msgspec.toml.decode(data, type=Options)
    except UNREADABLE as error:
        known = ", ".join(Options.__struct_fields__)
        raise InvalidFile(f"{name}: can not be used: {error}; options are {known}") from None
    if options.callback is not None and not _CALLBACK.fullmatch(options.callback):
        raise InvalidFile(
            f"{name}: callback must be an http:// or https:// URL without a user and without #, with a / before any ?"
        )
    return options
