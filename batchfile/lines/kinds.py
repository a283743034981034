"""Detects what a file holds from its name and its first bytes: requests, rows, text, results, or something else. Pure.

The bytes are plain: compression and Parquet are told apart by `file_formats`. Rows are not read here.
"""

import csv
import io
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePath
from typing import Literal

import msgspec

from batchfile.errors import UNREADABLE
from batchfile.lines.envelope import KEYS, ROW_PROBLEM, own_fields
from batchfile.lines.framing import BOM
from batchfile.lines.json_scan import keys_of
from batchfile.lines.key_advice import typo_of

Layout = Literal["jsonl", "array", "document", "object", "csv", "text", "parquet"]
Content = Literal["requests", "rows", "results", "unknown"]

KIND_BYTES = 64 * 1024  # of plain bytes: enough to detect the kind; fewer are the whole file
PARQUET_MAGIC = b"PAR1"
PROMPT, MESSAGES = "prompt", "messages"  # columns that hold the prompt of a row
PACKED = (".gz", ".zst")
TEXT_ENDINGS = (".txt", ".text", ".md")
JSON_ENDINGS = (".jsonl", ".ndjson", ".jsonlines", ".json")
CSV_ENDINGS = (".csv", ".tsv", ".tab")
_DELIMITERS = ",;\t|"
_RECORDS_LOOKED_AT = 20
_LINES_LOOKED_AT = 100
_KEYS_LOOKED_AT = 1000
_COLUMNS_SHOWN = 12
_IDS = ("custom_id", "id", "uuid", "key", "index", "")

_ARRAY_START = re.compile(rb"\[\s*(.)", re.DOTALL)
_REQUESTS = re.compile(rb'"requests"\s*:\s*\[\s*')
_HEADER = re.compile(r"[^\W\d][\w.-]*( [\w.-]+)*")  # a column's name where a file's name does not say that it is CSV
_NAME = re.compile(r"[^\W\d]\w*")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """`layout`: how the items are written; `content`: what they are. `columns`: of rows, as far as the first bytes show
    them; () for Parquet, whose columns are at its end. `example`: the one with the most text, if values are known.
    `types`: of the columns of Parquet, an Arrow schema as base64. `delimiter`, `has_bom`: of CSV. `own_fields`: of
    requests that all have fields of their user next to custom_id; `metadata`: where jq is to move them.
    """

    layout: Layout
    content: Content
    columns: tuple[str, ...] = ()
    types: str = ""
    example: str = field(default="", compare=False)
    delimiter: str = ""
    has_bom: bool = False
    own_fields: tuple[str, ...] = ()
    metadata: str = ""

    @property
    def is_ready(self) -> bool:
        """Does it have requests that can run as they are?"""
        return self.content == "requests" and not self.own_fields

    @property
    def has_prompts(self) -> bool:
        """Can it run without a template?"""
        return self.layout == "text" or PROMPT in self.columns or MESSAGES in self.columns

    @property
    def is_array(self) -> bool:
        """Are its items the elements of one JSON array?"""
        return self.layout in {"array", "document"}

    @property
    def described(self) -> str:
        """What the file is, to follow "is"."""
        if self.content != "rows":
            return _DESCRIBED.get((self.layout, self.content)) or _DESCRIBED["jsonl", self.content]
        if self.layout == "text":
            return "plain text"
        if not self.columns:
            return "a Parquet table"
        named = {",": "CSV", "\t": "TSV"}.get(self.delimiter, f"CSV, separated by {self.delimiter!r},")
        known = {"csv": named, "jsonl": "JSONL of rows", "parquet": "a Parquet table"}
        columns = "column" if len(self.columns) == 1 else "columns"
        return f"{known.get(self.layout, 'a JSON array of rows')} with the {columns} {_some(self.columns)}"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _COLUMNS_SHOWN} more" if len(names) > _COLUMNS_SHOWN else ""
    return ", ".join(name or '""' for name in names[:_COLUMNS_SHOWN]) + more


