"""`batchfile stats`: what is in a file of requests, before any of it runs."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import click

from batchfile import logs
from batchfile.cli.help import epilog
from batchfile.cli.progress import transfer
from batchfile.client.estimate import CHARS_PER_TOKEN
from batchfile.lines.kinds import command_for
from batchfile.lines.prefixes import STEP_CHARS
from batchfile.lines.stats import Extent, FileStats, read_stats
from batchfile.local.display import counted
from batchfile.local.originals import Original, opened
from batchfile.settings import load_settings
from batchfile.types import Defaults, Request

SHOWN_MAX = 5  # values of a counter
VALUE_CHARS_MAX = 60
Value = TypeVar("Value", str, int)


@click.command(
    "stats",
    epilog=epilog(
        "batchfile stats requests.jsonl",
        "batchfile stats requests.jsonl.gz --tokens mistralai/Mistral-7B-Instruct-v0.3",
        "batchfile stats requests.jsonl --json | jq .shared_prefixes",
    ),
)
@click.argument("input")
@click.option("--tokens", "model", metavar="MODEL", help="Count tokens with MODEL's tokenizer, not only characters.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
def stats(input: str, model: str | None, is_json: bool) -> None:
    """Show what is in the file INPUT (- is stdin): requests, endpoints, models, prompts and limits.

    Of rows and text, show their number, their columns and the command that runs them. INPUT may be compressed as .gz or
    .zst. Shared prefixes are what an engine with a prefix cache may have to compute only once; their figure is an
    estimate that is never too high.
    """
    logs.for_command()
    max_tokens = load_settings().run.max_tokens
    count: Callable[[Request], list[int]] | None = None
    if model is not None:
        from batchfile.engine.fit import token_counter

        count = token_counter(model).count
    with opened(input) as original, transfer(original.shown, original.source.size) as on_bytes:
        if original.kind.content == "rows":
            as_json, lines = _of_rows(original)
        else:
            found = read_stats(original.chunks(on_bytes), original.shown, Defaults(max_tokens=max_tokens), count)
            as_json, lines = _as_json(original, found, model), [*_lines(original, found, model, max_tokens)]
    click.echo(json.dumps(as_json) if is_json else "\n".join([original.shown, *lines]))


def _of_rows(original: Original) -> tuple[dict[str, object], list[str]]:
    """As JSON, and as text. Bytes are of the rows as they are written, uncompressed; for Parquet, as JSONL."""
    kind, num, num_bytes = original.kind, 0, 0
    for piece in original.pieces():
        num = num if piece.record is None else piece.record + 1
        num_bytes += len(piece.data)
    return {
        "file": original.shown,
        "kind": kind.layout,
        "format": original.format,
        "columns": kind.columns,
        "rows": num,
        "bytes": num_bytes,
    }, [
        f"  rows          {num:,}",
        f"  file          {kind.described}; {num_bytes:,} bytes of rows",
        f"  to run them   `{command_for(kind, original.name)}`",
    ]


def _lines(original: Original, found: FileStats, model: str | None, max_tokens: int) -> Iterator[str]:
    bad = f"; {found.num_bad:,} of them cannot run: `batchfile validate` says why" if found.num_bad else ""
    yield f"  requests      {found.num_requests:,}{bad}"
    packed = "" if original.format in {"jsonl", "parquet"} else f", {original.format}"
    yield f"  file          {original.kind.described}{packed}; {found.size_bytes:,} bytes as JSONL"
    num = found.num_requests - found.num_bad
    if not num:
        return
    yield f"  endpoints     {_top(found.endpoints, num)}"
    yield f"  models        {_top(found.models, num)}"
    if found.hints:
        yield f"  model hints   {_top(found.hints, num)}"
    if found.num_tools or found.num_schemas:
        yield f"  with          tools: {found.num_tools:,}; a JSON schema: {found.num_schemas:,}"
    yield f"  prompts       {_extent(found.chars, 'character', num)}"
    if found.tokens is None:
        yield f"  input tokens  unknown: use --tokens MODEL; at {CHARS_PER_TOKEN} characters each, about " + (
            f"{found.chars.total // CHARS_PER_TOKEN:,}"
        )
    else:
        yield f"  input tokens  {_extent(found.tokens, 'token', num)} ({model}'s tokenizer)"
    share = f"at least {found.prefixes.share:.0%} of the prompts' text repeats the beginning of an earlier prompt"
    yield f"  prefixes      {share} (an estimate, in steps of {STEP_CHARS} characters)"
    limits = [_top(found.max_tokens)] if found.max_tokens else []
    if found.num_unlimited:
        limits.append(f"not set: {found.num_unlimited:,}, the default is {max_tokens:,}")
    how = f" (max_tokens {'; '.join(limits)})" if limits else ""
    yield f"  output        at most {counted(found.output_tokens_max, 'token')}{how}"


def _top(values: Mapping[Value | None, int], of: int | None = None) -> str:
    """The most frequent values. `of`: the number of requests; those without a value are named too."""
    named = sorted(((value, num) for value, num in values.items() if value is not None), key=lambda pair: -pair[1])
    shown = [f"{str(value)[:VALUE_CHARS_MAX]}: {num:,}" for value, num in named[:SHOWN_MAX]]
    num_others = sum(values.values()) - sum(num for _, num in named[:SHOWN_MAX])
    num_without = 0 if of is None else of - sum(values.values())
    shown += [f"{what}: {num:,}" for what, num in (("others", num_others), ("not named", num_without)) if num]
    return ", ".join(shown)


def _extent(extent: Extent, noun: str, num: int) -> str:
    return f"{counted(extent.total, noun)}, {extent.total / num:,.0f} per request, {extent.longest:,} at most"


def _as_json(original: Original, found: FileStats, model: str | None) -> dict[str, object]:
    return {
        "file": original.shown,
        "kind": original.kind.layout,
        "format": original.format,
        "requests": found.num_requests,
        "bad": found.num_bad,
        "jsonl_bytes": found.size_bytes,
        **{
            name: {"others" if value is None else value: num for value, num in counter.most_common()}
            for name, counter in (
                ("endpoints", found.endpoints),
                ("models", found.models),
                ("hints", found.hints),
                ("max_tokens", found.max_tokens),
            )
        },
        "max_tokens_not_set": found.num_unlimited,
        "with_tools": found.num_tools,
        "with_json_schema": found.num_schemas,
        "prompt_chars": found.chars.total,
        "longest_prompt_chars": found.chars.longest,
        "input_tokens": found.tokens and found.tokens.total,
        "longest_input_tokens": found.tokens and found.tokens.longest,
        "counted_by": model,
        "shared_prefixes": {"share": round(found.prefixes.share, 4), "is_lower_bound": True},
        "max_output_tokens": found.output_tokens_max,
    }
