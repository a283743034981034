"""What a person may ask for beside a dropped file: `name.batch.toml` for `name.jsonl`. Pure."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from batchfile.errors import InvalidFile

OPTIONS_ENDING = ".batch.toml"
OPTIONS_BYTES_MAX = 64 * 1024
CALLBACK = r"^https?://[^\s/?#@]+(/[^\s#]*)?$"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`stage`: instead of what the folder says. `priority`: 0 (first) to 9. `deadline`: when the batch expires.

    `max_tokens` and `temperature`: of requests that do not say. `results`: Parquet is written beside the lines, not
    instead. `callback`: who is told of the end. `move_done` None: what the settings say.
    """

    stage: str | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    deadline: Annotated[datetime, Meta(tz=True)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] = 2048
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    results: Literal["jsonl", "parquet"] = "jsonl"
    callback: Annotated[str, Meta(pattern=CALLBACK, max_length=2048)] | None = None
    move_done: bool | None = None


def read_options(name: str, data: bytes) -> Options:
    """Raises: InvalidFile."""
    try:
        return msgspec.toml.decode(data, type=Options)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        known = ", ".join(Options.__struct_fields__)
        raise InvalidFile(f"{name}: can not be used: {error}; options are {known}") from None
