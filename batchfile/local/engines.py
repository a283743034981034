"""Chooses the engine of a run from its options and the settings. Does not load it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from batchfile.engine.base import Engine, EngineFactory
from batchfile.engine.identity import EngineIdentity
from batchfile.engine.open import engine_factory
from batchfile.engine.vllm.adapters import check_adapters
from batchfile.engine.vllm.preflight import check_vllm
from batchfile.engine_settings import EngineSettings
from batchfile.errors import SettingsError
from batchfile.ledger.base import Limits
from batchfile.local.options import RunOptions, flag_of
from batchfile.machine.capacity import Lengths
from batchfile.machine.choice import chosen_arguments, layout_for
from batchfile.machine.layout import Layout
from batchfile.settings import Settings
from batchfile.types import EngineKind

API_KEY_VARIABLE = "OPENAI_API_KEY"  # of the endpoint; BATCHFILE_API_KEY is only for batchfile services
DEMO_MODEL = "SmolLM2-135M-Instruct"
CACHE_VARIABLE = "BATCHFILE_CACHE"  # as in the set-up recipe (`just demo`)
CACHE_FOLDER = "~/.cache/batchfile"
Say = Callable[[str], None]

_OF_HTTP = ("base_url", "wait_for_endpoint")
_OF_VLLM = (
    *("revision", "gpus", "tensor_parallel_size", "pipeline_parallel_size", "dtype", "quantization"),
    *("gpu_memory_utilization", "kv_cache_dtype", "max_num_batched_tokens", "chat_template", "engine_arg"),
    *("tool_parser", "reasoning_parser", "lora", "parse_control_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """`model` is part of the run's identity; `label` is for people. `identity`: what decides answers; None: unknown.

    `layout`: the devices of each replica, which are looked for at the first call; then `arguments` with its size are
    those of `engine_factory`. `defaults`: the arguments of vLLM for requests of these lengths, where none are set.
    `check`: called before a file is planned, with a function that prints a line for people.
    All three raise SettingsError where the engine clearly cannot run it.
    """

    kind: EngineKind
    model: str
    layout: Callable[[], Layout]
    arguments: Mapping[str, Any]
    identity: EngineIdentity | None = None
    defaults: Callable[[Lengths | None], Mapping[str, Any]] = lambda lengths: {}
    check: Callable[[Say], object] = lambda say: None

    @property
    def label(self) -> str:
        if self.kind == "echo":
            return self.kind
        return f"{self.kind} with {f'the demo model {DEMO_MODEL}' if self.model == str(_demo_dir()) else self.model}"

    def for_requests(self, lengths: Lengths | None) -> "EngineChoice":
        return replace(self, arguments={**self.arguments, "defaults": self.defaults(lengths)})

    def noted(self, say: Say) -> EngineFactory:
        """The factory, which also prints the note of an engine about its own choices; each note is printed once."""
        said: set[str] = set()

        def build() -> Engine:
            size = self.layout().tensor_parallel_size
            engine = engine_factory(self.kind, **self.arguments, tensor_parallel_size=size)()
            if engine.info.note and engine.info.note not in said:
                said.add(engine.info.note)
                say(engine.info.note)
            return engine

        return build


def choose_engine(settings: Settings, options: RunOptions) -> EngineChoice:
    """Raises: SettingsError where an option that the engine needs is missing, or one is not for this engine."""
    kind = options.engine or settings.run.engine
    url = options.base_url or settings.run.base_url
    if kind == "http" and not url:
        raise SettingsError("--engine http needs --base-url, such as http://127.0.0.1:8000/v1")
    for option in (*_OF_HTTP, *_OF_VLLM):
        owner = "http" if option in _OF_HTTP else "vllm"
        if getattr(options, option) and kind != owner:
            raise SettingsError(f"{flag_of(option)} is for --engine {owner}, not for {kind}")
    if kind == "http" and options.replicas:
        raise SettingsError("--replicas is for engines on this machine; use --max-num-seqs for more requests at once")
    name = options.model or settings.run.model
    if kind == "echo":
        name = name or "echo"
    elif name is None and kind == "http":
        raise SettingsError("--engine http needs --model: the name that the endpoint serves")
    model = name or str(demo_model())
    # The revision of the settings is that of their model.
    revision = options.revision or (settings.run.revision if kind == "vllm" and options.model is None else None)
    engine, max_model_len = _engine_of(settings, options), options.max_model_len or settings.run.max_model_len
    max_num_seqs = options.max_num_seqs or settings.run.max_num_seqs
    if kind == "vllm":
        check_adapters(options.lora or {})
        if engine.chat_template is not None and not Path(engine.chat_template).is_file():
            raise SettingsError(f"chat_template: {engine.chat_template}: no such file")
        check_vllm(model, revision)  # before a large file is read
    api_key = os.environ.get(API_KEY_VARIABLE) or None
    arguments: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "base_url": url,
        "api_key": api_key,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "tool_parser": options.tool_parser,
        "reasoning_parser": options.reasoning_parser,
        "chat_template": engine.chat_template,
        "lora": options.lora,
        "checks_model": True,
        "parse_control_tokens": options.parse_control_tokens,
        "engine_args": engine.vllm_arguments,
        "task": options.task,
        "wait_for_endpoint": options.wait_for_endpoint,
        "stall_s": settings.limits.engine_stall_s or Limits().engine_stall_s,
    }

    @cache
    def layout() -> Layout:
        if kind != "vllm":
            num = 1 if kind == "http" else engine.replicas or 1
            return Layout(replicas=((),) * num, is_all=num == 1)
        return layout_for(engine, model, revision=revision, max_model_len=max_model_len)

    def defaults(lengths: Lengths | None) -> Mapping[str, Any]:
        return chosen_arguments(
            engine,
            model,
            layout().replicas,
            revision=revision,
            max_num_seqs=max_num_seqs,
            is_generating=options.task == "generate",
            lengths=lengths,
        )

    choice = EngineChoice(kind=kind, model=model, layout=layout, arguments=arguments, check=lambda say: layout())
    if kind == "vllm":
        choice = replace(choice, defaults=defaults)
    if kind == "http" and url and not options.wait_for_endpoint:
        return replace(choice, check=_endpoint_check(url, model, api_key))
    return replace(choice, identity=engine_factory(kind, **arguments).identity())


def _engine_of(settings: Settings, options: RunOptions) -> EngineSettings:
    """The settings of the run, with the options in place of them."""
    given = {name: value for name in EngineSettings.model_fields if (value := getattr(options, name, None)) is not None}
    further = settings.run.engine_args | dict(options.engine_arg or {})
    return settings.run.model_copy(update={**given, "engine_args": further})


def _endpoint_check(url: str, model: str, api_key: str | None) -> Callable[[Say], None]:
    def check(say: Say) -> None:
        from batchfile.engine.http.engine import HttpOptions, check_endpoint

        check_endpoint(HttpOptions(base_url=url, model=model, api_key=api_key), say)

    return check


def demo_model() -> Path:
    """The folder of the demo model. Raises: SettingsError where it is not on this machine."""
    folder = _demo_dir()
    if not (folder / "config.json").is_file():
        raise SettingsError(
            "no model given, and the demo model is not cached: add --model NAME_OR_DIRECTORY, "
            "or run `just setup` once to download the demo model, or try --engine echo"
        )
    return folder


def _demo_dir() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or CACHE_FOLDER).expanduser() / "models" / DEMO_MODEL
