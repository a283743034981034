"""The options of a run, and what a repeated command has changed.

A batch is found by the path of its output. Its metadata keeps the digest of the input, the engine, the model and the
other options that change the answers. A repeated command that matches them resumes it. Pure.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import sha256
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import msgspec

from batchfile.engine.identity import DIGEST, EngineIdentity
from batchfile.errors import SettingsError
from batchfile.types import EngineKind, Task

STDIN = "-"  # as an input
STDOUT = "-"  # as an output

SHA256 = "run.sha256"
STAMP = "run.stamp"  # the input file as it was last seen; equal means unmodified
INPUT = "run.input"
OUTPUT = "run.output"
REPLACES = "run.replaces"  # the batch whose receipt was at the output when this one was created
LINKED = "run.linked"  # the key of the object with which the store refers to the input file itself
EARLIER = "run.earlier"  # a batch of the output that it replaced, with results that are not among its own
MERGED = "run.merged"  # the SHA-256 of an output whose merged answers are all among its own
ANSWERS_BY = "run.answers_by"  # the parts of the engine's identity, as JSON; empty: unknown
ENGINE = "run.engine"
MODEL = "run.model"
ENGINE_VERSION = "run.engine_version"
COMMITS = "run.commits"  # of models from a hub, by their names, as JSON
CHOSEN = "run.chosen"  # the engine arguments that nobody has set, as JSON
TABLE = "run.table"  # how the results of rows are written
SPEED = "run.speed"  # what one process of the run measured, as JSON

_ROW_OPTIONS = ("prompt", "system", "choices", "schema", "into", "id_column", "raw")
# The options that identify a run, in addition to its input, and the names in messages of those that are not flags.
_GUARDED = (
    *("engine", "model", "stage", "limit", "sample", "seed", *_ROW_OPTIONS, "max_tokens", "temperature"),
    *("revision", "lora", "parse_control_tokens"),
)
_NAMES = {name: f"the {name}" for name in ("engine", "model", "stage")}
_NAMES |= {name: f"the default {name}" for name in ("max_tokens", "temperature")}
INPUT_CHANGED = "the input has changed"
OF_EVERY_REQUEST = ("run.stage", "run.max_tokens", "run.temperature")  # each request has another hash after a change
_SHOWN_MAX = 60
_SAME_MAX = 20  # characters that are shown before the first that differs
_CUT = "... (sha256 "  # after the beginning of a value that is too long for the metadata
_NUMBER = re.compile(r"[0-9.]+")
_KEPT_MAX = 400  # characters of a value in the metadata; a longer one is replaced by its digest

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class EngineArguments(TypedDict, total=False):
    """The options that `batchfile.run` and `batchfile.map` share, for type checkers."""

    model: str | None
    revision: str | None
    engine: EngineKind | None
    base_url: str | None
    wait_for_endpoint: bool
    max_tokens: int | None
    temperature: float | None
    gpu_hour: float | None
    max_model_len: int | None
    max_num_seqs: int | None
    gpus: int | str | None
    tensor_parallel_size: int | str | None
    pipeline_parallel_size: int | None
    replicas: int | None
    dtype: Dtype | None
    quantization: str | None
    gpu_memory_utilization: float | None
    kv_cache_dtype: str | None
    max_num_batched_tokens: int | None
    chat_template: str | None
    engine_arg: Mapping[str, Any] | None
    reasoning_parser: str | None
    lora: Mapping[str, str] | None
    parse_control_tokens: bool
    grace_s: float | None
    reuse: bool
    restart: bool


class TableArguments(TypedDict, total=False):
    """The options of a batch that runs elsewhere which decide what its input becomes."""

    limit: int | None
    sample: int | None
    seed: int | None
    prompt: str | None
    prompt_file: str | None
    system: str | None
    choices: str | None
    schema: str | None
    into: str | None
    id_column: str | None


TABLE_OPTIONS = tuple(TableArguments.__annotations__)
INPUT_OPTIONS = (*TABLE_OPTIONS, "raw")  # they decide which requests an input becomes, and how answers become rows


class RunArguments(EngineArguments, TableArguments, total=False):
    """The options of `batchfile.run`: fields of RunOptions."""

    reuse_from: str | None
    stage: str | None
    raw: bool
    strict: bool
    task: Task
    tool_parser: str | None
    media_folder: str | None


# ruff: noqa: RUF009 fields are made by `_option`
def _option(
    help: str, default: Any = None, *, least: float | None = None, most: float | None = None, metavar: str | None = None
) -> Any:
    """A field that is also an option of the command, with `help` and `metavar`. `least`, `most`: its range."""
    return field(default=default, metadata={"help": help, "least": least, "most": most, "metavar": metavar})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of `batchfile run` and of `batchfile.run`. None: as in the settings.

    `output`: None is stdout; such a run cannot be resumed. Raises: SettingsError for an invalid value.
    """

    input: str = STDIN
    output: str | None = None
    engine: EngineKind | None = _option("The engine that generates answers.  [default: vllm]")
    model: str | None = _option("A model's name or directory.  [default: the demo model, if it is cached]")
    revision: str | None = _option("The branch, tag or commit of the model on its hub.  [default: main]")
    base_url: str | None = _option(
        "With --engine http: an OpenAI-compatible endpoint. Its key is OPENAI_API_KEY.", metavar="URL"
    )
    wait_for_endpoint: bool = _option(
        "With --engine http: keep waiting if the endpoint is unavailable, or rejects the key or the model, instead of "
        "ending the run.",
        default=False,
    )
    stage: str | None = _option("The stage of the requests; stored with the batch.")
    limit: int | None = _option("Use only the first N requests of each input.", least=1, metavar="N")
    sample: int | None = _option("Use only N requests, chosen at random by --seed.", least=1, metavar="N")
    seed: int | None = _option("With --sample: another number chooses others.  [default: 0]", least=0, metavar="N")
    prompt: str | None = _option(
        "For rows and text: the prompt of a row, a Jinja2 template over its columns.  [default: the column prompt or "
        "messages]",
        metavar="TEMPLATE",
    )
    prompt_file: str | None = _option("A file with the template of --prompt.", metavar="FILE")
    system: str | None = _option("For rows and text: a template for the system prompt.", metavar="TEMPLATE")
    choices: str | None = _option("For rows and text: the only possible answers.", metavar="A,B,...")
    schema: str | None = _option(
        "For rows and text: a JSON schema; each of its properties becomes a column.", metavar="FILE"
    )
    into: str | None = _option(
        "For rows: the column of the answer; with --schema, all of it.  [default: answer]", metavar="COLUMN"
    )
    id_column: str | None = _option(
        "For rows: the column of their unique ids.  [default: custom_id, id, or numbers]", metavar="COLUMN"
    )
    raw: bool = _option("Take a text as one prompt, and write its answer as it is.", default=False)
    strict: bool = _option("Reject the file if any line cannot run, before the engine loads.", default=False)
    reuse: bool = _option(
        "Keep finished answers even if nobody knows that the same model made them, as with --engine http.",
        default=False,
    )
    reuse_from: str | None = _option(
        "Keep also the answers that another output of the same store has, which must be complete.", metavar="OUT2"
    )
    restart: bool = _option("Discard the previous run of this output, and start over.", default=False)
    max_tokens: int | None = _option("The default for requests without it.  [default: 2048]", least=1)
    gpu_hour: float | None = _option(
        "The price of a GPU per hour, to show what the run has cost so far.", least=0, metavar="USD"
    )
    temperature: float | None = _option("The default for requests without it.", least=0, most=2)
    max_model_len: int | None = _option("The context length: tokens of prompt and answer together.", least=16)
    max_num_seqs: int | None = _option("How many requests run at the same time.", least=1)
    task: Task = _option(
        "What to load the model for: generate; embed for lines of /v1/embeddings, /v1/score and /v1/rerank; classify "
        "for /v1/classify and the scores of a cross-encoder. Both serve /v1/pooling.  [default: generate]",
        default="generate",
        metavar="TASK",
    )
    gpus: int | str | None = _option(
        "The GPUs to use: all, their number, or a list such as 0,2 or 4-7 (3, is GPU 3 alone).  [default: all]",
        metavar="all|N|LIST",
    )
    tensor_parallel_size: int | str | None = _option(
        "How many GPUs share the model; auto: the fewest in which it fits.  [default: auto]", metavar="N|auto"
    )
    pipeline_parallel_size: int | None = _option(
        "Divide the layers into N parts, each on --tensor-parallel-size GPUs.  [default: 1]", least=1, metavar="N"
    )
    replicas: int | None = _option(
        "How many engines share the work, each in its own process.  [default: as many as the GPUs hold; 1 on a CPU]",
        least=1,
        metavar="N",
    )
    dtype: Dtype | None = _option(
        "The data type of vLLM: bfloat16, float16, float32, or auto: the model's own, or float32 if the CPU "
        "would emulate that.  [default: auto]",
        metavar="TYPE",
    )
    quantization: str | None = _option("vLLM's name of a quantization, such as fp8.", metavar="NAME")
    gpu_memory_utilization: float | None = _option(
        "The share of a GPU's memory that vLLM uses.  [default: 0.95]", least=0.01, most=1, metavar="SHARE"
    )
    kv_cache_dtype: str | None = _option("The data type of the KV cache, such as fp8.", metavar="TYPE")
    max_num_batched_tokens: int | None = _option(
        "How many tokens vLLM computes in one step at most.", least=1, metavar="N"
    )
    chat_template: str | None = _option("A chat template to use instead of the model's own.", metavar="FILE")
    engine_arg: Mapping[str, Any] | None = _option(
        "A further engine argument of vLLM by its Python name, such as enforce_eager=true. Repeatable.",
        metavar="KEY=VALUE",
    )
    tool_parser: str | None = _option("vLLM's name of the parser for tool calls.", metavar="NAME")
    reasoning_parser: str | None = _option("vLLM's name of the parser for thinking.", metavar="NAME")
    lora: Mapping[str, str] | None = _option(
        "A LoRA adapter: a folder, or owner/name or owner/name@revision of the hub. Requests whose model is NAME use "
        "it. Repeatable.",
        metavar="NAME=PATH",
    )
    parse_control_tokens: bool = _option(
        "Give control tokens in texts, such as <|im_end|>, their meaning, instead of taking them as text.",
        default=False,
    )
    grace_s: float | None = _option(
        "How long requests in flight may finish after Ctrl-C or SIGTERM.  [default: 30]",
        least=0,
        metavar="SECONDS",
    )
    media_folder: str | None = _option(
        "The folder of the images and documents that requests name by path.  [default: the folder of the input]",
        metavar="DIR",
    )
    store: str | None = _option(
        "A directory or s3://bucket/prefix.  [default: .batchfile next to the results]", metavar="STORE"
    )

    def __post_init__(self) -> None:
        if not isinstance(self.reuse, bool):
            raise SettingsError(f"reuse: {self.reuse!r} must be True or False; reuse_from names another output")
        size = self.tensor_parallel_size
        if size not in {None, "auto"} and not (str(size).isdecimal() and int(size or 0)):
            raise SettingsError(f"tensor_parallel_size: {size!r} must be a whole number of at least 1, or auto")
        for option in fields(self):
            value = getattr(self, option.name)
            known = choices_of(option.name)
            if value is not None and known and value not in known:
                raise SettingsError(f"{option.name}: {value!r} is unknown; use one of {', '.join(known)}")
            if value is not None and option.metadata.get("least") is not None:
                _check_number(option.name, value)
                _check_range(option.name, value, option.metadata["least"], option.metadata["most"])

    @property
    def row_option(self) -> str | None:
        """The first option that was given for rows and text."""
        return next((name for name in (*_ROW_OPTIONS, "prompt_file") if getattr(self, name) not in {None, False}), None)

    def identity(self, digest: str, engine: EngineIdentity | None = None) -> dict[str, str]:
        """The metadata that identifies a run; empty where not given. `digest`: of the input as given."""
        values = {name: getattr(self, name) for name in _GUARDED}
        guarded = {f"run.{name}": _kept(one) for name, one in values.items()}
        return {SHA256: digest, ANSWERS_BY: parts_of(engine)} | guarded


