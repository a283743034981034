"""vLLM's own two ways to run a file, as processes of the engine bench: `LLM.generate` and `run-batch`.

`run-batch` of a newer vLLM can be laid over the installed one: `wheel` is a file of that vLLM, of which only the
launcher is read. The engine remains the installed one.
"""

import argparse
import asyncio
import atexit
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

LAUNCHERS = "vllm.entrypoints.launchers"


def answers() -> Iterable[dict[str, Any]]:
    """The questions of the parent; what is yielded back to it is printed by `answer`."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(**what: Any) -> None:
    print("ANSWER " + json.dumps(what), flush=True)


def generate(llm: Any, source: Path, output: Path) -> float:
    """All prompts at once: read, apply the template, generate, write."""
    from vllm import SamplingParams

    started_at = time.monotonic()
    lines = [json.loads(line) for line in source.open()]
    conversations = [line["body"]["messages"] for line in lines]
    params = [SamplingParams(max_tokens=line["body"]["max_tokens"], temperature=0, ignore_eos=True) for line in lines]
    tokenizer = llm.get_tokenizer()
    prompts = [
        {"prompt_token_ids": tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)}
        for turns in conversations
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    with output.open("w") as file:
        for line, result in zip(lines, outputs, strict=True):
            file.write(json.dumps({"custom_id": line["custom_id"], "text": result.outputs[0].text}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - started_at


def work_generate(args: argparse.Namespace) -> None:
    """`LLM` with its own defaults."""
    from vllm import LLM

    llm = LLM(model=args.model, load_format=args.load_format)
    for question in answers():
        if "ready" in question:
            answer(ready=True)
            continue
        llm.reset_prefix_cache()
        answer(seconds=generate(llm, Path(question["source"]), Path(question["output"])))


def work_run_batch(args: argparse.Namespace, flags: list[str], wheel: str | None = None) -> None:
    """vLLM's run_batch, with its own usage context, on an engine that is loaded once."""
    peer = launcher_of(wheel)
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.usage.usage_lib import UsageContext

    streams = hasattr(peer, "open_batch_input")  # since 0.33

    async def run(client: Any, parsed: argparse.Namespace) -> None:
        if not streams:
            await peer.run_batch(client, parsed)
            return
        async with peer.open_batch_input(parsed.input_file, parsed.output_tmp_dir) as file:
            num = peer.validate_batch(file)
            file.seek(0)
            await peer.run_batch(client, parsed, file, num)

    async def serve() -> None:
        sys.argv = ["run_batch", "-i", "in", "-o", "out", *flags, "--served-model-name", "bench"]
        parsed = peer.parse_args()
        if streams:
            peer.ignore_admission_limits(parsed)
        async with build_async_engine_client(parsed, usage_context=UsageContext.OPENAI_BATCH_RUNNER) as client:
            for question in answers():
                if "ready" in question:
                    answer(ready=True)
                    continue
                await client.reset_prefix_cache()
                parsed.input_file, parsed.output_file = question["source"], question["output"]
                started_at = time.monotonic()
                await run(client, parsed)
                with open(parsed.output_file) as file:
                    os.fsync(file.fileno())
                answer(seconds=time.monotonic() - started_at)

    asyncio.run(serve())


def launcher_of(wheel: str | None) -> Any:
    """The module `run_batch` of the installed vLLM, or of a wheel."""
    if wheel is None:
        from vllm.entrypoints.launchers import run_batch

        return run_batch
    from vllm import logger
    from vllm.entrypoints.launchers import cli_args

    # What has another place or is not there in the installed version.
    common = types.ModuleType("vllm.entrypoints.common")
    sys.modules.setdefault(common.__name__, common)
    sys.modules.setdefault(f"{common.__name__}.cli_args", cli_args)
    if not hasattr(logger, "configure_logging_from_args"):
        logger.configure_logging_from_args = lambda *given, **named: nullcontext()
    name, folder = f"{LAUNCHERS}.run_batch", tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # vLLM reads its options from the source
    with zipfile.ZipFile(wheel) as opened:
        path = opened.extract(f"{name.replace('.', '/')}.py", folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
