"""`batchfile estimate`: the tokens, time and cost of a file, before it runs, and how each figure was obtained."""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from batchfile import logs
from batchfile.cli.help import epilog
from batchfile.cli.numbers import Finite, Whole
from batchfile.cli.progress import transfer
from batchfile.cli.remote import Where, place_options
from batchfile.cli.run_options import run_options
from batchfile.cli.token_options import Tokenizer, token_options
from batchfile.client.estimate import (
    CHARS_PER_TOKEN,
    FILLED,
    Estimate,
    LocalTime,
    PoolTime,
    Sample,
    expected_output_tokens,
    hosted_price,
    local_time,
    pool_times,
    read_sample,
)
from batchfile.errors import SettingsError
from batchfile.local import past_runs
from batchfile.local.display import counted, duration
from batchfile.local.engines import demo_model
from batchfile.local.inputs import Source, opened, requests_of
from batchfile.local.options import INPUT_OPTIONS, RunOptions, flag_of
from batchfile.local.tables import prepared, with_contents
from batchfile.open_ledger import STORE_FOLDER
from batchfile.routing import check_stage
from batchfile.settings import Settings, load_settings
from batchfile.types import Defaults, Request, RoutingTable

TOKEN_OPTIONS_OF_RUN = ("revision", "parse_control_tokens")
TRIAL_REQUESTS = 20


@click.command(
    "estimate",
    epilog=epilog(
        "batchfile estimate requests.jsonl --model mistralai/Mistral-7B-Instruct-v0.3",
        "batchfile estimate reviews.csv --prompt 'Is it good? {{ review }}' --tokens MODEL --against gpt-4o-mini",
        "batchfile estimate requests.jsonl --url https://batch.example --stage email --gpu-hour 2.50 --gpus 1",
    ),
)
@click.argument("file")
@click.option("--stage", help="The stage of the requests.")
@click.option(
    "--model", metavar="MODEL", help="Estimate a run of MODEL on this machine.  [default: as for `batchfile run`]"
)
@token_options("Count with MODEL's tokenizer.  [default: characters / 4]", also_of=TOKEN_OPTIONS_OF_RUN)
@click.option("--gpu-hour", type=Finite(min=0), metavar="USD", help="The price of a GPU per hour.")
@click.option("--gpus", type=Whole(min=1), metavar="N", help="The number of GPUs of each pool.")
@click.option(
    "--against", multiple=True, metavar="MODEL", help="Compare with a hosted model, or provider:model; repeatable."
)
@run_options((*INPUT_OPTIONS, "max_tokens", "lora"))
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
@place_options
def estimate(
    file: str,
    stage: str | None,
    model: str | None,
    tokenizer: Tokenizer | None,
    max_tokens: int | None,
    lora: Mapping[str, str] | None,
    revision: str | None,
    parse_control_tokens: bool,
    gpu_hour: float | None,
    gpus: int | None,
    against: tuple[str, ...],
    is_json: bool,
    where: Where,
    **inputs: Any,
) -> None:
    """Estimate the requests, tokens, time and cost of FILE, - (stdin), https://… or s3://BUCKET/KEY. Nothing runs.

    For a service or a store, times are based on what the pool's runners measured while they had work in the last
    minute, and are at least the time of one request. Without any, and without a runner here, the estimate is for
    `batchfile run` on this machine, in proportion to the last run of the same model: its receipt is kept in
    ~/.local/state/batchfile. Rows and text are estimated as the requests that they become. Hosted prices are those
    of the package genai-prices. Unknown figures are shown as unknown.
    """
    logs.for_command()
    settings = load_settings()
    options = with_contents(RunOptions(input=file, **inputs))
    with opened(file) as found:
        source = prepared(found, options)
        sample, times = _looked_at(source, settings, stage, tokenizer, max_tokens, where if model is None else None)
    run = None if times is not None else model or _model_of_runs(settings)
    receipt = None if run is None else past_runs.last_run(run)
    local = None if receipt is None else local_time(sample, receipt)
    made = Estimate(
        sample=sample,
        tokenizer=None if tokenizer is None else tokenizer.model,
        times=times,
        expected_output_tokens=local.output_tokens if local else expected_output_tokens(sample, times or []),
        gpu_hour=gpu_hour,
        gpus=gpus,
        hosted=[hosted_price(name, round(sample.input_tokens), round(sample.max_output_tokens)) for name in against],
        local=local,
    )
    if is_json:
        click.echo(json.dumps(_as_json(made)))
        return
    time_lines = _time_lines(times or [])
    if times is None:
        given = {"model": model, "revision": revision, "max_tokens": max_tokens, **inputs}
        given |= {"parse_control_tokens": parse_control_tokens}
        given |= dict.fromkeys(("limit", "sample", "seed"))  # it has a limit of its own
        command = ["batchfile", "run", file, *_options(given, lora or {})]
        time_lines = _local_lines(local, run, shlex.join(command), sample.num_requests)
    click.echo("\n".join([source.shown, *_lines(made, stage, time_lines)]))