_DESCRIBED = {
    ("jsonl", "requests"): "JSONL of requests",
    ("array", "requests"): "a JSON array of requests",
    ("document", "requests"): "a JSON document of requests",
    ("jsonl", "results"): "a file of results",
    ("jsonl", "unknown"): "JSON lines, but none can be read as an object",
    ("array", "unknown"): "a JSON array, but not of objects",
    ("document", "unknown"): "a JSON document, but its requests are not objects",
    ("parquet", "requests"): "a Parquet table of requests",
    ("object", "unknown"): "a JSON object that spans several lines",
}
_ITEMS = {"jsonl": ".", "array": ".[]", "document": ".requests[]"}  # in jq
_ADVICE = {
    "jsonl": "write each request as an object on its own line, or give text prompts a name ending in .txt",
    "array": "write each request as an object, or text prompts as the lines of a .txt file",
    "document": "write each request as an object",
    "object": "write each request on one line, for example with `jq -c .`",
}


def detect(name: str, first_bytes: bytes) -> FileKind:
    """The kind of the file `name`, which begins with `first_bytes` (up to KIND_BYTES). Never fails.

    An ending .csv, .tsv or .txt decides, unless the first line is a request. Without a known ending, as for stdin, the
    content alone decides.
    """
    kind = _detected(name, first_bytes)
    return replace(kind, has_bom=kind.layout == "csv" and first_bytes.startswith(BOM))


def _detected(name: str, first_bytes: bytes) -> FileKind:
    if first_bytes.startswith(PARQUET_MAGIC):
        return FileKind(layout="parquet", content="rows")
    head = first_bytes[:KIND_BYTES].removeprefix(BOM).lstrip(b"\r\n\t ")
    is_whole = len(first_bytes) < KIND_BYTES
    lines = [*islice(_lines(head, is_whole), _LINES_LOOKED_AT)]
    ending = ending_of(name)
    if ending in CSV_ENDINGS or ending in TEXT_ENDINGS:
        if lines and _is_request(_outline(lines[0])):
            return _of_objects("jsonl", [*map(_outline, lines)])
        return _of_csv(head, is_whole, ending) if ending in CSV_ENDINGS else _TEXT
    return _of_json(name, head, lines) or _of_prose(head, lines, is_whole, ending)


def _of_array(name: str, head: bytes) -> FileKind | None:
    """The kind if the items are the elements of one JSON array, else None; decodes none of them."""
    array = _ARRAY_START.match(head)
    if array is not None and (array[1] in {b"{", b"]"} or ending_of(name) == ".json"):
        return _of_items("array", head[array.start(1) :])
    items = _REQUESTS.search(head) if head.startswith(b"{") and b"requests" in _keys(head) else None
    return None if items is None else _of_items("document", head[items.end() :])


def _of_json(name: str, head: bytes, lines: list[bytes]) -> FileKind | None:
    """None: it is not JSON, and not named so."""
    array = _of_array(name, head)
    if array is not None:
        return array
    outlines = [*map(_outline, lines)]
    is_object = head.startswith(b"{")
    if is_object and len(lines) > 1 and b"\n{" not in head and not any(outlines[0].values()) and not any(outlines[1:]):
        return FileKind(layout="object", content="unknown")
    if any(outlines) or not lines:
        return _of_objects("jsonl", [outline for outline in outlines if outline])
    return FileKind(layout="jsonl", content="unknown") if is_object or ending_of(name) in JSON_ENDINGS else None


def _of_prose(head: bytes, lines: list[bytes], is_whole: bool, ending: str) -> FileKind:
    """CSV if the first line can only be the header of the others, else text."""
    table = _of_csv(head, is_whole, ending)
    is_spaced = f"{table.delimiter} ".encode() in lines[0]
    is_header = not is_spaced and all(map(_HEADER.fullmatch, table.columns)) and len(lines) > 1
    num = len(set(table.columns))
    is_table = is_header and 1 < num == _num_fields(head.decode("utf-8", "replace"), table.delimiter)
    return table if is_table else _TEXT


