"""The LoRA adapters of a model: checks and downloads their files, and finds the one that a request names.

Does not import vllm.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from batchfile.engine.vllm.preflight import check_hub, commit_of, is_local, not_loaded
from batchfile.errors import InvalidRequest, SettingsError

CONFIG = "adapter_config.json"
FILES = ("adapter_*",)  # not the tokenizer, and not the checkpoints of a training
# The ranks that vLLM reserves memory for (its MaxLoRARanks); an adapter needs the next one.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# How many adapters may be used in one step; requests of others wait. Memory is reserved for each of them.
ACTIVE_MAX = 8
_NAME = re.compile(r"[^\s=,@]{1,200}")


class _Config(msgspec.Struct):
    r: int = 0
    rank_pattern: dict[str, int] = {}
    peft_type: str = "LORA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """`number`: from 1. `folder`: with its files. `commit`: None if it did not come from a hub."""

    name: str
    number: int
    folder: Path
    rank: int
    commit: str | None


def split_source(source: str) -> tuple[str, str | None]:
    """A folder, or the name of a repository on the hub and its revision: `owner/name@revision`."""
    name, _, revision = source.partition("@")
    return (source, None) if is_local(source) or "://" in source else (name, revision or None)


def check_adapters(lora: Mapping[str, str]) -> None:
    """Raises: SettingsError if one of them cannot be loaded. `lora`: name -> folder or repository."""
    for name, source in lora.items():
        if not _NAME.fullmatch(name):
            raise SettingsError(f"lora: the name {name!r} must not be empty and not contain spaces, '=', ',' or '@'")
        where, revision = split_source(source)
        if is_local(where):
            _rank_of(name, Path(where).expanduser())
        else:
            check_hub(where, revision, CONFIG, f"lora {name!r}: the adapter")


def load_adapters(lora: Mapping[str, str]) -> list[Adapter]:
    """Downloads those that are not on this machine. Raises: SettingsError, EngineDead."""
    found = []
    for number, (name, source) in enumerate(lora.items(), 1):
        where, revision = split_source(source)
        folder = Path(where).expanduser() if is_local(where) else download(where, revision)
        commit = commit_of(str(folder))
        found.append(Adapter(name=name, number=number, folder=folder, rank=_rank_of(name, folder), commit=commit))
    return found


def download(repository: str, revision: str | None) -> Path:
    """The folder of an adapter, from the cache or the hub. Raises: SettingsError, EngineDead."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises many kinds of errors
        raise not_loaded(error, repository) from error


def lora_arguments(adapters: Sequence[Adapter], given: Mapping[str, Any], *, is_cpu: bool) -> dict[str, Any]:
    """The arguments of vLLM that enable these adapters. `given`: arguments that take precedence."""
    if not adapters:
        return {}
    rank, num = max(adapter.rank for adapter in adapters), len(adapters)
    chosen = {
        "enable_lora": True,
        "max_lora_rank": next(fitting for fitting in RANKS if fitting >= rank),
        "max_loras": min(num, ACTIVE_MAX),
        "max_cpu_loras": num,
        **{name: value for name, value in given.items() if name in ("max_lora_rank", "max_loras", "max_cpu_loras")},
    }
    if is_cpu:
        # On a CPU, vLLM 0.32 computes requests without an adapter with the last place for adapters (its index is -1,
        # in vLLM's lora/ops/torch_ops). So that place stays empty.
        chosen["max_loras"] = max(chosen["max_loras"], num + 1)
    return chosen | {"max_cpu_loras": max(chosen["max_cpu_loras"], chosen["max_loras"])}


class Adapters:
    """Finds the adapter of a request. `models`: names that mean the model itself; None: all names but the adapters'."""

    def __init__(self, adapters: Sequence[Adapter], models: Collection[str] | None = None) -> None:
        self._by_name = {adapter.name: adapter for adapter in adapters}
        self._models = models

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def of(self, model: str | None) -> Adapter | None:
        """None: the model itself. Raises: InvalidRequest if the name is unknown."""
        if not self._by_name or model is None:
            return None
        found = self._by_name.get(model)
        if found is None and self._models is not None and model not in self._models:
            known = ", ".join([*self._models, *self._by_name])
            raise InvalidRequest(f"model: {model[:80]!r} is unknown; use one of {known}")
        return found


def _rank_of(name: str, folder: Path) -> int:
    """Raises: SettingsError if this is not a LoRA adapter that vLLM can load."""
    at = f"lora {name!r}: {folder}"
    if not folder.is_dir():
        raise SettingsError(f"{at} does not exist; name the folder of an adapter, or its repository on the hub")
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=_Config)
    except FileNotFoundError:
        raise SettingsError(f"{at} has no {CONFIG}, so it is not an adapter as peft writes it") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{at}/{CONFIG} cannot be read: {error}") from error
    rank = max(config.r, *config.rank_pattern.values(), 0)
    if config.peft_type != "LORA":
        raise SettingsError(f"{at} is an adapter of the kind {config.peft_type}; only LORA is supported")
    if not 1 <= rank <= RANKS[-1]:
        raise SettingsError(f"{at} has the rank {rank}; it must be from 1 to {RANKS[-1]}")
    return rank
