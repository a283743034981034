"""Answers each row of a table, for `batchfile.map`. Such a run is a local run whose output is not written."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack, overload

import msgspec
import pydantic

from batchfile import logs
from batchfile.errors import InvalidFile, OutputTaken, SettingsError
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.lines.diagnostics import short, shown
from batchfile.lines.kinds import FileKind, refusal
from batchfile.lines.result import decode_result
from batchfile.local import outputs
from batchfile.local.api import end_batch
from batchfile.local.display import say as say_on_stderr
from batchfile.local.engines import EngineChoice, choose_engine
from batchfile.local.inputs import Source, digest_of, inspect, stamp_of
from batchfile.local.keywords import saying, worded_for_python
from batchfile.local.map_state import ANSWERS, MapState, open_state
from batchfile.local.options import EngineArguments, RunOptions, check_arguments
from batchfile.local.previous_batch import NothingReused
from batchfile.local.session import completed, open_session
from batchfile.local.summary import rows_summary
from batchfile.local.tables import kind_of
from batchfile.rows.answers import AnswerCheck, added, answered_rows
from batchfile.rows.frames import NAME, ArrowStream, Frame, json_rows, open_frame
from batchfile.rows.prompt import AnswerColumns, RowPrompt
from batchfile.rows.table import Table
from batchfile.settings import Settings, load_settings

Rows = list[dict[str, Any]]
Schema = type[pydantic.BaseModel] | Mapping[str, Any]


class ArrowTable(ArrowStream, Protocol):
    """A pandas or polars DataFrame, or a pyarrow.Table; other Arrow streams come back as a pyarrow.Table."""

    @property
    def shape(self) -> tuple[int, int]: ...


class Dataset(Protocol):
    """A Dataset of Hugging Face."""

    @property
    def column_names(self) -> list[str]: ...

    @property
    def shape(self) -> tuple[int, int]: ...


TableT = TypeVar("TableT", bound=ArrowTable | Dataset)


class MapOptions(EngineArguments, total=False):
    """The keywords of `map`."""

    system: str | None
    schema: Schema | None
    choices: Sequence[str] | None
    into: str | None
    id_column: str | None
    store: str | os.PathLike[str] | None
    progress: bool


@overload
def map(data: Rows, prompt: str | None = None, **options: Unpack[MapOptions]) -> Rows: ...
@overload
def map(data: str | os.PathLike[str], prompt: str | None = None, **options: Unpack[MapOptions]) -> Rows: ...
@overload
def map(data: TableT, prompt: str | None = None, **options: Unpack[MapOptions]) -> TableT: ...
@overload
def map(data: ArrowStream, prompt: str | None = None, **options: Unpack[MapOptions]) -> Any: ...
def map(
    data: object,
    prompt: str | None = None,
    *,
    system: str | None = None,
    schema: Schema | None = None,
    choices: Sequence[str] | None = None,
    into: str | None = None,
    id_column: str | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Unpack[EngineArguments],
) -> Any:
    """Answer each row of a table, and return the same kind of table with the answers as further columns, in order.

    `data`: a pandas or polars DataFrame, an Arrow table, a Hugging Face Dataset, a list of dicts, or the path of a file
    of rows, which gives a list of dicts. `prompt`, `system`: Jinja2 templates over its columns; without a prompt, the
    column `prompt` or `messages` is used. The answers, which are one of `choices` if these are given, are in the column
    `into` (by default `answer`). With `schema`, a Pydantic model or a JSON schema, each property is a column, unless
    `into` is given. A row that fails has no answer, and its reason in the column `error`.

    The same call resumes a run that was stopped, and returns at once after it has ended. After a change of the rows,
    only prompts without an answer run; another prompt or model is a new run of all rows. `store`: where runs are kept,
    a folder or s3://bucket/prefix; by default the user's cache, which forgets a run that was not used for 30 days.
    `restart`: answer all rows again. Ctrl-C and the other options are as for `batchfile.run`.

    Raises: InvalidFile where the table cannot be used; SettingsError for a wrong option, template or schema;
    OutputTaken where another call runs the same rows; EngineDead; StoreError.

    >>> reviews = [{"review": "Great phone."}, {"review": "It broke."}]
    >>> rows = batchfile.map(reviews, "Good or bad? {{ review }}", engine="echo", store="./maps", progress=False)
    >>> rows[1]
    {'review': 'It broke.', 'answer': 'Good or bad? It broke.', 'error': None}
    """
    check_arguments("map", EngineArguments, options)
    row_prompt = RowPrompt(
        prompt=prompt,
        system=system,
        choices=_choices(choices),
        schema=_json_schema(schema),
        into=into,
        id_column=id_column,
        is_numbered=True,
        is_command=False,
    )
    logs.for_library()
    settings = load_settings()
    with worded_for_python():
        given = RunOptions(**options)
        choice = choose_engine(settings, given)
        job = _Job(
            prompt=row_prompt,
            model=schema if isinstance(schema, type) else None,
            options=completed(given, settings, choice),
            settings=settings,
            choice=choice,
            state=open_state(store),
            is_shown=progress,
        )
        return job.of_file(os.fspath(data)) if isinstance(data, str | os.PathLike) else job.of_frame(open_frame(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """`model`: of Pydantic, that also validates the answers."""

    prompt: RowPrompt
    model: type[pydantic.BaseModel] | None
    options: RunOptions
    settings: Settings
    choice: EngineChoice
    state: MapState
    is_shown: bool

    def of_frame(self, frame: Frame) -> Any:
        """The table with its answers; what requests depend on is written to the folder of the run."""
        columns = frame.columns
        if not columns:
            raise InvalidFile(f"{NAME}: has no columns")
        table = self._table(NAME, FileKind(layout="jsonl", content="rows", columns=columns))

        def answers(ledger: Ledger, batch: BatchRecord) -> Rows:
            check, error = self._check(table.columns), table.columns.error
            results = (decode_result(line) for line in outputs.result_lines(ledger, batch))
            values = [added(result, table.columns, check) for result in results]
            for number, row in enumerate(values, 1):
                row[error] = row[error] and row[error].removeprefix(f"line {number}: ")
            return values

        used = self.prompt.used(columns) or columns[:1]
        with self.state.written(json_rows(frame.rows(used))) as rows:
            if not rows.num:
                raise InvalidFile(f"{NAME}: has no rows")
            folder = self._folder(rows.sha256, table)
            return frame.answered(self._run(folder, _source(rows.move_to(folder), table), answers))

    def of_file(self, path: str) -> Rows:
        """The rows of a file with their answers. Values are as JSON has them; those of CSV are text."""
        source = inspect(path)
        if source.path is None:
            raise InvalidFile(f"{source.name}: map reads files of this machine only; download it and pass its path")
        kind = kind_of(source, is_table=True)
        if kind.content == "requests":
            raise InvalidFile(f"{path}: is {kind.described}, not of rows; run it with batchfile.run")
        if kind.content != "rows":
            raise InvalidFile(refusal(kind, path))
        table = self._table(source.shown, kind)

        def answers(ledger: Ledger, batch: BatchRecord) -> Rows:
            requests = ledger.store.stream(batch.input.key, match=batch.input.etag)
            results = outputs.result_lines(ledger, batch)
            return [*answered_rows(requests, results, table.columns, self._check(table.columns))]

        folder = self._folder(digest_of(source), table)
        return self._run(folder, replace(source, kind=kind, table=table), answers)

    def _table(self, name: str, kind: FileKind) -> Table:
        """Raises: InvalidFile where the columns do not fit the prompt."""
        if self.prompt.prompt is None and not kind.has_prompts:
            raise InvalidFile(f"{name}: has no column prompt or messages; pass a prompt over its columns: prompt=...")
        self.prompt.check(name, kind.columns)
        return Table(kind=kind, prompt=self.prompt, columns=self.prompt.columns(name, kind.columns))

    def _folder(self, digest: str, table: Table) -> Path:
        """Runs that differ only in their rows, or in the column of the answer, have one store, so that a row that was
        answered is not answered again.
        """
        options, kind = self.options, table.kind
        identity = {name: getattr(options, name) for name in ("engine", "model", "max_tokens", "temperature")}
        further = {name: getattr(options, name) for name in ("revision", "lora", "parse_control_tokens")}
        identity |= {name: value for name, value in further.items() if value}
        rows = {"rows": digest, "layout": kind.layout, "delimiter": kind.delimiter}
        if self.prompt.into is not None:
            rows["into"] = self.prompt.into
        return self.state.folder({**asdict(self.prompt), "into": None, **identity}, rows)

    def _run(self, folder: Path, source: Source, answers: Callable[[Ledger, BatchRecord], Rows]) -> Rows:
        """`answers`: makes the rows of the ended batch."""
        assert source.table is not None
        say: Callable[[str], None] = saying(say_on_stderr) if self.is_shown else lambda text: None
        options = replace(
            self.options, input=source.name, output=str(folder / ANSWERS), store=self.state.store_of(folder)
        )
        started_at = time.monotonic()
        with ExitStack() as stack:
            try:
                session = open_session(stack, self.settings, options, self.choice, say, source, shares_results=True)
            except NothingReused as error:  # the files of the model have changed
                raise error.of_map() from None
            except OutputTaken:
                stack.close()  # our own lock
                if not outputs.is_being_written(str(folder / ANSWERS)):
                    raise
                raise OutputTaken(
                    "the same rows are being answered by another call; wait for it, or pass another folder as store"
                ) from None
            batch = end_batch(session, self.settings, self.choice, say, is_shown=self.is_shown)
            rows = answers(session.ledger, batch)
        seconds = None if session.opened.batch.state == "ended" else time.monotonic() - started_at
        column = source.table.columns.error
        for text in rows_summary([row[column] for row in rows], batch.usage, seconds, column):
            say(text)
        return rows

    def _check(self, columns: AnswerColumns) -> AnswerCheck:
        def check(answer: Any) -> str | None:
            if columns.fields and not isinstance(answer, dict):
                return f"the answer is not a JSON object: {shown(answer)}"
            if self.model is None:
                return None
            try:
                self.model.model_validate_json(msgspec.json.encode(answer))
            except pydantic.ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(one) for one in first["loc"])
                return f"the answer does not fit {self.model.__name__}: {place}: {first['msg']}"
            return None

        return check


def _source(path: Path, table: Table) -> Source:
    status = path.stat()
    stamp, size = stamp_of(status), status.st_size
    return Source(name=str(path), path=str(path), format="jsonl", kind=table.kind, table=table, stamp=stamp, size=size)


def _choices(choices: Sequence[str] | None) -> tuple[str, ...]:
    """Raises: SettingsError."""
    if choices is None:
        return ()
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(one, str) for one in choices):
        raise SettingsError(f"choices: {short(repr(choices))} is not a list of texts, such as ['good', 'bad']")
    return tuple(choices)


def _json_schema(schema: object) -> dict[str, Any] | None:
    """Raises: SettingsError."""
    if schema is None:
        return None
    if isinstance(schema, type) and issubclass(schema, pydantic.BaseModel):
        return schema.model_json_schema()
    if isinstance(schema, Mapping):
        return dict(schema)
    raise SettingsError(f"schema: {short(repr(schema))} is not a Pydantic model or a JSON schema as a dict")