def _kept(value: object) -> str:
    text = "" if value is None or value is False or value == {} else str(value)
    return text if len(text) <= _KEPT_MAX else f"{text[:_SHOWN_MAX]}{_CUT}{sha256(text.encode()).hexdigest()})"


def check_arguments(function: str, arguments: type, given: Iterable[str]) -> None:
    """Raises: TypeError where a keyword is not in the TypedDict `arguments`, as Python for a function without it."""
    for name in given:
        if name not in arguments.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


@cache  # reading the annotations takes a millisecond
def _kind_of(name: str) -> Any:
    return get_type_hints(RunOptions)[name]


@cache
def choices_of(name: str) -> tuple[str, ...]:
    """The values that an option may have; empty if any value is allowed."""
    kind = _kind_of(name)
    return next((get_args(one) for one in (kind, *get_args(kind)) if get_origin(one) is Literal), ())


def _check_number(name: str, value: object) -> None:
    is_whole = _kind_of(name) == int | None
    if isinstance(value, bool) or not isinstance(value, Integral if is_whole else Real):
        raise SettingsError(f"{name}: {value!r} must be a {'whole ' if is_whole else ''}number")


def _check_range(name: str, value: float, least: float, most: float | None) -> None:
    if least <= value <= (float("inf") if most is None else most) and value != float("inf"):
        return
    limits = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
    raise SettingsError(f"{name}: {value!r} must be {limits}")


