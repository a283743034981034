"""Which engine a run means: options over settings. The engine itself is not loaded here."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchfile.engine.base import Engine, EngineFactory
from batchfile.engine.open import engine_factory
from batchfile.engine.vllm.preflight import check_vllm
from batchfile.errors import SettingsError
from batchfile.ledger.base import Limits
from batchfile.settings import Settings
from batchfile.types import EngineKind, Task

API_KEY_VARIABLE = "OPENAI_API_KEY"  # of the endpoint; BATCHFILE_API_KEY is a service's of ours, and goes nowhere else
DEMO_MODEL = "SmolLM2-135M-Instruct"
CACHE_VARIABLE = "BATCHFILE_CACHE"  # as the set-up recipe (`just demo`) has it
CACHE_FOLDER = "~/.cache/batchfile"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """`model` as the run's identity keeps it; `label` for people.

    `check`: before a file is planned; it is given what says a line to people. Raises: SettingsError where it is plain
    that the engine cannot serve it.
    """

    kind: EngineKind
    model: str
    factory: EngineFactory
    check: Callable[[Say], None] = lambda say: None

    @property
    def label(self) -> str:
        return self.kind if self.kind == "echo" else f"{self.kind} with {self.model}"

    def noted(self, say: Say) -> EngineFactory:
        """The factory, which says in one line what an engine has chosen by itself; the same line is said once."""
        said: set[str] = set()

        def build() -> Engine:
            engine = self.factory()
            if engine.info.note and engine.info.note not in said:
                said.add(engine.info.note)
                say(engine.info.note)
            return engine

        return build


def choose_engine(
    settings: Settings,
    kind: str | None,
    model: str | None,
    base_url: str | None,
    *,
    max_model_len: int | None,
    max_num_seqs: int | None,
    task: Task = "generate",
    dtype: str | None = None,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    wait_for_endpoint: bool = False,
) -> EngineChoice:
    """Raises: SettingsError where something that the engine needs is missing, or cannot be for this engine."""
    chosen: EngineKind = kind or settings.run.engine  # type: ignore[assignment]  # the caller checked it
    url = base_url or settings.run.base_url
    if chosen == "http" and not url:
        raise SettingsError("--engine http needs --base-url (base_url=), such as http://127.0.0.1:8000/v1")
    if base_url and chosen != "http":
        raise SettingsError(f"--base-url is for --engine http, not for {chosen}")
    if wait_for_endpoint and chosen != "http":
        raise SettingsError(f"--wait-for-endpoint is for --engine http, not for {chosen}")
    for option, value in (
        ("--dtype", dtype),
        ("--tool-parser", tool_parser),
        ("--reasoning-parser", reasoning_parser),
    ):
        if value and chosen != "vllm":
            raise SettingsError(f"{option} is for --engine vllm, not for {chosen}")
    name = model or settings.run.model
    if chosen == "echo":
        name = name or "echo"
    elif name is None and chosen == "http":
        raise SettingsError("--engine http needs --model (model=): the name that the endpoint serves")
    found = name or str(demo_model())
    if chosen == "vllm":
        check_vllm(found)  # before a large file is read

    api_key = os.environ.get(API_KEY_VARIABLE) or None
    factory = engine_factory(
        chosen,
        model=found,
        base_url=url,
        api_key=api_key,
        max_model_len=max_model_len or settings.run.max_model_len,
        max_num_seqs=max_num_seqs or settings.run.max_num_seqs,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
        engine_args={} if dtype is None else {"dtype": dtype},
        task=task,
        wait_for_endpoint=wait_for_endpoint,
        stall_s=settings.limits.engine_stall_s or Limits().engine_stall_s,
    )
    if chosen == "http" and url and not wait_for_endpoint:
        check = _endpoint_check(url, found, api_key)
        return EngineChoice(kind=chosen, model=found, factory=factory, check=check)
    return EngineChoice(kind=chosen, model=found, factory=factory)


def _endpoint_check(url: str, model: str, api_key: str | None) -> Callable[[Say], None]:
    def check(say: Say) -> None:
        from batchfile.engine.http.engine import HttpOptions, check_endpoint

        check_endpoint(HttpOptions(base_url=url, model=model, api_key=api_key), say)

    return check


def demo_model() -> Path:
    """The folder of the demo model. Raises: SettingsError where it is not on this machine."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or CACHE_FOLDER).expanduser() / "models" / DEMO_MODEL
    if not (folder / "config.json").is_file():
        raise SettingsError(
            "no model was named and the demo model is not here: add --model NAME_OR_DIRECTORY (model=), "
            "or run `just setup` once to fetch the demo model, or try --engine echo"
        )
    return folder
