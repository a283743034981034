"""Engines by name. Each is imported when it is built, so that naming one costs nothing."""

from collections.abc import Mapping
from typing import Any

from batchfile.engine.base import Engine, EngineFactory
from batchfile.types import EngineKind, Task


def engine_factory(
    kind: EngineKind,
    *,
    model: str,
    base_url: str | None = None,
    api_key: str | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    gpu_memory_utilization: float = 0.9,
    tensor_parallel_size: int = 1,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    chat_template: str | None = None,
    engine_args: Mapping[str, Any] | None = None,
    task: Task = "generate",
    wait_for_endpoint: bool = True,
    stall_s: float = 600.0,
) -> EngineFactory:
    """What builds the engine, as often as it is asked. `max_num_seqs`: requests at once, whatever the engine.

    `task`: what its model is loaded for; an HTTP endpoint knows that by itself. `chat_template`: a file;
    `engine_args`: more of vLLM's own arguments. `wait_for_endpoint`: also for one that was never available.
    `stall_s`: without progress for this long vLLM counts as dead.
    """

    def build() -> Engine:
        if kind == "vllm":
            from batchfile.engine.vllm.engine import VllmEngine, VllmOptions

            return VllmEngine(
                VllmOptions(
                    model=model,
                    max_model_len=max_model_len,
                    max_num_seqs=max_num_seqs,
                    gpu_memory_utilization=gpu_memory_utilization,
                    tensor_parallel_size=tensor_parallel_size,
                    tool_parser=tool_parser,
                    reasoning_parser=reasoning_parser,
                    chat_template=chat_template,
                    task=task,
                    stall_s=stall_s,
                    extra=dict(engine_args or {}),
                )
            )
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
        from batchfile.engine.echo import EchoEngine
        from batchfile.engine.echo_options import EchoOptions

        return EchoEngine.from_options(EchoOptions.from_env(), model=model, task=task)

    return build