def _options(given: Mapping[str, Any], lora: Mapping[str, str]) -> Iterator[str]:
    """Those that are set, as `batchfile run` takes them."""
    for name, value in given.items():
        if value:
            yield from [flag_of(name)] if value is True else [flag_of(name), str(value)]
    for name, place in lora.items():
        yield from ["--lora", f"{name}={place}"]


def _model_of_runs(settings: Settings) -> str | None:
    """What `batchfile run` uses without --model, if that is known."""
    if settings.run.model is None and settings.run.engine == "vllm":
        with suppress(SettingsError):
            return str(demo_model())
    return settings.run.model


def _looked_at(
    source: Source,
    settings: Settings,
    stage: str | None,
    tokenizer: Tokenizer | None,
    max_tokens: int | None,
    where: Where | None,
) -> tuple[Sample, list[PoolTime] | None]:
    """The file's sample, and the times of its pools; None for a run on this machine.

    That is without a `where`, and without a service or a store to ask. The default store of local runs counts only if
    a runner works on it.
    """
    is_named = where is not None and any(place is not None for place in (where.url, where.store, settings.store))
    if where is not None and (is_named or Path(STORE_FOLDER).is_dir()):
        with where.opened() as remote:
            if is_named or remote.runners():
                routing = remote.routing()
                if stage is not None:
                    check_stage(routing.stages, stage)
                defaults = Defaults() if max_tokens is None else Defaults(max_tokens=max_tokens)
                sample = _sampled(source, routing, stage, tokenizer, defaults)
                waiting = {pool.name: pool.pending_requests for pool in remote.pools()}
                return sample, pool_times(sample, remote.runners(), waiting)
    if stage is not None:
        check_stage(settings.stages, stage)
    return _sampled(source, None, None, tokenizer, Defaults(max_tokens=max_tokens or settings.run.max_tokens)), None


def _sampled(
    source: Source, routing: RoutingTable | None, stage: str | None, tokenizer: Tokenizer | None, defaults: Defaults
) -> Sample:
    count: Callable[[Request], int] | None = None
    if tokenizer is not None:
        counts = tokenizer.counter().count

        def count(request: Request) -> int:
            return sum(counts(request))

    with transfer(source.shown, source.size or None) as on_bytes:
        return read_sample(requests_of(source, on_bytes), routing=routing, stage=stage, count=count, defaults=defaults)


def _lines(made: Estimate, stage: str | None, time_lines: Iterable[str]) -> Iterator[str]:
    sample = made.sample
    how = f"{made.tokenizer}'s tokenizer" if made.tokenizer else f"characters / {CHARS_PER_TOKEN}"
    over = "over all requests" if sample.is_whole else f"over a sample of {sample.num_looked_at:,} requests"
    bad = f"; about {sample.num_bad:,.0f} of them cannot run: `batchfile validate` says why" if sample.num_bad else ""
    yield f"  requests       {sample.num_requests:,}{bad}"
    if sample.num_unrouted:
        yield f"                 {_unrouted(sample, stage)}"
    yield f"  input tokens   about {sample.input_tokens:,.0f} ({how}, {over})"
    likely = made.expected_output_tokens
    whose = "the pools'" if made.local is None else "the measured run's"
    text = "expected: unknown" if likely is None else f"expected: about {likely:,}, by {whose} average answer length"
    yield f"  output tokens  at most {sample.max_output_tokens:,.0f} (the sum of max_tokens); {text}"
    yield from time_lines
    yield f"  GPU cost       {_gpu_cost(made)}"
    for price in made.hosted:
        kind = "batch price" if price.is_batch else "list price; its batch price is unknown"
        yield (
            f"  hosted         {price.model} at {price.provider}: ${price.input_usd:,.2f} for input, at most "
            f"${price.max_output_usd:,.2f} for output ({kind})"
        )
    if not made.hosted:
        yield "  hosted         not requested: use --against MODEL"