def refusal(kind: FileKind, path: str, name: str | None = None) -> str:
    """Why a file without requests cannot run as requests, and what to type instead. `path`: as its user wrote it, for
    the command. `name`: for the message, if it is another.
    """
    what = f"{name or path}: is {kind.described}"
    if kind.own_fields:
        whose = f"{what}, each with fields of your own next to custom_id: {_some(kind.own_fields)}"
        return f"{whose}; move them into metadata: `{_moved(kind, path)}`"
    if kind.content == "requests":
        return f"{what}; write each on its own line, for example with `jq -c '{_ITEMS[kind.layout]}'`"
    if kind.content == "results":
        return f"{what}, not of requests; run the file that it was made from, or the failed lines in its .errors.jsonl"
    if kind.content != "rows":
        return f"{what}; {_ADVICE[kind.layout]}"
    if kind.has_prompts:
        return f"{what}, which `{command_for(kind, path)}` runs"
    return f"{what}, not requests; write a prompt over its columns: `{command_for(kind, path)}`"


def command_for(kind: FileKind, path: str) -> str:
    """The command that runs a file of rows or text; an example, as its prompt is for the user to write."""
    out = f"answers{ending_of(path) if ending_of(path) in (*CSV_ENDINGS, '.parquet') else '.jsonl'}"
    prompt = "" if kind.has_prompts else f" --prompt {shlex.quote(_example(kind))}"
    return f"batchfile run {shlex.quote(path)}{prompt} -o {out}"


def _moved(kind: FileKind, path: str) -> str:
    """The command that moves the user's own fields into metadata."""
    names = [name if _NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in kind.own_fields]
    items = f"{_ITEMS[kind.layout]} | " if kind.is_array else ""
    deleted = ", ".join("." + name for name in names)
    program = shlex.quote(f"{items}{kind.metadata} += {{{', '.join(names)}}} | del({deleted})")
    packed = {".gz": "gzip -dc", ".zst": "zstd -dc"}.get(PurePath(path.lower()).suffix)
    file = shlex.quote("FILE" if path == "-" or "://" in path else path)
    return (
        f"{packed} {file} | jq -c {program} > requests.jsonl" if packed else f"jq -c {program} {file} > requests.jsonl"
    )


_TEXT = FileKind(layout="text", content="rows", columns=(PROMPT,))


def _is_id(name: str) -> bool:
    return name.lower() in _IDS or name.lower().endswith("_id")


