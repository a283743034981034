"""`batchfile stats`: what is in a file of requests, before any of it runs."""

import json
from collections import Counter
from collections.abc import Iterator

import click

from batchfile import logs
from batchfile.cli.help import epilog
from batchfile.cli.progress import transfer
from batchfile.cli.token_options import Tokenizer, token_options
from batchfile.client.estimate import CHARS_PER_TOKEN
from batchfile.lines.kinds import command_for
from batchfile.lines.prefixes import STEP_CHARS
from batchfile.lines.stats import Extent, FileStats, read_stats
from batchfile.local.display import counted
from batchfile.local.inputs import Source, lines_of
from batchfile.local.originals import opened, pieces_of
from batchfile.settings import load_settings
from batchfile.types import Defaults

SHOWN_MAX = 5  # values of a counter
VALUE_CHARS_MAX = 60


@click.command(
    "stats",
    epilog=epilog(
        "batchfile stats requests.jsonl",
        "batchfile stats requests.jsonl.gz --tokens mistralai/Mistral-7B-Instruct-v0.3",
        "batchfile stats requests.jsonl --json | jq .shared_prefixes",
    ),
)
@click.argument("input")
@token_options("Count tokens with MODEL's tokenizer, not only characters.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
def stats(input: str, tokenizer: Tokenizer | None, is_json: bool) -> None:
    """Show what is in the file INPUT (- is stdin): requests, endpoints, models, prompts and limits.

    Of rows and text, show their number, their columns and the command that runs them. INPUT may be compressed as .gz or
    .zst. Shared prefixes are what an engine with a prefix cache may have to compute only once; their figure is an
    estimate that is never too high.
    """
    logs.for_command()
    max_tokens = load_settings().run.max_tokens
    model = None if tokenizer is None else tokenizer.model
    count = None if tokenizer is None else tokenizer.counter().count
    with opened(input) as original, transfer(original.shown, original.size) as on_bytes:
        if original.kind.content == "rows":
            as_json, lines = _of_rows(original, input)
        else:
            found = read_stats(lines_of(original, on_bytes), original.shown, Defaults(max_tokens=max_tokens), count)
            as_json, lines = _as_json(original, found, model), [*_lines(original, found, model, max_tokens)]
    click.echo(json.dumps(as_json) if is_json else "\n".join([original.shown, *lines]))


def _of_rows(original: Source, name: str) -> tuple[dict[str, object], list[str]]:
    """As JSON, and as text. Bytes are uncompressed; of Parquet, as JSONL."""
    kind, num, num_bytes = original.kind, 0, 0
    for piece in pieces_of(original):
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
        f"  file          {kind.described}; {num_bytes:,} bytes",
        f"  to run them   `{command_for(kind, name)}`",
    ]


def _lines(original: Source, found: FileStats, model: str | None, max_tokens: int) -> Iterator[str]:
    bad = f"; {found.num_bad:,} of them cannot run: `batchfile validate` says why" if found.num_bad else ""
    yield f"  requests      {found.num_requests:,}{bad}"
    packed = "" if original.format in {"jsonl", "parquet"} else f", {original.format}"
    yield f"  file          {original.kind.described}{packed}; {found.size_bytes:,} bytes as JSONL"
    num = found.num_requests - found.num_bad
    if not num:
        return
    yield f"  endpoints     {_top(found.endpoints, num)}"
    yield f"  models        {_top(found.models, num)}"
    yield f"  prompts       {_extent(found.chars, 'character', num)}"
    if found.tokens is None:
        yield f"  input tokens  unknown: use --tokens MODEL; at {CHARS_PER_TOKEN} characters each, about " + (
            f"{found.chars.total // CHARS_PER_TOKEN:,}"
        )
    else:
        yield f"  input tokens  {_extent(found.tokens, 'token', num)} ({model}'s tokenizer)"
    share = f"at least {found.prefixes.share:.0%} of the prompts' text repeats the beginning of an earlier prompt"
    yield f"  prefixes      {share} (an estimate, in steps of {STEP_CHARS} characters)"
    default = f"max_tokens, by default {max_tokens:,}"
    yield f"  output        at most {counted(found.output_tokens_max, 'token')} (the sum of {default})"


def _top(values: Counter[str | None], num_requests: int) -> str:
    """The most frequent values; those that are not shown are counted as others."""
    named = [(value, num) for value, num in values.most_common() if value is not None][:SHOWN_MAX]
    num_others = values.total() - sum(num for _, num in named)
    shown = [(value[:VALUE_CHARS_MAX], num) for value, num in named]
    shown += [("others", num_others), ("not named", num_requests - values.total())]
    return ", ".join(f"{value}: {num:,}" for value, num in shown if num)


def _named(values: Counter[str | None]) -> dict[str, int]:
    return {"others" if value is None else value: num for value, num in values.most_common()}


def _extent(extent: Extent, noun: str, num: int) -> str:
    return f"{counted(extent.total, noun)}, {extent.total / num:,.0f} per request, {extent.longest:,} at most"


def _as_json(original: Source, found: FileStats, model: str | None) -> dict[str, object]:
    return {
        "file": original.shown,
        "kind": original.kind.layout,
        "format": original.format,
        "requests": found.num_requests,
        "bad": found.num_bad,
        "jsonl_bytes": found.size_bytes,
        "endpoints": _named(found.endpoints),
        "models": _named(found.models),
        "prompt_chars": found.chars.total,
        "longest_prompt_chars": found.chars.longest,
        "input_tokens": found.tokens and found.tokens.total,
        "longest_input_tokens": found.tokens and found.tokens.longest,
        "counted_by": model,
        "shared_prefixes": {"share": round(found.prefixes.share, 4), "is_lower_bound": True},
        "max_output_tokens": found.output_tokens_max,
    }
