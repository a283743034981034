"""How the rows of one file become requests, and how their results become rows again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import msgspec

from batchfile.lines.kinds import FileKind, ending_of
from batchfile.rows.answers import answered_rows
from batchfile.rows.prompt import AnswerColumns, RowPrompt, request_lines
from batchfile.rows.read import read_rows
from batchfile.rows.write import write_rows

Chunks = Callable[[], Iterable[bytes]]  # opens the same bytes with each call


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredTable:
    """What is needed to write the answers as rows; stored with a batch. `is_raw`: as of Table.

    `layout`, `types`, `delimiter`, `has_bom`: of the input.
    """

    columns: AnswerColumns
    layout: str
    types: str = ""
    delimiter: str = ""
    is_raw: bool = False
    has_bom: bool = False

    def write(self, requests: Chunks, results: Chunks, file: BinaryIO, output: str | None) -> None:
        """`requests`: the lines that were made of the rows; `results`: a native line for each. `output`: its name says
        the format; None: stdout, which gets the layout of the input, or JSONL. Raises: OSError.
        """
        same = {"csv": ".tsv" if self.delimiter == "\t" else ".csv", "text": ".txt"}.get(self.layout, "")
        name, columns = output or f"stdout{same}", self.columns
        if ending_of(name) == ".txt":  # which has one value of each row
            columns = replace(columns, fields=())
        write_rows(
            lambda: answered_rows(requests(), results(), columns),
            file,
            name,
            column=columns.into,
            last=columns.added,
            delimiter=self.delimiter,
            has_bom=self.has_bom,
            types=self.types,
            is_raw=self.is_raw,
        )

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


def decode_table(text: str) -> AnsweredTable:
    return msgspec.json.decode(text, type=AnsweredTable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a file and the prompt over them. `is_raw`: a text is one prompt, and its answer is written as it is.

    `columns`: those that the answers add.
    """

    kind: FileKind
    prompt: RowPrompt
    columns: AnswerColumns
    is_raw: bool = False

    def requests(self, chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
        """The rows of the file `name` as request lines, in chunks. Raises: InvalidFile."""
        return request_lines(read_rows(chunks, self.kind, name, is_one=self.is_raw), self.prompt)

    @property
    def answered(self) -> AnsweredTable:
        kind = self.kind
        return AnsweredTable(
            columns=self.columns,
            layout=kind.layout,
            types=kind.types,
            delimiter=kind.delimiter,
            is_raw=self.is_raw,
            has_bom=kind.has_bom,
        )
