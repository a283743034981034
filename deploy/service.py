"""Starts the complete service on this machine: the API, the runners of every pool and, with --s3, an S3 server.

    .venv/bin/python deploy/service.py                                  # real vLLM, until Ctrl-C
    .venv/bin/python deploy/service.py --engine echo -- node app.mjs    # for as long as the command runs

A command after `--` runs once everything is up, with LOCAL_BATCH_URL set; its exit status is returned. Models in the
models folder are used from there. Logs are files in --folder.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tiny_llama
from local_setup.machine import has_nvidia_gpu
from local_setup.places import ROOT, SetupError, models_dir
from local_setup.progress import say

from batchfile.engine.vllm.cpu import BIND, KV_CACHE, core_shares, read_cpu
from batchfile.errors import SettingsError
from batchfile.settings import CONFIG_VARIABLE, load_settings
from batchfile.settings_tables import PoolSettings
from batchfile.signals import on_stop

CONFIG = ROOT / "examples" / "service.toml"
FOLDER = ROOT / "out" / "service"
START_S_MAX = 900.0  # two engines on two cores take minutes to start
STOP_S_MAX = 20.0  # after each signal; the last one is SIGKILL
LOOK_S = 0.2
LOG_CHARS_SHOWN = 3_000
S3 = "s3"
BUCKET = "batchfile"
S3_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_EC2_METADATA_DISABLED": "true"}
KV_CACHE_GIB = "1"  # of each engine on a CPU
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(parent: int) -> None:
    """Run in a child before its program starts: it gets SIGTERM when this process dies, however that happens."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the line above
        os._exit(1)


