"""Makes a request of each row: a template over its columns, or a column that holds the prompt. Pure.

Templates are Jinja2 in a sandbox, without globals. A value that is not text is rendered as JSON, null as nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
import msgspec
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchfile.errors import InvalidFile, InvalidRequest, SettingsError
from batchfile.lines.diagnostics import short, shown
from batchfile.lines.envelope import ROW_PROBLEM, id_text
from batchfile.lines.key_advice import typo_of
from batchfile.lines.kinds import MESSAGES, PROMPT
from batchfile.lines.parquet import COLUMNS, check_request_columns, params_of
from batchfile.rows.read import Row
from batchfile.schemas.rules import schema_problem

ANSWER, ERROR = "answer", "error"
ROW = "row"  # in templates, the row itself: for columns whose names are not identifiers. In metadata, its values
CHUNK_BYTES = 256 * 1024
_ID_COLUMNS = ("custom_id", "id")
_SHOWN_MAX = 30
_SPACED = re.compile(r"\{\{-?\s*(\w+(?:[ \t]+\w+)+)\s*-?\}\}")  # a name with spaces where one word is expected
# What a template may raise while it is rendered for one row, in addition to its own errors.
_IN_TEMPLATE = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)

_encoder = msgspec.json.Encoder(decimal_format="number")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerColumns:
    """The columns that answers add. `fields`: properties of a JSON answer, each its own column; else the answer is in
    `into`, decoded if it `has_json`. `is_choice`: it is a JSON object whose property `into` is meant.
    """

    into: str = ANSWER
    fields: tuple[str, ...] = ()
    has_json: bool = False
    is_choice: bool = False
    error: str = ERROR

    @property
    def added(self) -> tuple[str, ...]:
        return (*(self.fields or (self.into,)), self.error)


@dataclass(frozen=True, kw_only=True)
class RowPrompt:
    """`prompt`, `system`: templates. Without a prompt, the column `prompt` or `messages` is used, together with the
    columns system, model and sampling parameters, as in Parquet files of requests.

    `schema`: of the answer. `choices`: the only possible answers. `into`: the column of the answer; None: the
    properties of `schema` become columns, and other answers are in the column `answer`. `id_column` None: custom_id or
    id if the row has them, else its number; if `is_numbered`, always its number. `is_command`: whether messages name
    options, or arguments of Python. Raises: SettingsError for a wrong template or schema.
    """

    prompt: str | None = None
    system: str | None = None
    choices: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    into: str | None = None
    id_column: str | None = None
    is_numbered: bool = False
    is_command: bool = True

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise SettingsError(f"{self._flag('prompt')}: is empty; write a prompt over the columns of a row")
        choices = self._flag("choices")
        if self.choices and self.schema is not None:
            raise SettingsError(f"{choices} and {self._flag('schema')} cannot be combined; put an enum into the schema")
        if len(set(self.choices)) != len(self.choices) or "" in self.choices:
            raise SettingsError(f"{choices}: each must be different and not empty, got {', '.join(self.choices)!r}")
        problem = None if self.schema is None else schema_problem(self.schema)
        if problem is not None:
            raise SettingsError(f"{self._flag('schema')}: is not a valid JSON schema: {problem}")
        _ = self._templates  # so that an error shows at once

    def columns(self, name: str, columns: Iterable[str]) -> AnswerColumns:
        """The columns that are added to the rows of the file `name`. Raises: InvalidFile where one of them exists."""
        existing = set(columns)
        fields = tuple(self.schema.get("properties", ())) if self.schema is not None and self.into is None else ()
        into = self.into or ANSWER
        error = ERROR if ERROR not in {*existing, *(fields or (into,))} else f"{into}_{ERROR}"
        made = AnswerColumns(
            into=into,
            fields=fields,
            has_json=self._format is not None,
            is_choice=bool(self.choices),
            error=error,
        )
        for column in made.added:
            if column in existing:
                raise InvalidFile(
                    f"{name}: has a column {column!r} already; name another one with {self._flag('into')}"
                )
        return made

    def check(self, name: str, columns: tuple[str, ...]) -> None:
        """Raises: InvalidFile where the rows of the file `name`, which have these columns, lack one that is needed."""
        for option, template in self._templates.items():
            for column in sorted(_columns_of(template.tree) - {*columns}):
                problem = f"{name}: has no column {column!r}, which {self._flag(option)} uses"
                raise InvalidFile(f"{problem}; {_choice(column, columns)}")
        if self.id_column is not None and self.id_column not in columns:
            raise InvalidFile(f"{name}: has no column {self.id_column!r}; {_choice(self.id_column, columns)}")
        if self.prompt is not None:
            return
        if PROMPT in columns and MESSAGES in columns:
            choice = f"{self._flag('prompt')} '{{{{ prompt }}}}'"
            raise InvalidFile(f"{name}: has both columns prompt and messages; choose with {choice}")
        check_request_columns(name, columns)

    @property
    def is_constant(self) -> bool:
        """Does every row get the same prompt, because no template uses a column?"""
        trees = [template.tree for template in self._templates.values()]
        return self.prompt is not None and not any(_columns_of(tree) or _has_whole_row(tree) for tree in trees)

    def used(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Those of the columns that requests depend on, in their order. All, if a template uses `row` as a whole."""
        trees = [template.tree for template in self._templates.values()]
        names = {self.id_column}.union(*map(_columns_of, trees), COLUMNS if self.prompt is None else ())
        return tuple(name for name in columns if name in names or any(map(_has_whole_row, trees)))

    def request_line(self, row: Row, number: int) -> bytes:
        """The request of the `number`-th row, from 1, without a newline; the row is in its metadata.

        A row that cannot run becomes a line that the planner rejects with the reason.
        """
        custom_id = f"row-{number:06d}"
        try:
            custom_id = self._custom_id(row.values) or custom_id
            if row.problem is not None:
                raise InvalidRequest(row.problem)
            rest: dict[str, Any] = {"params": self._params(row.values)}
        except InvalidRequest as error:
            rest = {ROW_PROBLEM: str(error)}
        return _encoder.encode({"custom_id": custom_id, "metadata": {ROW: row.values}, **rest})

    def id_name(self, columns: Iterable[str]) -> str:
        """The one of the columns that the ids of requests are from; custom_id if they are numbers."""
        return self.id_column or next((name for name in _ID_COLUMNS if name in columns), _ID_COLUMNS[0])

    def _custom_id(self, values: dict[str, Any]) -> str | None:
        columns = () if self.is_numbered else _ID_COLUMNS
        for name in (self.id_column,) if self.id_column is not None else columns:
            if name in values:
                found = id_text(values[name])
                if found is None and values[name] is not None:
                    raise InvalidRequest(f"{name}: must be text or a whole number, got {shown(values[name])}")
                if not found and self.id_column is not None:
                    raise InvalidRequest(f"{name}: is empty, and {self._flag('id_column')} needs it")
                if found:
                    return found
        return None

    def _params(self, values: dict[str, Any]) -> dict[str, Any]:
        table = values if self.prompt is None else {PROMPT: self._rendered("prompt", values)}
        if not str(table.get(PROMPT) or table.get(MESSAGES) or "").strip():
            raise InvalidRequest("the prompt is empty")
        params = params_of(table)
        if self.system is not None:
            params["system"] = self._rendered("system", values)
        if self._format is not None:
            params["output_config"] = self._format
        return params

    def _rendered(self, option: str, values: dict[str, Any]) -> str:
        try:
            return self._templates[option].template.render({ROW: values} | values)
        except _IN_TEMPLATE as error:
            raise InvalidRequest(f"{self._flag(option)}: {short(str(error))}") from None

    def _flag(self, option: str) -> str:
        return "--" + option.replace("_", "-") if self.is_command else option

    @cached_property
    def _format(self) -> dict[str, Any] | None:
        schema = self.schema
        if self.choices:
            name = self.into or ANSWER
            schema = {"type": "object", "properties": {name: {"type": "string", "enum": list(self.choices)}}}
            schema |= {"required": [name], "additionalProperties": False}
        return None if schema is None else {"format": {"type": "json_schema", "schema": schema}}

    @cached_property
    def _templates(self) -> dict[str, "_Template"]:
        given = {"prompt": self.prompt, "system": self.system}
        return {option: _compiled(self._flag(option), text) for option, text in given.items() if text is not None}


