"""`batchfile validate`: lists every problem of a file, where it is and how to fix it."""

import json
import sys
import textwrap
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import click

from batchfile import logs
from batchfile.cli.exits import Exit, say_json
from batchfile.cli.help import epilog
from batchfile.cli.numbers import Whole
from batchfile.cli.run_options import run_options
from batchfile.cli.token_options import Tokenizer, token_options
from batchfile.errors import InvalidFile
from batchfile.lines.validate import LineProblem, Summary
from batchfile.local.check import FileCheck, Rules, token_problems, valid_lines
from batchfile.local.display import counted
from batchfile.local.inputs import Source, inspect, repeatable
from batchfile.local.options import INPUT_OPTIONS, RunOptions
from batchfile.local.tables import prepared, with_contents
from batchfile.routing import check_stage
from batchfile.settings import load_settings
from batchfile.types import Defaults, Request

ID_SHOWN_MAX = 60  # characters of a custom_id
PROMPT_SHOWN_MAX = 2000  # characters of a turn


@click.command(
    "validate",
    epilog=epilog(
        "batchfile validate *.jsonl --stage email",
        "batchfile validate reviews.csv --prompt 'Is this review good? {{ review }}'",
        "batchfile validate requests.jsonl --tokens mistralai/Mistral-7B-Instruct-v0.3 --max-model-len 8192",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--stage", help="Check the routing too, for a batch of this stage and the pools of the settings.")
@click.option("--routing", is_flag=True, help="Check the routing too: model_hint and model must be known.")
@token_options("Count tokens with MODEL's tokenizer; report requests that do not fit.")
@click.option(
    "--max-model-len", type=Whole(min=16), help="With --tokens: the context length.  [default: the model's own]"
)
@click.option("--max-tokens", type=Whole(min=1), help="The default for requests without it.  [default: 2048]")
@run_options(INPUT_OPTIONS)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON line for each problem and each file's summary.")
def validate(
    files: tuple[str, ...],
    stage: str | None,
    routing: bool,
    tokenizer: Tokenizer | None,
    max_model_len: int | None,
    max_tokens: int | None,
    is_json: bool,
    **inputs: Any,
) -> None:
    """Check each FILE, - (stdin), https://… or s3://BUCKET/KEY without running anything.

    Exits with 4 if there is any problem. For rows and text, it checks the requests that `batchfile run` makes of them,
    and shows the first prompt.
    """
    logs.for_command()
    settings = load_settings()
    defaults = Defaults(max_tokens=max_tokens or settings.run.max_tokens)
    if stage is not None:
        check_stage(settings.stages, stage)
    rules = Rules(table=settings.routing() if routing or stage else None, stage=stage, defaults=defaults)
    tokens = None if tokenizer is None else _Tokens(tokenizer, max_model_len)
    is_fine = True
    for name in files:
        try:
            with repeatable(inspect(name)) as source:
                options = with_contents(RunOptions(input=name, **inputs))
                is_fine &= _check(name, prepared(source, options), rules, tokens, is_json=is_json)
        except InvalidFile as error:
            is_fine = False
            if is_json:
                say_json(str(error), Exit.INVALID_INPUT)
            else:
                click.echo(str(error))
    sys.exit(Exit.OK if is_fine else Exit.INVALID_INPUT)


def _check(name: str, source: Source, rules: Rules, tokens: "_Tokens | None", *, is_json: bool) -> bool:
    check = FileCheck(source, rules)
    num_problems = 0
    too_long = () if tokens is None else token_problems(source, rules.defaults, tokens.fit)
    for problem in chain(check.problems(), too_long):
        num_problems += 1
        _show(name, problem if source.table is None else _of_row(problem, source.id_name), is_json=is_json)
    if is_json:
        click.echo(json.dumps({"file": name, "summary": _as_json(check.summary, num_problems, tokens)}))
    else:
        click.echo(f"{name}: {_as_text(check.summary, num_problems, tokens, is_rows=source.table is not None)}")
    if source.table is not None:
        _show_first(name, source, rules.defaults, is_json=is_json)
    return num_problems == 0


def _of_row(problem: LineProblem, id_name: str) -> LineProblem:
    """Of a request that was made of a row: its columns are not those of the file, and its id has another name."""
    return replace(problem, column=None, where=id_name if problem.where == "custom_id" else problem.where)


def _show_first(name: str, source: Source, defaults: Defaults, *, is_json: bool) -> None:
    """What the first row that can run becomes."""
    first = next(valid_lines(source, defaults), None)
    turns = [] if first is None else first[1].messages
    if is_json:
        shown = [{"role": turn.role, "content": turn.content} for turn in turns]
        click.echo(json.dumps({"file": name, "kind": source.kind.described, "first_prompt": shown}))
        return
    click.echo(f"{name}: is {source.kind.described}" + ("; the first prompt:" if turns else ""))
    for turn in turns:
        click.echo(textwrap.indent(f"{turn.role}: {turn.content[:PROMPT_SHOWN_MAX]}", "  "))


class _Tokens:
    """Counts tokens with a model's tokenizer, and checks whether a request fits the model."""

    def __init__(self, tokenizer: Tokenizer, max_model_len: int | None) -> None:
        counter = tokenizer.counter()
        self.total = 0
        self.longest = 0
        self.bound = max_model_len or counter.max_model_len
        self._count = counter.count

    def fit(self, request: Request) -> None:
        """Raises: InvalidRequest with the message that a run would give."""
        from batchfile.engine.fit import check_fit

        nums = self._count(request)
        self.total += sum(nums)
        self.longest = max(self.longest, *nums)
        if self.bound is not None:
            check_fit(request, nums, self.bound)


def _show(name: str, problem: LineProblem, *, is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps({"file": name, **asdict(problem)}))
        return
    place = f"{name}:{problem.line}" + ("" if problem.column is None else f":{problem.column}")
    where = f"{problem.where}: " if problem.where else ""
    whose = "" if problem.custom_id is None else f" [{problem.custom_id[:ID_SHOWN_MAX]!r}]"
    message = problem.message if problem.message.endswith((".", "?", "!")) else f"{problem.message}."
    click.echo(f"{place}: {where}{message} {problem.fix}".rstrip() + whose)


def _as_json(summary: Summary, num_problems: int, tokens: "_Tokens | None") -> dict[str, object]:
    return {
        "format": summary.format,
        "requests": summary.num_requests,
        "bad": summary.num_bad,
        "problems": num_problems,
        "bytes": summary.size_bytes,
        "prompt_chars": summary.prompt_chars,
        "max_tokens_median": summary.max_tokens_median,
        "models": dict(summary.models),
        "hints": dict(summary.hints),
        "prompt_tokens": None if tokens is None else tokens.total,
        "longest_prompt_tokens": None if tokens is None else tokens.longest,
    }


def _as_text(summary: Summary, num_problems: int, tokens: "_Tokens | None", *, is_rows: bool) -> str:
    found = "no problems" if num_problems == 0 else counted(num_problems, "problem")
    what = f"{counted(summary.num_requests, 'request')} ({summary.format or 'unknown'} format)"
    text = f"{counted(summary.num_requests, 'row') if is_rows else what}, {found}"
    if summary.num_requests > summary.num_bad:
        text += (
            f"; {counted(summary.prompt_chars, 'character')} of prompt, median max_tokens {summary.max_tokens_median:,}"
        )
    if tokens is not None:
        text += f"; {counted(tokens.total, 'prompt token')}, the longest {tokens.longest:,}"
    return text