class Stopped(Exception):
    """A process ended (the message says which), or a stop was requested (the message is empty)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProcess:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class ServiceProcesses:
    """The processes of the service, in separate sessions, so that Ctrl-C reaches them only through this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[ServiceProcess] = []
        self._stopped = threading.Event()
        on_stop(self._stopped.set)

    def start(self, name: str, command: list[str], environ: dict[str, str]) -> None:
        log = self._folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509  # single-threaded
            )
        self._parts.append(ServiceProcess(name=name, process=process, log=log))

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Waits. Raises: Stopped, also if it takes too long."""
        deadline = time.monotonic() + START_S_MAX
        while not is_so():
            self.look()
            if time.monotonic() > deadline:
                raise Stopped(f"{what} did not start within {START_S_MAX:.0f} s; see the logs in {self._folder}")
            time.sleep(LOOK_S)

    def look(self) -> None:
        """Raises: Stopped if a process has ended or a stop was requested."""
        for part in self._parts:
            code = part.process.poll()
            if code is not None:
                end = part.log.read_text(errors="replace")[-LOG_CHARS_SHOWN:]
                raise Stopped(f"{part.name} exited with {code}. The end of {part.log}:\n{end}")
        if self._stopped.is_set():
            raise Stopped

    def stop(self) -> None:
        """Stop all processes, finally by SIGKILL; the S3 server after those that write to it."""
        for is_s3 in (False, True):
            parts = [part for part in self._parts if (part.name == S3) == is_s3]
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                left = [part for part in parts if part.process.poll() is None]
                for part in left:
                    part.process.send_signal(number)
                deadline = time.monotonic() + STOP_S_MAX
                while time.monotonic() < deadline and any(part.process.poll() is None for part in left):
                    time.sleep(LOOK_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Does the server answer at all? 404 counts."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except OSError:
        return False


def is_pool_up(url: str, pool: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=30) as answer:
            return bool(json.load(answer)["pools"].get(pool, {}).get("status") == "up")
    except OSError:
        return False


def start_s3(machine: ServiceProcesses) -> str:
    """Starts an in-memory S3 server. Returns the URL of a store in it."""
    program = Path(sys.executable).with_name("ministack")
    if not program.is_file():
        raise SetupError("--s3 needs MiniStack; run `just test` once, or `.venv/bin/pip install ministack`.")
    os.environ.update(S3_CREDENTIALS)
    port = free_port()
    environ = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
    machine.start(S3, [str(program)], environ)
    url = f"http://127.0.0.1:{port}"
    machine.until("the S3 server", lambda: answers(url))
    import boto3

    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    client.close()
    return f"s3://{BUCKET}/service?endpoint={url}&region=us-east-1"


def pool_environ(pools: dict[str, PoolSettings]) -> dict[str, dict[str, str]]:
    """The variables that let real engines share a machine: a local model and separate cores for each pool.

    Without them, vLLM runs every engine of a machine without a GPU on the same cores.
    """
    shares = core_shares(read_cpu().cores, len(pools))
    found: dict[str, dict[str, str]] = {}
    for (name, pool), share in zip(pools.items(), shares, strict=True):
        found[name] = {} if KV_CACHE in os.environ else {KV_CACHE: KV_CACHE_GIB}
        model = tiny_llama.made() if pool.model == tiny_llama.NAME else models_dir() / pool.model
        if model.is_dir():
            found[name][f"BATCHFILE_POOLS__{name.upper()}__MODEL"] = str(model)
        if share is not None and pool.tensor_parallel_size in {1, "auto"} and BIND not in os.environ:
            found[name][BIND] = share
    return found


def start_all(machine: ServiceProcesses, args: argparse.Namespace) -> str:
    """Starts everything. Returns the URL of the API when all pools are up."""
    pools = load_settings().pools
    store = start_s3(machine) if args.s3 else args.store or str(args.folder.absolute() / "store")
    python = [sys.executable, "-m"]
    port = args.port or free_port()
    machine.start("api", [*python, "api", "--host", "127.0.0.1", "--port", str(port), "--store", store], {})
    url = f"http://127.0.0.1:{port}"
    machine.until("the API", lambda: answers(f"{url}/ready"))
    say(f"The API is up: {url} (documentation: {url}/docs). The store is {store}.")
    environs = pool_environ(pools) if args.engine == "vllm" else {name: {} for name in pools}
    is_gpu_shared = args.engine == "vllm" and has_nvidia_gpu()
    for name in pools:
        metrics = free_port()
        options = ["--pool", name, "--engine", args.engine, "--slots", "1", "--metrics-port", str(metrics)]
        machine.start(name, [*python, "runners", *options, "--store", store], environs[name])
        say(f"  {name} is starting (metrics: http://127.0.0.1:{metrics}/metrics)")
        if is_gpu_shared:  # vLLM measures free memory while it starts
            machine.until(name, partial(is_pool_up, url, name))
    for name in pools:
        machine.until(name, partial(is_pool_up, url, name))
        say(f"  {name} is up")
    return url


def run_command(machine: ServiceProcesses, command: list[str], url: str) -> int:
    environ = {**os.environ, "LOCAL_BATCH_URL": url, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(command, env=environ)
    try:
        while (code := process.poll()) is None:
            machine.look()
            time.sleep(LOOK_S)
        return code
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def serve(args: argparse.Namespace) -> int:
    os.environ[CONFIG_VARIABLE] = str(args.config.absolute())
    args.folder.mkdir(parents=True, exist_ok=True)
    machine = ServiceProcesses(args.folder)
    started = time.monotonic()
    try:
        url = start_all(machine, args)
        say(f"Everything is up after {time.monotonic() - started:.0f} s. The logs are in {args.folder}.")
        if args.command:
            return run_command(machine, args.command, url)
        say("Press Ctrl-C to stop.")
        while True:
            machine.look()
            time.sleep(LOOK_S)
    except Stopped as stopped:
        say(str(stopped) or "Stopping ...")
        return 1 if str(stopped) else 130 if args.command else 0
    except (SetupError, SettingsError) as error:
        say(str(error))
        return 2
    finally:
        machine.stop()


def parse(arguments: list[str]) -> argparse.Namespace:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--engine", choices=("vllm", "echo"), default="vllm", help="engine of the runners (%(default)s)")
    add("--port", type=int, default=8000, help="port of the API, 0 for any free port (%(default)s)")
    add("--config", type=Path, default=CONFIG, help="settings file with pools, models and stages (%(default)s)")
    add("--folder", type=Path, default=FOLDER, help="folder of the logs and, by default, the store")
    store = parser.add_mutually_exclusive_group()
    store.add_argument("--store", help="a directory or s3://bucket/prefix (default: a directory in --folder)")
    store.add_argument("--s3", action="store_true", help="also start an S3 server and use it as the store")
    found = parser.parse_args(arguments[:cut])
    found.command = arguments[cut + 1 :]
    return found


if __name__ == "__main__":
    sys.exit(serve(parse(sys.argv[1:])))
