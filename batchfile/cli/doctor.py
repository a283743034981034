"""`batchfile doctor`: checks that everything a run needs is here. A failed check says what to do."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import click

from batchfile import __version__, logs
from batchfile.cli.config import has_own_pools
from batchfile.cli.doctor_fit import devices_named, fit_of
from batchfile.cli.exits import Exit
from batchfile.cli.help import epilog
from batchfile.cli.numbers import Whole
from batchfile.engine.vllm.cpu import check_usable, read_cpu
from batchfile.engine.vllm.preflight import PACKAGES, check_model, is_cpu_build, is_local
from batchfile.engine_settings import EngineSettings
from batchfile.errors import BatchfileError, SettingsError
from batchfile.local.engines import demo_model
from batchfile.machine.capacity import Lengths
from batchfile.machine.devices import visible_devices
from batchfile.settings import Settings, config_path, explain_settings, load_settings
from batchfile.types import EngineKind

GPU_WAIT_S = 10
DISK_BYTES_MIN = 2 * 1024**3

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check. `detail` says what was found, or what to do; `figures`: the same as numbers."""

    name: str
    verdict: Verdict
    detail: str
    figures: dict[str, float | str] | None = None


@click.command(
    "doctor",
    epilog=epilog(
        "batchfile doctor",
        "batchfile doctor --store s3://bucket/prefix",
        "batchfile doctor --model meta-llama/Llama-3.3-70B-Instruct --gpu 2xA100-80GB --quantization fp8",
    ),
)
@click.option("--store", metavar="STORE", help="Test the conditional writes of this store; up to a minute on a bucket.")
@click.option("--model", metavar="MODEL", help="Check this model.  [default: that of a run, and those of the pools]")
@click.option(
    "--gpu",
    metavar="[Nx]NAME|MEMORY",
    help="Calculate for these GPUs, such as 2xA100-80GB, 4090 or 24GB, instead of those here.",
)
@click.option("--quantization", metavar="NAME", help="Calculate with this quantization of vLLM, such as fp8.")
@click.option("--max-model-len", type=Whole(min=16), help="The context length.  [default: of a run, or the model]")
@click.option("--input-tokens", type=Whole(min=1), default=512, show_default=True, help="The mean prompt.")
@click.option("--output-tokens", type=Whole(min=1), default=256, show_default=True, help="The mean answer.")
@click.option("--shared-tokens", type=Whole(min=0), default=0, help="How much of the prompt all requests share.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
def doctor(
    store: str | None,
    model: str | None,
    gpu: str | None,
    quantization: str | None,
    max_model_len: int | None,
    input_tokens: int,
    output_tokens: int,
    shared_tokens: int,
    is_json: bool,
) -> None:
    """Check Python, vLLM, GPU, model, disk, settings and the store. Exits with 1 if a run would fail.

    On GPUs, it also calculates how many requests of each model run at the same time, and how fast. With --gpu, this
    needs no GPU; docs/performance.md explains the arithmetic.
    """
    logs.for_command()
    lengths = Lengths(input=input_tokens, output=output_tokens, shared=min(shared_tokens, input_tokens))
    found = [_safely("python", _python), _safely("batchfile", _batchfile), *_settings_and_store(store)]
    found += [_safely("vllm", _vllm), _safely("gpu", _gpu), _safely("model", lambda: _model(model, gpu))]
    found += [*_fits(model, gpu, quantization, max_model_len, lengths), _safely("disk", _disk)]
    if is_json:
        click.echo(json.dumps({"checks": [asdict(item) for item in found]}))
    else:
        for item in found:
            click.echo(f"{_mark(item.verdict)} {item.name:<10} {item.detail}")
    sys.exit(Exit.UNEXPECTED if any(item.verdict == "failed" for item in found) else Exit.OK)


def _mark(verdict: Verdict) -> str:
    colors = {"ok": "green", "warning": "yellow", "failed": "red"}
    text = f"{verdict:<8}"
    return text if "NO_COLOR" in os.environ else click.style(text, fg=colors[verdict])


def _safely(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (BatchfileError, OSError) as error:
        return Check(name, "failed", str(error))


def _python() -> Check:
    version = platform.python_version()
    return Check("python", "ok", f"{version} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")


def _batchfile() -> Check:
    return Check("batchfile", "ok", __version__)


def _settings_and_store(store: str | None) -> list[Check]:
    try:
        settings = load_settings()
    except SettingsError as error:
        return [Check("settings", "failed", str(error))]
    path = config_path()
    where = str(path) if path.is_file() else "defaults and environment"
    pools = f"; pools {', '.join(sorted(settings.pools))}" if has_own_pools(explain_settings(settings)) else ""
    found = [Check("settings", "ok", where + pools)]
    return [*found, _safely("store", lambda: _store(store, settings))]


def _store(url: str | None, settings: Settings) -> Check:
    from batchfile.store.open import prove_store

    chosen = url or settings.store
    if chosen is None:
        return Check("store", "ok", ".batchfile next to each output; to test another: doctor --store STORE")
    proof = prove_store(chosen)
    if proof.unclear:
        return Check("store", "warning", f"{chosen} was too busy for the test: {proof.unclear}; try again later")
    return Check("store", "ok", f"{chosen} enforces conditional writes (tested for {proof.seconds:.1f} s)")


def _vllm() -> Check:
    for name in PACKAGES:
        try:
            found = f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
        if is_cpu_build():
            check_usable(read_cpu())
        return Check("vllm", "ok", found)
    return Check("vllm", "warning", "is not installed: `just setup` installs it; --engine http and echo do not need it")


def _gpu() -> Check:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", "warning", "no NVIDIA driver here; vLLM runs on the CPU, slowly")
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=GPU_WAIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Check("gpu", "failed", f"nvidia-smi did not answer within {GPU_WAIT_S} s; check the driver")
    if done.returncode != 0:
        return Check("gpu", "failed", f"nvidia-smi: {(done.stderr or done.stdout).strip()[:200]}")
    return Check("gpu", "ok", "; ".join(done.stdout.strip().splitlines()))


def _model(given: str | None, gpu: str | None) -> Check:
    """`gpu`: other GPUs than those here, so the model need not be here either."""
    run = load_settings().run
    model = given or run.model
    if model is not None:
        if run.engine == "vllm" and gpu is None:
            check_model(model, None if given else run.revision)
        return Check("model", "ok", f"{model} ({_where(model, run.engine)})")
    try:
        return Check("model", "ok", f"the demo model in {demo_model()}")
    except SettingsError as error:
        return Check("model", "warning", str(error))


def _fits(
    given: str | None, gpu: str | None, quantization: str | None, max_model_len: int | None, lengths: Lengths
) -> list[Check]:
    """What runs on the GPUs at the same time: of the model of a run, and of those of the pools here."""
    try:
        settings = load_settings()
        devices = visible_devices() if gpu is None else devices_named(gpu)
    except SettingsError as error:
        return [Check("fits", "failed", str(error))]
    if devices[0].kind == "cpu":
        return [Check("fits", "ok", "calculated for GPUs only; name some with --gpu, such as --gpu 2xA100-80GB")]

    def check(revision: str | None, context: int | None, engine: EngineSettings, model: str) -> Check:
        if quantization is not None:
            engine = engine.model_copy(update={"quantization": quantization})
        fit = fit_of(model, devices, engine, lengths, revision=revision, max_model_len=max_model_len or context)
        return Check("fits", "ok" if fit.is_enough else "warning", fit.detail, fit.figures)

    run = settings.run
    named = [(given or run.model, partial(check, None if given else run.revision, run.max_model_len, run))]
    if given is None and has_own_pools(explain_settings(settings)):
        pools = [pool for _, pool in sorted(settings.pools.items()) if pool.engine == "vllm"]
        named += [(pool.model, partial(check, pool.revision, pool.max_model_len, pool)) for pool in pools]

    return [_safely("fits", partial(make, model)) for model, make in named if model is not None]


def _where(model: str, engine: EngineKind) -> str:
    if engine != "vllm":
        return f"engine {engine}"
    return "on this machine" if is_local(model) else "from the Hugging Face Hub, or its cache"


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    text = f"{free / 1024**3:.1f} GiB free here"
    if free < DISK_BYTES_MIN:
        return Check("disk", "warning", f"{text}; results and the store need about twice the input's size")
    return Check("disk", "ok", text)
