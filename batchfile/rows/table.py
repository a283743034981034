"""How the rows of one file become requests, and how their results become rows again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import msgspec

from batchfile.lines.kinds import Kind
from batchfile.rows.answers import answered_rows
from batchfile.rows.prompt import AnswerColumns, RowPrompt, request_lines
from batchfile.rows.read import read_rows
from batchfile.rows.write import TableFormat, format_of, write_rows

Chunks = Callable[[], Iterable[bytes]]  # opens the same bytes with each call


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredTable:
    """What is needed to write the answers as rows; stored with a batch. All but `columns`: of the input."""

    columns: AnswerColumns
    layout: str
    types: str = ""
    delimiter: str = ""
    is_raw: bool = False

    def format_for(self, output: str | None) -> TableFormat:
        """By the name of the output. None: stdout, which gets the layout of the input, or JSONL."""
        same = {"csv": "-.tsv" if self.delimiter == "\t" else "-.csv", "text": "-.txt"}.get(self.layout, "-")
        name = output or same
        form = format_of(name, delimiter=self.delimiter, column=self.columns.into, is_raw=self.is_raw)
        return replace(form, types=self.types)

    def write(self, requests: Chunks, results: Chunks, file: BinaryIO, output: str | None) -> None:
        """`requests`: the lines that were made of the rows; `results`: a native line for each. Raises: OSError."""
        write_rows(lambda: answered_rows(requests(), results(), self.columns), file, self.format_for(output))

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


def decode_table(text: str) -> AnsweredTable:
    return msgspec.json.decode(text, type=AnsweredTable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a file and the prompt over them. `is_raw`: a text is one prompt, and its answer is written as it is.

    `columns`: those that the answers add.
    """

    kind: Kind
    prompt: RowPrompt
    columns: AnswerColumns
    is_raw: bool = False

    def requests(self, chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
        """The rows of the file `name` as request lines, in chunks. Raises: InvalidFile."""
        return request_lines(read_rows(chunks, self.kind, name, is_one=self.is_raw), self.prompt)

    @property
    def answered(self) -> AnsweredTable:
        return AnsweredTable(
            columns=self.columns,
            layout=self.kind.layout,
            types=self.kind.types,
            delimiter=self.kind.delimiter,
            is_raw=self.is_raw,
        )
