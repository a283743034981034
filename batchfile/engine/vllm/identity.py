"""What decides the answers of vLLM with a model: the model's files and the options. Does not import vllm.

Known before the model is loaded, if its files are on this machine.
"""

import os
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from batchfile.engine.identity import CONTEXT_LENGTH, EngineIdentity, digest_of
from batchfile.engine.vllm.adapters import split_source
from batchfile.engine.vllm.cpu import GIB, CpuChoice, choose, kv_cache_gib, read_cpu
from batchfile.engine.vllm.model_files import GENERATION_CONFIG, TOKENIZER_FILES, content_of, path_of
from batchfile.engine.vllm.preflight import CONFIGS, is_cpu_build, model_facts
from batchfile.engine.vllm.tasks import VllmOptions
from batchfile.errors import SettingsError

# 2 GiB of KV cache are enough for a small model on a CPU; the variable has no effect on a GPU.
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2"}

# Arguments that change how fast answers come, and not which ones.
_OF_SPEED = {
    *("gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "block_size"),
    *("max_num_batched_tokens", "enforce_eager", "enable_prefix_caching", "disable_log_stats", "performance_mode"),
    *("max_cudagraph_capture_size", "cudagraph_capture_sizes"),
}
# Where files are put, also within other arguments.
_PLACES = {"download_dir", "cache_dir", "allowed_local_media_path", "log_config_file", "torch_profiler_dir"}
_SAME_WEIGHTS = {"auto", "safetensors", "fastsafetensors", "runai_streamer"}  # formats that load the same files
_OF_A_HUB = {"model", "tokenizer", "hf_config_path", "generation_config"}  # arguments that may name a repository
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_NOT_NAMES = {"", "auto", "vllm"}  # they mean something else, even if a folder has that name


def identity_of(options: VllmOptions, dtype: str | None = None) -> EngineIdentity | None:
    """`dtype`: of a loaded engine on a CPU; None: predicted. None is returned where the model's files are unknown."""
    extra = dict(options.extra)
    revision, named = extra.pop("revision", None), extra.pop("model", options.model)
    tokenizer, other = extra.pop("tokenizer", None), extra.pop("tokenizer_revision", None)
    load_format = str(extra.pop("load_format", options.load_format))
    try:
        model = _known(named, revision)
        own = "the model's"
        if tokenizer is not None or other is not None:  # vLLM takes the model's name or revision for what is not given
            own = _known(tokenizer or named, other or revision, TOKENIZER_FILES)
            own = "the model's" if own == model else own
        template = "" if options.chat_template is None else _known(options.chat_template)
        adapters = {name: _known(*split_source(source)) for name, source in options.lora.items()}
        given = {
            name: _with_contents(value, name, revision if name == "hf_config_path" else None)
            for name, value in extra.items()
            if name not in _OF_SPEED | _PLACES
        }
    except (OSError, _UnknownContent):
        return None
    parts = {
        "the engine": "vllm",
        "the task": options.task,
        "the model": model,
        "the tokenizer": own,
        "the load format": "" if load_format in _SAME_WEIGHTS else load_format,
        "the chat template": template,
        "control tokens in texts": "parsed" if options.parse_control_tokens else "text",
        "the tool parser": options.tool_parser or "",
        "the reasoning parser": str(given.pop("reasoning_parser", options.reasoning_parser) or ""),
        "the data type": dtype or _dtype(options),
        "the quantization": str(given.pop("quantization", options.quantization) or ""),
        "the data type of the KV cache": str(given.pop("kv_cache_dtype", "auto")),
        CONTEXT_LENGTH: str(given.pop("max_model_len", options.max_model_len) or ""),
    }
    given.pop("dtype", None)
    parts |= {f"the adapter {name}": found for name, found in adapters.items()}
    return EngineIdentity(parts | {f"engine_args.{name}": _shown(value) for name, value in sorted(given.items())})


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


class _UnknownContent(Exception):
    """Of a model or another repository whose files are not on this machine."""


def _known(name: str, revision: str | None = None, names: Sequence[str] = CONFIGS) -> str:
    """As of `content_of`. Raises: _UnknownContent, OSError."""
    found = content_of(name, revision, names)
    if found is None:
        raise _UnknownContent(name)
    return found


def _with_contents(value: object, name: str, revision: str | None = None) -> object:
    """The value of an argument, with what is in each file, folder or repository that it names in place of the name.

    Raises: _UnknownContent, OSError.
    """
    if isinstance(value, Mapping):
        revision = str(value["revision"]) if value.get("revision") else None
        return {key: _with_contents(one, key, revision) for key, one in value.items() if key not in _PLACES}
    if isinstance(value, list | tuple):
        return [_with_contents(one, name, revision) for one in value]
    if not isinstance(value, str) or value in _NOT_NAMES:
        return value
    is_repository = _REPOSITORY.fullmatch(value) is not None
    if path_of(value) is None and not is_repository and name not in _OF_A_HUB:
        return value
    found = content_of(value, revision, (*CONFIGS, GENERATION_CONFIG))
    if found is None and is_repository and name in _OF_A_HUB:
        raise _UnknownContent(value)
    return found or value


def _shown(value: object) -> str:
    text = msgspec.json.encode(value, order="sorted")
    return text.decode() if len(text) <= 100 else digest_of([text])
