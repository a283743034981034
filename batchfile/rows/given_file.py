"""A file that somebody gave to a service, in memory, and the requests that it becomes. Pure.

Its template is rendered in the service's process, so it may insert columns and nothing else: a loop or a product could
use any amount of time and memory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from batchfile.errors import InvalidFile, SettingsError, TooLarge
from batchfile.lines.kinds import KIND_BYTES, FileKind, detect, refusal
from batchfile.lines.split_document import elements
from batchfile.rows.prompt import RowPrompt, request_lines
from batchfile.rows.read import read_rows

ROWS_BYTES_MAX = 8 * 1024 * 1024
PROMPT_CHARS_MAX = 20_000
SLOTS_MAX = 16
CHUNK_BYTES = 256 * 1024
_SLOT = re.compile(r'\{\{\s*(?:[^\W\d]\w*|row\["[^"\\\n{}]*"\])\s*\}\}')


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFile:
    """A file as it was dropped, and how its rows become requests. `prompt`: a template over the columns."""

    name: str
    data: memoryview
    kind: FileKind
    prompt: str | None

    @classmethod
    def of(cls, data: memoryview, name: str, prompt: str | None) -> Self:
        return cls(name=name, data=data, kind=detect(name, bytes(data[:KIND_BYTES])), prompt=prompt or None)

    @property
    def advice(self) -> str | None:
        """Why it cannot be submitted as it is; None: it can."""
        if self.kind.is_ready or (self.kind.content == "rows" and (self.prompt or self.kind.has_prompts)):
            return None
        if self.kind.content == "rows":
            return f"{self.name}: is {self.kind.described}; write a prompt over its columns"
        return refusal(self.kind, self.name)

    def lines(self) -> Iterator[bytes]:
        """Its requests as JSON Lines, in chunks. Raises: InvalidFile, also RequestRefused and TooLarge."""
        if self.advice is not None:
            raise InvalidFile(self.advice)
        if self.kind.content != "rows":
            return elements(self._chunks(), self.name) if self.kind.is_array else self._chunks()
        if len(self.data) > ROWS_BYTES_MAX:
            limit = ROWS_BYTES_MAX // 2**20
            raise TooLarge(f"{self.name}: rows are converted here up to {limit} MiB; use `batchfile submit` for more")
        chunks = elements(self._chunks(), self.name) if self.kind.is_array else self._chunks()
        try:
            prompt = RowPrompt(prompt=_checked(self.prompt), is_command=False)
        except SettingsError as error:
            raise InvalidFile(str(error)) from None
        prompt.check(self.name, self.kind.columns)
        return request_lines(read_rows(chunks, self.kind, self.name), prompt)

    def _chunks(self) -> Iterator[bytes]:
        return (bytes(self.data[at : at + CHUNK_BYTES]) for at in range(0, len(self.data), CHUNK_BYTES))


def _checked(prompt: str | None) -> str | None:
    """Raises: InvalidFile if the template does more than insert columns."""
    if prompt is None:
        return None
    pieces = _SLOT.split(prompt)
    if len(prompt) > PROMPT_CHARS_MAX or len(pieces) - 1 > SLOTS_MAX:
        raise InvalidFile(f"prompt: use at most {PROMPT_CHARS_MAX:,} characters and {SLOTS_MAX} columns here")
    if any(re.search(r"\{[{%#]|\{$", piece) for piece in pieces):
        raise InvalidFile(
            'prompt: here it can only insert columns, as {{ column }} or {{ row["a column"] }}; `batchfile submit` '
            "takes all of Jinja2"
        )
    return prompt
