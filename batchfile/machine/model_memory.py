"""The memory that a model takes, from its config.json and the index of its weights. Loads neither vLLM nor torch.

A model is a folder, or the id of a model hub whose small files are read from the cache or fetched.
"""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from batchfile.engine.vllm.preflight import CONFIG, HUB_S_MAX, PARAMS, is_local, is_other_hub, read_config, weight_bytes

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILE = "model.safetensors"
_BYTES_OF = {"float64": 8, "float32": 4, "float": 4}  # of a data type; all others have 2
_FOUR_BITS = 4.25  # with the scale of each group of 64 or 128 weights
_LANGUAGE_MODELS = ("text_config", "llm_config", "language_config", "thinker_config")  # within a multimodal model's
_FULL, _WINDOW = {"full_attention", "attention", "hybrid", "global"}, {"sliding_attention", "chunked_attention"}


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Of a whole model: divide the weights by the number of GPUs that share it.

    `kv_bytes_per_token`: of all layers. `kv_heads`: as many GPUs at most divide the KV cache; 1 for a latent that each
    of them keeps. `window_bytes_per_token`: the part of `kv_bytes_per_token` that only the last `window` tokens need.
    `parameters`: without the input embedding; `active_parameters`: those of them that one token uses. `step_bytes`: of
    all of them, which a step reads. `multiplies`: the type of 8 bits in which they are multiplied; empty: 16 bits.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    attention_heads: int
    kv_heads: int
    context_length: int
    parameters: int = 0
    active_parameters: int = 0
    step_bytes: int = 0
    multiplies: Literal["", "fp8", "int8"] = ""
    window: int = 0
    window_bytes_per_token: int = 0

    def kv_bytes(self, tokens: float) -> float:
        """The KV cache of one request of this length."""
        saved = max(0.0, tokens - self.window) * self.window_bytes_per_token if self.window else 0.0
        return tokens * self.kv_bytes_per_token - saved

    def kv_bytes_on_each(self, tokens: float, num_gpus: int) -> float:
        """The same on each of the GPUs that share the model."""
        return self.kv_bytes(tokens) / min(num_gpus, self.kv_heads)


def read_model_memory(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
) -> ModelMemory | None:
    """`dtype`, `quantization`, `kv_cache_dtype`: as given to vLLM. None where the files cannot be read."""
    config_file = _file(model, revision, CONFIG) or _file(model, revision, PARAMS)
    try:
        config = {} if config_file is None else read_config(config_file)
        stored = _stored_bytes(model, revision) if config else None
        if stored is None:
            return None
        return memory_of(config, stored, dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype)
    except (OSError, ValueError, TypeError, ArithmeticError):  # a config of another form
        return None


def memory_of(
    config: Mapping[str, Any],
    stored_bytes: int,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
) -> ModelMemory | None:
    """`config`: of config.json. `stored_bytes`: of the weights in their files. None for a model without attention.

    Raises: ValueError, TypeError, ArithmeticError for a config of another form.
    """
    text = _language_model(config)
    hidden = _number(text, "hidden_size", "n_embd", "d_model", "dim")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not (hidden and heads and layers):
        return None
    stored_type = str(_first(text, config, "dtype", "torch_dtype") or "bfloat16").removeprefix("torch.")
    used_type = dtype.removeprefix("torch.")
    if used_type == "auto":  # vLLM converts float32 to a smaller type
        used_type = "bfloat16" if _BYTES_OF.get(stored_type, 2) > 2 else stored_type
    used_bytes = _BYTES_OF.get(used_type, 2)
    own = _first(text, config, "quantization_config", "quantization")
    quantized = own if isinstance(own, Mapping) else None
    # Quantization leaves the embeddings in the model's type.
    vocabulary = _number(text, "vocab_size") * hidden
    is_tied = bool(_first(text, config, "tie_word_embeddings", "tied_embeddings"))
    embeddings = vocabulary * (1 if is_tied else 2)
    if quantized is None:
        parameters = stored_bytes / _BYTES_OF.get(stored_type, 2)
        embeddings = min(embeddings, int(parameters))
        bits = _requested_bits(quantization) or used_bytes * 8
        weights = embeddings * used_bytes + (parameters - embeddings) * bits / 8
    else:
        weights = float(stored_bytes)
        parameters = embeddings + max(0.0, stored_bytes - embeddings * used_bytes) * 8 / _stored_bits(quantized)
    computed = max(0.0, parameters - (0 if is_tied else vocabulary))
    kv_heads, per_layer = _kv_values(text, hidden, heads)
    kv_bytes = 1 if kv_cache_dtype.startswith(("fp8", "int8")) else used_bytes
    full, within = _attention_layers(text, layers)
    window = _number(text, "sliding_window", "attention_chunk_size")
    return ModelMemory(
        weight_bytes=round(weights),
        kv_bytes_per_token=(full + within) * per_layer * kv_bytes,
        attention_heads=heads,
        kv_heads=kv_heads,
        context_length=_context_length(text),
        step_bytes=round(max(0.0, weights - (0 if is_tied else vocabulary * used_bytes))),
        parameters=round(computed),
        active_parameters=round(computed - _unused_experts(text, hidden, layers, computed)),
        multiplies=_multiplies(quantization if quantized is None else quantized),
        window=window if within else 0,
        window_bytes_per_token=within * per_layer * kv_bytes,
    )


def _language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = next((config[name] for name in _LANGUAGE_MODELS if isinstance(config.get(name), Mapping)), None)
    return config if inner is None else _language_model(inner)


