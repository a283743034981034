"""Selects an engine by name. Its module is imported only when it is built, because imports are slow."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batchfile.engine.base import Engine
from batchfile.engine.identity import EngineIdentity
from batchfile.types import EngineKind, Task

if TYPE_CHECKING:
    from batchfile.engine.vllm.tasks import VllmOptions

# With any of these set, tests get an echo engine with faults: batchfile/testing/faulty_echo.py.
ECHO_FAULTS = [
    f"BATCHFILE_ECHO_{fault}" for fault in ("POISON", "HANG", "KILL", "REFUSE", "SCHEMA_MISMATCHES", "EXECUTIONS")
]


@dataclass(frozen=True, slots=True)
class EngineMaker:
    """An EngineFactory. `identity` says before an engine is built what decides its answers, as far as that is known."""

    build: Callable[[], Engine]
    identity: Callable[[], EngineIdentity | None]

    def __call__(self) -> Engine:
        return self.build()


def engine_factory(
    kind: EngineKind,
    *,
    model: str,
    revision: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    gpu_memory_utilization: float | None = None,
    tensor_parallel_size: int = 1,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    chat_template: str | None = None,
    parse_control_tokens: bool = False,
    lora: Mapping[str, str] | None = None,
    checks_model: bool = False,
    engine_args: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    task: Task = "generate",
    wait_for_endpoint: bool = True,
    stall_s: float = 600.0,
) -> EngineMaker:
    """A function that builds a new engine with each call. `max_num_seqs`: requests at once, for any engine.

    `revision`: of the model on its hub. `task`: what the model is loaded for; ignored for an HTTP endpoint.
    `chat_template`: a file; `parse_control_tokens`: in texts; `engine_args`: further arguments of vLLM.
    `defaults`: further ones that were chosen, for this engine's devices.
    `lora`: adapters for vLLM; `checks_model`: with adapters, reject requests for other models than this and those.
    `wait_for_endpoint`: wait also for one that was never available.
    `stall_s`: vLLM counts as dead after this time without progress.
    """

    def vllm_options() -> "VllmOptions":
        from batchfile.engine.vllm.tasks import VllmOptions

        return VllmOptions(
            model=model,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            gpu_memory_utilization=gpu_memory_utilization or 0.9,
            tensor_parallel_size=tensor_parallel_size,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
            chat_template=chat_template,
            parse_control_tokens=parse_control_tokens,
            lora=dict(lora or {}),
            checks_model=checks_model,
            task=task,
            stall_s=stall_s,
            defaults=dict(defaults or {}),
            extra=({} if revision is None else {"revision": revision}) | dict(engine_args or {}),
        )

    def build() -> Engine:
        if kind == "vllm":
            from batchfile.engine.vllm.engine import VllmEngine

            return VllmEngine(vllm_options())
        if kind == "http":
            from batchfile.engine.http.engine import HttpEngine, HttpOptions

            assert base_url is not None, "an HTTP engine needs a base URL"
            return HttpEngine(
                HttpOptions(
                    base_url=base_url,
                    model=model,
                    api_key=api_key,
                    concurrency=max_num_seqs or 32,
                    wait_for_endpoint=wait_for_endpoint,
                )
            )
        from batchfile.engine.echo import EchoEngine, EchoOptions

        options = asdict(EchoOptions.from_env())
        if any(os.environ.get(name) for name in ECHO_FAULTS):
            from batchfile.testing.faulty_echo import EchoFaults, FaultyEchoEngine

            return FaultyEchoEngine(faults=EchoFaults.from_env(), model=model, task=task, **options)
        return EchoEngine(model=model, task=task, **options)

    def identity() -> EngineIdentity | None:
        if kind == "vllm":
            from batchfile.engine.vllm.identity import identity_of as identity_of_vllm

            return identity_of_vllm(vllm_options())
        if kind == "http":
            return None  # nothing proves which model answers at an address
        from batchfile.engine.echo import EchoOptions, identity_of

        echo = EchoOptions.from_env()
        return identity_of(model, task, echo.guided, echo.tool_input, echo.thinking)

    return EngineMaker(build, identity)
