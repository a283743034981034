"""Chooses the engine of a run from its options and the settings. Does not load it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchfile.engine.base import Engine, EngineFactory
from batchfile.engine.identity import EngineIdentity
from batchfile.engine.open import engine_factory
from batchfile.engine.vllm.adapters import check_adapters
from batchfile.engine.vllm.preflight import check_vllm
from batchfile.errors import SettingsError
from batchfile.ledger.base import Limits
from batchfile.local.options import RunOptions
from batchfile.settings import Settings
from batchfile.types import EngineKind

API_KEY_VARIABLE = "OPENAI_API_KEY"  # of the endpoint; BATCHFILE_API_KEY is only for batchfile services
DEMO_MODEL = "SmolLM2-135M-Instruct"
CACHE_VARIABLE = "BATCHFILE_CACHE"  # as in the set-up recipe (`just demo`)
CACHE_FOLDER = "~/.cache/batchfile"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """`model` is part of the run's identity; `label` is for people. `identity`: what decides answers; None: unknown.

    `check`: called before a file is planned, with a function that prints a line for people. Raises: SettingsError where
    the engine clearly cannot run it.
    """

    kind: EngineKind
    model: str
    factory: EngineFactory
    identity: EngineIdentity | None = None
    check: Callable[[Say], None] = lambda say: None

    @property
    def label(self) -> str:
        if self.kind == "echo":
            return self.kind
        return f"{self.kind} with {f'the demo model {DEMO_MODEL}' if self.model == str(_demo_dir()) else self.model}"

    def noted(self, say: Say) -> EngineFactory:
        """The factory, which also prints the note of an engine about its own choices; each note is printed once."""
        said: set[str] = set()

        def build() -> Engine:
            engine = self.factory()
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
    for option, value, owner in (
        ("--base-url", options.base_url, "http"),
        ("--wait-for-endpoint", options.wait_for_endpoint, "http"),
        ("--revision", options.revision, "vllm"),
        ("--dtype", options.dtype, "vllm"),
        ("--tool-parser", options.tool_parser, "vllm"),
        ("--reasoning-parser", options.reasoning_parser, "vllm"),
        ("--lora", options.lora, "vllm"),
        ("--parse-control-tokens", options.parse_control_tokens, "vllm"),
    ):
        if value and kind != owner:
            raise SettingsError(f"{option} is for --engine {owner}, not for {kind}")
    name = options.model or settings.run.model
    if kind == "echo":
        name = name or "echo"
    elif name is None and kind == "http":
        raise SettingsError("--engine http needs --model: the name that the endpoint serves")
    model = name or str(demo_model())
    # The revision of the settings is that of their model.
    revision = options.revision or (settings.run.revision if kind == "vllm" and options.model is None else None)
    if kind == "vllm":
        check_adapters(options.lora or {})
        check_vllm(model, revision)  # before a large file is read
    api_key = os.environ.get(API_KEY_VARIABLE) or None
    factory = engine_factory(
        kind,
        model=model,
        revision=revision,
        base_url=url,
        api_key=api_key,
        max_model_len=options.max_model_len or settings.run.max_model_len,
        max_num_seqs=options.max_num_seqs or settings.run.max_num_seqs,
        tool_parser=options.tool_parser,
        reasoning_parser=options.reasoning_parser,
        lora=options.lora,
        checks_model=True,
        parse_control_tokens=options.parse_control_tokens,
        engine_args={} if options.dtype is None else {"dtype": options.dtype},
        task=options.task,
        wait_for_endpoint=options.wait_for_endpoint,
        stall_s=settings.limits.engine_stall_s or Limits().engine_stall_s,
    )
    if kind == "http" and url and not options.wait_for_endpoint:
        return EngineChoice(kind=kind, model=model, factory=factory, check=_endpoint_check(url, model, api_key))
    return EngineChoice(kind=kind, model=model, factory=factory, identity=factory.identity())


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