def request_lines(rows: Iterable[Row], prompt: RowPrompt) -> Iterator[bytes]:
    """The requests of the rows as JSONL, in chunks. Each is on the line where its row begins: others are blank."""
    lines: list[bytes] = []
    at, size = 1, 0
    for number, row in enumerate(rows, 1):
        line = prompt.request_line(row, number)
        lines.append(b"\n" * (row.line - at) + line + b"\n")
        at, size = row.line + 1, size + len(lines[-1])
        if size >= CHUNK_BYTES:
            yield b"".join(lines)
            lines, size = [], 0
    yield b"".join(lines)


@dataclass(frozen=True, slots=True)
class _Template:
    template: jinja2.Template
    tree: nodes.Template


def _text_of(value: Any) -> Any:
    """How a value is rendered."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value


_jinja = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=_text_of)
_jinja.globals.clear()


def _compiled(flag: str, text: str) -> _Template:
    try:
        return _Template(_jinja.from_string(text), _jinja.parse(text))
    except jinja2.TemplateSyntaxError as error:
        problem = f"{flag}: line {error.lineno}: {(error.message or '').rstrip('.')}"
        if spaced := _SPACED.search(text):
            problem += f'; for a column whose name has spaces, write {{{{ row["{spaced[1]}"] }}}}'
        raise SettingsError(problem) from None


def _columns_of(tree: nodes.Template) -> set[str]:
    """The columns that a template needs, also those of `row["name"]` and `row.name`."""
    found = meta.find_undeclared_variables(tree) - {ROW}
    for node in tree.find_all(nodes.Getitem):
        if _is_row(node.node) and isinstance(node.arg, nodes.Const):
            found.add(str(node.arg.value))
    for one in tree.find_all(nodes.Getattr):
        if _is_row(one.node) and not hasattr(dict, one.attr):
            found.add(one.attr)
    return found


def _has_whole_row(tree: nodes.Template) -> bool:
    """Is `row` used in other ways than for a column of a known name?"""
    num_named = sum(_is_row(node.node) and isinstance(node.arg, nodes.Const) for node in tree.find_all(nodes.Getitem))
    num_named += sum(_is_row(one.node) and not hasattr(dict, one.attr) for one in tree.find_all(nodes.Getattr))
    return num_named < sum(map(_is_row, tree.find_all(nodes.Name)))


def _is_row(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == ROW


def _choice(column: str, columns: tuple[str, ...]) -> str:
    near = typo_of(column, columns)
    more = len(columns) - _SHOWN_MAX
    shown_columns = ", ".join(columns[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
    return f"its columns are {shown_columns}" + (f"; did you mean {near}?" if near else "")
