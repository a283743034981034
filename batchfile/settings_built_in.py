"""The pools and stages that there are without a settings file, so that batchfile starts without one."""

from collections.abc import Mapping, Set
from typing import Any

DEFAULT_POOLS: dict[str, Any] = {
    "llama-70b": {
        "model": "meta-llama/Meta-Llama-3-70B-Instruct",
        "tensor_parallel_size": 2,
    },
    "mistral": {"model": "mistralai/Mistral-7B-Instruct-v0.3"},
}
DEFAULT_STAGES = {"sales_intel": "llama-70b", "subject": "mistral", "email": "mistral", "polish": "llama-70b"}


def built_in(file: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tables for a file that lacks them. Of the stages, those whose pool is in the file, or in variables."""
    pools = _pools_of(file) if "pools" in file else DEFAULT_POOLS.keys()
    known = pools | _pools_of(variables)
    return {"pools": DEFAULT_POOLS, "stages": {stage: pool for stage, pool in DEFAULT_STAGES.items() if pool in known}}


def _pools_of(tables: Mapping[str, Any]) -> Set[str]:
    pools = tables.get("pools")
    return pools.keys() if isinstance(pools, Mapping) else frozenset()