def changes(metadata: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """The differences from the run with this `metadata`, as text. An engine that is unknown counts as the same."""
    found = [
        INPUT_CHANGED if name == SHA256 else _change(_name_of(name), metadata.get(name, ""), value)
        for name, value in wanted.items()
        if name != ANSWERS_BY and metadata.get(name, "") != value
    ]
    was, now = _parts(metadata), _parts(wanted)
    for name in [*was, *(name for name in now if name not in was)] if was and now else ():
        is_listed = any(text.startswith(f"{name} ") for text in found)
        if was.get(name, "") != now.get(name, "") and not is_listed:
            found.append(_change(name, was.get(name, ""), now.get(name, "")))
    return found


def parts_of(engine: EngineIdentity | None) -> str:
    """As kept under ANSWERS_BY."""
    return "" if engine is None else msgspec.json.encode(engine.parts).decode()


def _parts(metadata: Mapping[str, str]) -> dict[str, str]:
    text = metadata.get(ANSWERS_BY)
    return msgspec.json.decode(text, type=dict[str, str]) if text else {}


def _change(name: str, was: str, now: str) -> str:
    """Of long values, the part that differs."""
    start = 0
    if max(len(was), len(now)) > _SHOWN_MAX:
        pairs = enumerate(zip(was, now, strict=False))
        start = next((at for at, (one, other) in pairs if one != other), min(len(was), len(now)))
    before, after = (_shown(value, max(0, start - _SAME_MAX)) for value in (was, now))
    if before == after or DIGEST in was + now:
        return f"{name} has changed"
    return f"{name} was {before} and is {after} now"


def _name_of(key: str) -> str:
    name = key.removeprefix("run.")
    return _NAMES.get(name) or flag_of(name)


def flag_of(option: str) -> str:
    return "--" + option.replace("_", "-")


def _shown(value: str, start: int) -> str:
    """From the character `start` on."""
    if value in {"", str(True)}:
        return "given" if value else "not given"
    if _NUMBER.fullmatch(value):
        return value
    text, is_cut, _ = value.partition(_CUT)
    end = start + _SHOWN_MAX
    return repr(("…" if start else "") + text[start:end] + ("…" if is_cut or end < len(text) else ""))