def _first(text: Mapping[str, Any], config: Mapping[str, Any], *names: str) -> object:
    return next((part[name] for part in (text, config) for name in names if part.get(name) is not None), None)


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that is set, or 0."""
    return int(next((config[name] for name in names if config.get(name)), 0))


def _kv_values(text: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, int]:
    """How many GPUs divide the KV cache, and the values that a layer keeps of a token."""
    if latent := _number(text, "kv_lora_rank"):
        return 1, latent + _number(text, "qk_rope_head_dim")
    kv_heads = _number(text, "num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num")
    kv_heads = kv_heads or (1 if text.get("multi_query") else heads)
    head_size = _number(text, "head_dim") or hidden // heads
    return kv_heads, kv_heads * (head_size + (_number(text, "v_head_dim") or head_size))


def _attention_layers(text: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """The layers that keep all tokens, and those that keep a window. Those of other kinds keep none."""
    kinds = text.get("layer_types") or text.get("layers_block_type")
    has_window = bool(_number(text, "sliding_window", "attention_chunk_size")) and text.get("use_sliding_window", True)
    if isinstance(kinds, list):
        num = Counter(map(str, kinds))
        within = sum(num[kind] for kind in _WINDOW)
        return sum(num[kind] for kind in _FULL) + (0 if has_window else within), within if has_window else 0
    if not has_window:
        return layers, 0
    pattern = _number(text, "sliding_window_pattern", "_sliding_window_pattern")
    full = layers // pattern if pattern else 0
    return full, layers - full


def _context_length(text: Mapping[str, Any]) -> int:
    length = _number(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if isinstance(scaling, Mapping) and "yarn" in (scaling.get("rope_type"), scaling.get("type")):
        original = _number(scaling, "original_max_position_embeddings")
        length = max(length, int(original * float(scaling.get("factor") or 1)))
    return length


def _unused_experts(text: Mapping[str, Any], hidden: int, layers: int, parameters: float) -> float:
    """The parameters of the experts that a token does not use."""
    experts = _number(text, "num_experts", "num_local_experts", "n_routed_experts")
    used = _number(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
    if not experts or not used:
        return 0.0
    size = 3 * hidden * _number(text, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    layers -= _number(text, "first_k_dense_replace")
    return min(layers * size * max(0, experts - used), parameters * (1 - used / experts))


def _requested_bits(quantization: str | None) -> float | None:
    """Of a weight, by vLLM's name of a quantization; None: unknown, or none."""
    if quantization is None:
        return None
    name = quantization.lower()
    return 8.0 if "8" in name else _FOUR_BITS if re.search("4|awq|gptq", name) else None


def _stored_bits(quantized: Mapping[str, Any]) -> float:
    """Of a weight in a quantized checkpoint."""
    found: object = quantized.get("bits") or quantized.get("w_bit")
    if found is None and isinstance(groups := quantized.get("config_groups"), Mapping):
        found = next((group["weights"]["num_bits"] for group in groups.values() if group.get("weights")), None)
    if found is not None:
        bits = float(str(found))
        return bits if bits > 4 else bits + _FOUR_BITS - 4
    name = " ".join(str(quantized.get(key, "")) for key in ("quant_method", "quant_algo", "qformat_weight"))
    return _FOUR_BITS if quantized.get("load_in_4bit") else _requested_bits(name) or 8.0


def _multiplies(quantization: Mapping[str, Any] | str | None) -> Literal["", "fp8", "int8"]:
    """Formats of weights alone are multiplied with 16 bits."""
    if isinstance(quantization, Mapping):
        groups = quantization.get("config_groups")
        first: Mapping[str, Any] = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
        weights, activations = first.get("weights") or {}, first.get("input_activations") or {}
        if weights.get("num_bits") == activations.get("num_bits") == 8:
            return "fp8" if weights.get("type") == "float" else "int8"
        quantization = " ".join(str(quantization.get(key, "")) for key in ("quant_method", "quant_algo"))
    name = (quantization or "").lower()
    return "" if "weight_only" in name or "w8a16" in name else "fp8" if "fp8" in name else ""


def _stored_bytes(model: str, revision: str | None) -> int | None:
    """Raises: OSError, ValueError."""
    for name in INDEXES:
        path = _file(model, revision, name)
        if path is not None and (total := read_config(path).get("metadata", {}).get("total_size")):
            return int(total)
    folder = _file(model, revision, CONFIG) or _file(model, revision, PARAMS)
    found = None if folder is None else weight_bytes(folder.parent)
    return found if found is not None or _is_here(model) else _hub_size(model, revision)


def _is_here(model: str) -> bool:
    return is_local(model) or "://" in model or is_other_hub()


def _file(model: str, revision: str | None, name: str) -> Path | None:
    """A small file of a model: of its folder, of the hub's cache, or fetched into it."""
    if _is_here(model):
        path = Path(model).expanduser() / name
        return path if path.is_file() else None
    with suppress(Exception):  # the hub's library and its HTTP library may raise anything
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(model, name, revision=revision)
        if cached is not None:
            return Path(cached) if isinstance(cached, str) else None
        return Path(hf_hub_download(model, name, revision=revision, etag_timeout=HUB_S_MAX))
    return None


def _hub_size(model: str, revision: str | None) -> int | None:
    with suppress(Exception):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(model, SINGLE_FILE, revision=revision)
        size: int | None = get_hf_file_metadata(url, timeout=HUB_S_MAX).size
        return size
    return None
