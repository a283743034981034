"""A Ray cluster of real nodes on this machine, of its own: nothing of another Ray is seen, and nothing of it stays."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
HEAD_ID = "f" * 51 + "00000"  # what the provider of fake nodes takes for the head
OBJECT_BYTES = 80 * 2**20  # the least that Ray accepts is 75 MiB; nothing is kept in it
START_S_MAX = 120.0
STARTED = "Ray runtime started."
ELASTIC = {"CPU": 1, "elastic": 1, "object_store_memory": OBJECT_BYTES}
# Ray's own provider of nodes on one machine, named as a foreign one: its defaults are not in Ray's package.
AUTOSCALER: dict[str, Any] = {
    "cluster_name": "test",
    "max_workers": 2,
    "idle_timeout_minutes": 0.05,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
        "elastic": {"resources": ELASTIC, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "docker": {},
    "cluster_synced_files": [],
    "file_mounts": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def named(process: psutil.Process) -> str:
    """Its command line; empty if it is no more."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill_tree(process: psutil.Process) -> None:
    """With all that it started, at once, as a machine loses its power."""
    with suppress(psutil.NoSuchProcess):
        victims = [process, *process.children(recursive=True)]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.suspend()
        for victim in {*victims, *process.children(recursive=True)}:
            with suppress(psutil.NoSuchProcess):
                victim.kill()


class Node:
    """A started one that is there: two that start at a time can want the same port. All of it is below `process`."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        with log.open("wb") as file:
            self._started = subprocess.Popen(
                command, env=environ, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.process = psutil.Process(self._started.pid)
        try:
            self._await_start(log)
        except BaseException:
            self.kill()
            raise

    def _await_start(self, log: Path) -> None:
        deadline = time.monotonic() + START_S_MAX
        while STARTED not in log.read_text(errors="replace"):
            assert self._started.poll() is None, f"Ray did not start: {log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"Ray did not start in time: {log.read_text()[-3000:]}"
            time.sleep(0.1)

    def processes(self, name: str) -> list[psutil.Process]:
        return [child for child in self.process.children(recursive=True) if name in named(child)]

    def kill(self) -> None:
        kill_tree(self.process)
        self._started.wait()


class Cluster:
    """A head that holds no runner and makes at most two nodes with the resource `elastic`; more nodes by `add`."""

    def __init__(self, folder: Path, temp: str, variables: dict[str, str]) -> None:
        self._folder = folder
        self._temp = temp
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.environ = {
            **os.environ,
            **variables,
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": f"{START_S_MAX:.0f}",
        }
        self._num = 0
        config = folder / "autoscaler.yaml"
        provider = {**AUTOSCALER["provider"], "gcs_address": self.address}
        config.write_text(json.dumps({**AUTOSCALER, "provider": provider}))
        self.head = self._start(
            ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false"],
            [f"--temp-dir={self._temp}", f"--autoscaling-config={config}"],
            RAY_FAKE_CLUSTER="1",
            RAY_enable_autoscaler_v2="1",
            RAY_CLOUD_INSTANCE_ID=HEAD_ID,
            RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD_ID,
            AUTOSCALER_UPDATE_INTERVAL_S="1",
        )
        self._nodes = [self.head]

    def _start(self, where: list[str], more: list[str], **variables: str) -> Node:
        self._num += 1
        common = ["start", "--block", "--disable-usage-stats", f"--object-store-memory={OBJECT_BYTES}"]
        ports = ["--min-worker-port=0", "--max-worker-port=0"]
        environ = {**self.environ, **variables}
        log = self._folder / f"node-{self._num}.log"
        return Node([str(RAY), *common, *ports, *where, *more], environ, log)

    def add(self, **resources: int) -> Node:
        """A node with `CPU` and `GPU` that it may not have, and whatever else it is said to offer."""
        cpus, gpus = resources.pop("CPU", 0), resources.pop("GPU", 0)
        node = self._start(
            [f"--address={self.address}", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", f"--num-gpus={gpus}"],
            [f"--resources={json.dumps(resources)}"],
        )
        self._nodes.append(node)
        return node

    def say(self, *arguments: str, code: int = 0) -> str:
        """`python -m runners.ray`; what it wrote to stdout."""
        command = [sys.executable, "-m", "runners.ray", *arguments]
        done = subprocess.run(command, cwd=self._folder, env=self.environ, capture_output=True, text=True)
        assert done.returncode == code, f"{arguments}: {done.returncode} {done.stderr[-3000:]} {self.logs()}"
        return done.stdout

    def status(self) -> dict[str, dict[str, Any]]:
        """By pool."""
        return {report["plan"]["pool"]: report for report in json.loads(self.say("status", "--json"))}

    def elastic_nodes(self) -> int:
        """Nodes that the autoscaler has made and not ended."""
        monitors = self.head.processes("monitor.py")
        children = [child for monitor in monitors for child in monitor.children(recursive=True)]
        return sum("raylet/raylet" in named(child) for child in children)

    def logs(self) -> str:
        """The ends of what the actors, and so their runners, have said."""
        files = [*self._folder.glob("node-*.log"), *Path(self._temp).glob("session_*/logs/worker-*.err")]
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files)

    def close(self) -> None:
        for node in self._nodes:
            node.kill()


def running(folder: Path, **variables: str) -> Iterator[Cluster]:
    # A short path: Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        cluster = Cluster(folder, temp, variables)
        try:
            yield cluster
        finally:
            cluster.close()