def _unrouted(sample: Sample, stage: str | None) -> str:
    text = f"no pool for about {sample.num_unrouted:,.0f} of them"
    if stage is None:
        return f"{text}; set --stage, or see `batchfile validate --routing`"
    return f"{text}; `batchfile validate --stage {stage}` says why"


def _local_lines(local: LocalTime | None, model: str | None, command: str, num: int) -> Iterator[str]:
    """`command`: runs the file, but for its output. `num`: of its requests."""
    if local is None and model is None:
        yield "  time           unknown: name the model of a run here with --model, or use --url or --store"
        return
    if local is None:
        yield f"  time           unknown: no run of {model} on this machine was measured. Run the first lines, and"
        yield f"                 estimate again: `{_trial(command, TRIAL_REQUESTS)}`"
        return
    speed, run = local.speed, local.receipt
    at_most, start = "at most " if local.is_at_most else "", duration(speed.startup_s)
    yield f"  time           {at_most}about {duration(local.total_s)}: {start} to start, then {duration(local.work_s)}"
    if local.is_at_most:
        yield f"                 because the measured run did not fill the {speed.slots:,} slots of the engine"
    if local.is_at_most and num > FILLED * speed.slots:
        yield f"                 For a closer estimate, run more lines: `{_trial(command, FILLED * speed.slots)}`"
    ended = datetime.fromtimestamp(run.ended_at).astimezone().strftime("%Y-%m-%d %H:%M")
    tokens = f"{speed.input_tokens:,} tokens in and {speed.output_tokens:,} out"
    yield f"  measured by    {counted(speed.requests, 'request')}, {tokens}, in {duration(speed.busy_s)}: the run of"
    yield f"                 {run.output.path} by {run.engine.kind} with {run.engine.model} ({ended})"


def _trial(command: str, num: int) -> str:
    return f"{command} -o trial-{num}.jsonl --limit {num}"


def _time_lines(times: list[PoolTime]) -> Iterator[str]:
    if not times:
        yield "  time           unknown: no request has a pool"
    for time in times:
        who = f"{counted(time.num_runners, 'runner')} of {time.pool}"
        if time.busy_s is None or time.until_s is None or time.requests_per_s is None:
            verb = "is" if time.num_runners == 1 else "are"
            yield f"  time           unknown: {who} {verb} running, with too little work in the last minute to measure"
            continue
        how = f"at {time.requests_per_s:,.1f} requests/s ({who}, last minute)"
        if time.busy_s == time.request_s:
            how = f"as for a single request ({who}, median of the last 1,000)"
        text = f"  time           about {duration(time.busy_s)} {how}"
        if time.waiting:
            text += f"; {time.waiting:,} requests wait ahead of them: done in {duration(time.until_s)}"
        yield text


def _gpu_cost(made: Estimate) -> str:
    if made.gpu_hour is None or made.gpus is None:
        return "unknown: set --gpu-hour USD and --gpus N"
    if made.gpu_usd is None:
        return "unknown, because the time is unknown"
    return f"about ${made.gpu_usd:,.2f} ({counted(made.gpus, 'GPU')} at ${made.gpu_hour:,.2f}/h)"


def _as_json(made: Estimate) -> dict[str, object]:
    sample = made.sample
    return {
        "requests": sample.num_requests,
        "looked_at": sample.num_looked_at,
        "bad": round(sample.num_bad),
        "unrouted": round(sample.num_unrouted),
        "input_tokens": round(sample.input_tokens),
        "counted_by": made.tokenizer or f"characters / {CHARS_PER_TOKEN}",
        "max_output_tokens": round(sample.max_output_tokens),
        "expected_output_tokens": made.expected_output_tokens,
        "pools": [asdict(time) | {"busy_s": time.busy_s, "until_s": time.until_s} for time in made.times or []],
        "local": made.local and _local_json(made.local),
        "gpu_usd": made.gpu_usd,
        "hosted": [asdict(price) for price in made.hosted],
    }


def _local_json(local: LocalTime) -> dict[str, object]:
    return {
        "startup_s": local.speed.startup_s,
        "work_s": round(local.work_s, 3),
        "is_at_most": local.is_at_most,
        "measured": asdict(local.speed),
        "measured_by": {
            "batch_id": local.receipt.batch_id,
            "output": local.receipt.output.path,
            "ended_at": local.receipt.ended_at,
            **asdict(local.receipt.engine),
        },
    }
