"""Decides how the input of a run becomes requests: as it is, or with a prompt over its rows. Reads the files that
options name.
"""

import json
from dataclasses import replace
from pathlib import Path

from batchfile.errors import InvalidFile, SettingsError
from batchfile.lines.file_formats import parquet_columns
from batchfile.lines.kinds import FileKind, refusal
from batchfile.lines.parquet import kind_of_table
from batchfile.local.inputs import Source, on_disk
from batchfile.local.options import STDIN, RunOptions, flag_of
from batchfile.rows.prompt import RowPrompt
from batchfile.rows.table import Table


def with_contents(options: RunOptions) -> RunOptions:
    """The options with the contents of the files that they name. Raises: SettingsError."""
    if options.prompt_file is not None:
        if options.prompt is not None:
            raise SettingsError("--prompt and --prompt-file cannot be combined")
        options = replace(options, prompt=_read("--prompt-file", options.prompt_file), prompt_file=None)
    if options.schema is not None:
        options = replace(options, schema=json.dumps(_schema_of(options.schema)))
    return options


def prepared(source: Source, options: RunOptions) -> Source:
    """The source with the way in which its rows become requests. `options`: see `with_contents`.

    Raises: InvalidFile that says what to type for a file without requests, or which column does not exist;
    SettingsError for options that do not fit the input.
    """
    given = options.row_option
    kind = kind_of(source, is_table=given is not None)
    source = replace(source, kind=kind, limit=options.limit, sample=_sample_of(source, options))
    shown = source.shown if source.is_repeatable else STDIN
    if kind.content == "requests":
        if given is not None:
            raise SettingsError(f"{flag_of(given)} is for rows and text; {shown} is {kind.described}")
        if not kind.is_ready:
            raise InvalidFile(refusal(kind, shown))
        return source
    is_complete = options.prompt is not None or kind.has_prompts
    if kind.content != "rows" or not is_complete:
        raise InvalidFile(refusal(kind, shown))
    prompt = RowPrompt(
        prompt=options.prompt,
        system=options.system,
        choices=tuple(one.strip() for one in options.choices.split(",")) if options.choices is not None else (),
        schema=None if options.schema is None else json.loads(options.schema),
        into=options.into,
        id_column=options.id_column,
    )
    prompt.check(shown, kind.columns)
    if options.raw and kind.layout != "text":
        raise SettingsError(f"--raw is for a text with one prompt; {shown} is {kind.described}")
    columns = prompt.columns(shown, kind.columns)
    return replace(source, table=Table(kind=kind, prompt=prompt, columns=columns, is_raw=options.raw))


def kind_of(source: Source, *, is_table: bool) -> FileKind:
    """The kind, with the columns of Parquet, which has rows if `is_table`. Raises: InvalidFile."""
    if source.format != "parquet":
        return source.kind
    if not source.is_repeatable:
        raise InvalidFile("stdin: Parquet cannot be read from a pipe; use the path of the file")
    with on_disk(source) as path:
        columns, types = parquet_columns(path)
    return kind_of_table(columns, types, is_table=is_table)


def _sample_of(source: Source, options: RunOptions) -> tuple[int, int] | None:
    if options.sample is None:
        if options.seed is not None:
            raise SettingsError("--seed belongs to --sample; add --sample N")
        return None
    if options.limit is not None:
        raise SettingsError("--sample and --limit cannot be combined; choose one of them")
    if not source.is_repeatable:
        raise SettingsError("--sample reads its input twice, and stdin can be read once; use --limit, or a file")
    return options.sample, options.seed or 0


def _schema_of(path: str) -> dict[str, object]:
    try:
        found = json.loads(_read("--schema", path))
    except ValueError as error:
        raise SettingsError(f"--schema {path}: is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"--schema {path}: must be a JSON schema, which is an object")
    return found


def _read(option: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{option} {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{option} {path}: is not UTF-8; save it as UTF-8") from None
