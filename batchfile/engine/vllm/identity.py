"""What decides the answers of vLLM with a model: the model's files and the options. Does not import vllm.

Known before the model is loaded, if its files are on this machine.
"""

import os
import re
from collections import ChainMap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from batchfile.engine.identity import EngineIdentity, digest_of
from batchfile.engine.vllm.adapters import split_source
from batchfile.engine.vllm.cpu import GIB, CpuChoice, choose, kv_cache_gib, read_cpu
from batchfile.engine.vllm.preflight import cached_config, is_cpu_build, is_other_hub, model_facts
from batchfile.engine.vllm.tasks import VllmOptions
from batchfile.errors import SettingsError

# 2 GiB of KV cache are enough for a small model on a CPU; the variable has no effect on a GPU.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2"}

# Arguments that change how fast answers come, and not which ones.
_OF_SPEED = {
    *("gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "block_size"),
    *("max_num_batched_tokens", "enforce_eager", "enable_prefix_caching", "disable_log_stats", "load_format"),
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
_READ_BYTES_MAX = 64 * 1024 * 1024  # a larger file counts as weights
_NOT_OF_THE_MODEL = (".md", ".lock")


def identity_of(options: VllmOptions, dtype: str | None = None) -> EngineIdentity | None:
    """`dtype`: of a loaded engine on a CPU; None: predicted. None is returned where the model's files are unknown."""
    extra = dict(options.extra)
    revision = extra.pop("revision", None)
    tokenizer, code = extra.pop("tokenizer", None), extra.pop("tokenizer_revision", None)
    try:
        model = content_of(options.model, revision)
        own = "" if tokenizer is None else content_of(tokenizer, code)
        template = "" if options.chat_template is None else digest_of(_chunks(Path(options.chat_template)))
        adapters = {name: content_of(*split_source(source)) for name, source in options.lora.items()}
    except OSError:
        return None
    if model is None or own is None or None in adapters.values():
        return None
    given = {name: value for name, value in extra.items() if name not in _OF_SPEED}
    parts = {
        "the engine": "vllm",
        "the task": options.task,
        "the model": model,
        "the tokenizer": own or code or "the model's",
        "the chat template": template,
        "control tokens in texts": "parsed" if options.parse_control_tokens else "text",
        "the tool parser": options.tool_parser or "",
        "the reasoning parser": str(given.pop("reasoning_parser", options.reasoning_parser) or ""),
        "the data type": dtype or _dtype(options),
        "the quantization": str(given.pop("quantization", options.quantization) or ""),
        "the data type of the KV cache": str(given.pop("kv_cache_dtype", "auto")),
        "the context length": str(given.pop("max_model_len", options.max_model_len) or ""),
    }
    given.pop("dtype", None)
    parts |= {f"the adapter {name}": str(found) for name, found in adapters.items()}
    return EngineIdentity(parts | {f"engine_args.{name}": _shown(value) for name, value in sorted(given.items())})


def content_of(model: str, revision: str | None = None) -> str | None:
    """The commit of a model of a hub, or a digest of a folder's files; None where it is not on this machine.

    Raises: OSError.
    """
    if "://" in model or is_other_hub():
        return None
    path = Path(model).expanduser()
    if path.is_file():
        return digest_of([_stamp(path, path.parent)])
    if not path.is_dir():
        cached = cached_config(model, revision)
        if cached is None:
            return None
        path = cached.parent
    if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name):
        return f"commit {path.name}"
    return digest_of(_content(path))


def choose_on_cpu(options: VllmOptions, dtype: str) -> CpuChoice:
    """Raises: SettingsError if the memory is too small for the model."""
    given = options.extra.get("kv_cache_memory_bytes")
    kv_gib = given / GIB if isinstance(given, int) else kv_cache_gib(ChainMap(dict(os.environ), CPU_ENVIRONMENT))
    return choose(
        read_cpu(),
        model_facts(options.model, revision=options.extra.get("revision")),
        dtype=dtype.removeprefix("torch."),
        is_embedding=options.task != "generate",
        environ=os.environ,
        kv_gib=kv_gib,
    )


def _dtype(options: VllmOptions) -> str:
    dtype = str(options.extra.get("dtype", options.dtype))
    if is_cpu_build():
        with suppress(SettingsError):  # the engine says so
            return choose_on_cpu(options, dtype).dtype
    return dtype


def _content(folder: Path) -> Iterator[bytes]:
    """Small files by their bytes, weights by their size and time: hashing these would take minutes."""
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.suffix in _NOT_OF_THE_MODEL or any(part.startswith(".") for part in place.parts) or not path.is_file():
            continue
        yield f"\0{place}\0".encode(errors="surrogateescape")
        if path.suffix in _WEIGHTS or path.stat().st_size > _READ_BYTES_MAX:
            yield _stamp(path, folder)
        else:
            yield from _chunks(path)


def _stamp(path: Path, folder: Path) -> bytes:
    found = path.stat()
    return f"{path.relative_to(folder)} {found.st_size} {found.st_mtime_ns}".encode(errors="surrogateescape")


def _chunks(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()


def _shown(value: object) -> str:
    text = msgspec.json.encode(value, order="sorted")
    return text.decode() if len(text) <= 100 else digest_of([text])
