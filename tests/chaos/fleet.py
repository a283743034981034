"""The service's processes by name: started, killed, paused, asked to end, and started again."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.chaos.servers import KEYS, free_ports

ROOT = Path(__file__).parents[2]
POOL = "mistral"
DISK_WRITES_MAX = 64  # twice what a small disk holds
# A disk of its own, of 8 MiB, mounted where only this process sees it.
ON_A_SMALL_DISK = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'


def can_mount() -> bool:
    """Whether this machine lets us give a process a disk of its own (user namespaces)."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


class Fleet:
    """`store_of`: the store as each process sees it. A runner is a supervisor and its child.

    `own`: further variables of one process. With `has_disks` each replica has a small disk for its temporary files.
    """

    def __init__(
        self,
        folder: Path,
        store_of: dict[str, str],
        variables: dict[str, str],
        *,
        engine: str = "echo",
        own: dict[str, dict[str, str]] | None = None,
        has_disks: bool = False,
    ) -> None:
        self._folder = folder
        self._store_of = store_of
        self._engine = engine
        self._own = own or {}
        self._has_disks = has_disks
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
            command = ["runners", "--pool", POOL, "--engine", self._engine, "--metrics-port", "0", *store]
        command, own = [sys.executable, "-m", *command], self._own.get(name, {})
        if self._has_disks and name in self.ports:
            disk = self._disk(name)
            disk.mkdir(exist_ok=True)
            command, own = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, str(disk), *command], {"TMPDIR": str(disk)}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self._folder,
                env={**self._environ, **own},
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

    def fill_disk(self, name: str) -> bool:
        """Until there is no room for a byte; False where there is no such disk at the moment."""
        try:
            with self._filler(name).open("wb", buffering=0) as file:
                for _ in range(DISK_WRITES_MAX):
                    file.write(b"x" * 2**18)
        except OSError as error:
            return error.errno == errno.ENOSPC
        self.empty_disk(name)
        return False

    def empty_disk(self, name: str) -> None:
        with suppress(OSError):  # the process has gone, and its disk with it
            self._filler(name).unlink()

    def close(self) -> None:
        for name in self._processes:
            self.kill(name)

    def logs(self) -> list[str]:
        return [line for path in self._folder.glob("*-?.log") for line in path.read_text().splitlines()]

    def pids(self, name: str) -> list[int]:
        """Of the process and its children; empty where it has ended."""
        process = self._processes[name]
        return [] if process.poll() is not None else [process.pid, *self._children(name)]

    def _disk(self, name: str) -> Path:
        return self._folder / f"disk-{name}"

    def _filler(self, name: str) -> Path:
        """As seen from here: through the process to what it sees."""
        return Path(f"/proc/{self._processes[name].pid}/root{self._disk(name).absolute()}/filler")

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