def _example(kind: FileKind) -> str:
    name = kind.example or next((name for name in kind.columns if not _is_id(name)), "COLUMN")
    return "... {{ %s }} ..." % (name if _NAME.fullmatch(name) else f'row["{name}"]')


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, such as .csv; without that of a compression."""
    return PurePath(unpacked(name.lower())).suffix


def unpacked(name: str) -> str:
    """The name without the ending of a compression."""
    path = PurePath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in PACKED else name


def _lines(head: bytes, is_whole: bool) -> Iterator[bytes]:
    """The lines that are not blank. The last one is left out if it is cut, unless it is the only one."""
    lines = head.split(b"\n")
    if not is_whole and len(lines) > 1:
        lines.pop()
    return (line for raw in lines if (line := raw.removeprefix(BOM).strip(b"\r\t \0")))


def _keys(text: bytes) -> list[bytes]:
    """The first keys of the object that begins `text`, which may be cut or damaged."""
    return [key[1:-1] for key in islice(keys_of(text, 0, len(text), 0), _KEYS_LOOKED_AT)]


def _outline(line: bytes) -> dict[str, bytes]:
    """The members of an object as written; values are b"" if they cannot be read. {}: it is not an object."""
    if not line.startswith(b"{"):
        return {}
    try:
        return {name: bytes(value) for name, value in _members.decode(line).items()}
    except UNREADABLE:
        return {key.decode("utf-8", "replace"): b"" for key in _keys(line)}


def _is_request(outline: dict[str, bytes]) -> bool:
    """A line with `params` or `body`, also misspelled, or with the method and url of one."""
    has_id = "custom_id" in outline
    if ROW_PROBLEM in outline:
        return True  # of a row that cannot become a request
    if has_id and not outline.keys().isdisjoint({"method", "url"}) and len(outline) > 2:
        return True
    if outline.get("metadata") == b"" and outline.keys() <= {*KEYS}:
        return True  # cut within its metadata, which is long
    for name in ("params", "body"):
        value = outline.get(name)
        if value is not None and (has_id or value[:1] in {b"{", b""}):
            return True
    return has_id and any(
        value[:1] == b"{" and typo_of(name, ("params", "body")) is not None for name, value in outline.items()
    )


def _is_result(outline: dict[str, bytes]) -> bool:
    names = outline.keys()
    return "custom_id" in names and (
        {"response", "error"} <= names or "result" in names or {"status", "usage"} <= names
    )


def _of_objects(layout: Layout, outlines: list[dict[str, bytes]]) -> FileKind:
    requests = [outline for outline in outlines if _is_request(outline)]
    if requests or not outlines:
        own = [own_fields(outline) if outline.keys() & {"params", "body"} else () for outline in requests]
        if not all(own):
            return FileKind(layout=layout, content="requests")
        names = dict.fromkeys(name for one in own for name in one)
        num_native = sum("params" in outline for outline in requests)
        inside = {0: ".body.metadata", len(own): ".metadata"}.get(
            num_native, "(if .body then .body else . end).metadata"
        )
        return FileKind(layout=layout, content="requests", own_fields=tuple(names), metadata=inside if own else "")
    if all(map(_is_result, outlines)):
        return FileKind(layout=layout, content="results")
    columns = tuple(dict.fromkeys(name for outline in outlines for name in outline))
    values = [[outline.get(name, b"").decode("utf-8", "replace") for name in columns] for outline in outlines]
    return FileKind(layout=layout, content="rows", columns=columns, example=_with_most_text(columns, values))


def _of_items(layout: Layout, items: bytes) -> FileKind:
    """By the first item of an array, which begins `items`."""
    if items[:1] == b"]":
        return FileKind(layout=layout, content="requests")  # an empty list, which is reported as such
    if items[:1] != b"{":
        return FileKind(layout=layout, content="unknown")
    return _of_objects(layout, [dict.fromkeys((key.decode("utf-8", "replace") for key in _keys(items)), b"")])


def _of_csv(head: bytes, is_whole: bool, ending: str) -> FileKind:
    text = head.decode("utf-8", "replace")
    if not is_whole:
        text = text[: text.rfind("\n") + 1] or text
    found = "\t" if ending in {".tsv", ".tab"} else max(_DELIMITERS, key=lambda one: _num_fields(text, one))
    records = _records(text, found)
    columns = tuple(name.strip() for name in next(records, []))
    example = _with_most_text(columns, islice(records, _RECORDS_LOOKED_AT))
    return FileKind(layout="csv", content="rows", columns=columns, example=example, delimiter=found)


def _with_most_text(columns: tuple[str, ...], rows: Iterable[list[str]]) -> str:
    """The column whose values have the most words, then the most characters, but an id only if there is nothing else.
    "": there are no values.
    """
    sizes = dict.fromkeys(columns, (0, 0))
    for row in rows:
        for name, value in zip(columns, row, strict=False):
            words, chars = sizes[name]
            sizes[name] = words + value.count(" "), chars + len(value)
    return max((name for name in sizes if sizes[name][1]), key=lambda name: (not _is_id(name), sizes[name]), default="")


def _num_fields(text: str, delimiter: str) -> int:
    """The number of columns if most of the first records have as many fields as the header, else 0."""
    records = [record for record in islice(_records(text, delimiter), _RECORDS_LOOKED_AT) if record]
    num_alike = sum(len(record) == len(records[0]) for record in records)
    return len(records[0]) if records and num_alike * 2 > len(records) else 0


def _records(text: str, delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        yield from reader
    except csv.Error:  # a field over the limit, or a NUL
        return
