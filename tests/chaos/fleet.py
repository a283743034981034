"""The service's processes by name: started, killed, paused, asked to end, and started again."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.chaos.servers import KEYS, free_ports

ROOT = Path(__file__).parents[2]
POOL = "mistral"


class Fleet:
    """`store_of`: the store as each process sees it. A runner is a supervisor and its child."""

    def __init__(self, folder: Path, store_of: dict[str, str], variables: dict[str, str]) -> None:
        self._folder = folder
        self._store_of = store_of
        self._environ = {**os.environ, **KEYS, **variables, "PYTHONPATH": str(ROOT)}
        self.apis = [name for name in store_of if name.startswith("api")]
        self.runners = [name for name in store_of if name.startswith("runner")]
        self.ports = dict(zip(self.apis, free_ports(len(self.apis)), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def names(self) -> list[str]:
        return [*self.apis, *self.runners]

    def start(self, name: str) -> None:
        store = ["--store", self._store_of[name]]
        if name in self.ports:
            command = ["api", "--port", str(self.ports[name]), *store]
        else:
            command = ["runners", "--pool", POOL, "--engine", "echo", "--metrics-port", "0", *store]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def code(self, name: str) -> int | None:
        return self._processes[name].poll()

    def send(self, name: str, number: signal.Signals) -> None:
        """To the process and its children, as when their machine goes."""
        for pid in self._children(name):
            _send(pid, number)
        self.send_parent(name, number)

    def send_parent(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)  # to nobody, where it has ended

    def send_child(self, name: str, number: signal.Signals) -> bool:
        """False where there is none at the moment."""
        children = self._children(name)
        for pid in children:
            _send(pid, number)
        return bool(children)

    def kill(self, name: str) -> None:
        self.send(name, signal.SIGKILL)
        self._processes[name].wait()

    def close(self) -> None:
        for name in self._processes:
            self.kill(name)

    def logs(self) -> list[str]:
        return [line for path in self._folder.glob("*-?.log") for line in path.read_text().splitlines()]

    def pids(self, name: str) -> list[int]:
        """Of the process and its children; empty where it has ended."""
        process = self._processes[name]
        return [] if process.poll() is not None else [process.pid, *self._children(name)]

    def _children(self, name: str) -> list[int]:
        process = self._processes[name]
        if process.poll() is not None:
            return []
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        return []


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
