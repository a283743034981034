"""Starts, watches and ends the processes of vLLM, so that none ends too early or outlives this process.

The list of processes comes from Python's multiprocessing, not from vLLM. Without a guard, vLLM's engine process would
outlive this one and wait forever, with the model in memory. The guard is a small process that waits until its parent
ends and then kills the processes that it was told about, their descendants, and all processes with the guard's mark in
their environment. The mark covers the time between a process's start and the message about it. If the guard is killed,
it is started again. Does not import vllm.
"""

import contextlib
import multiprocessing
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import resource_tracker, spawn
from multiprocessing.process import BaseProcess
from typing import IO, Any

from batchfile.child_env import start_child
from batchfile.engine.vllm.preflight import not_loaded

# Followed by a different number for each guard, because a process can have several, also nested ones.
MARK = "GUARDED_BY_BATCHFILE_"
# How often the guard checks whether its parent is running, on systems without pidfd. It cannot wait for the pipe to
# close, because forked children keep it open too.
LOOK_S = 0.5
END_S = 5.0
# The pause before a guard is started again, in case it ends immediately, such as when memory runs out.
AGAIN_S = 0.2
KILL, CLOSE = b"kill\n", b"close\n"

# Runs without site-packages, so that it starts in milliseconds and stays small. A pidfd always means the same process,
# while a pid may be reused; on systems without pidfd, the process group is compared.
_PROGRAM = """
import os, select, signal, sys, time
parent, mark, look_s = int(sys.argv[1]), sys.argv[2].encode(), float(sys.argv[3])
watched, buffer = {}, b""

def watch(pid):
    if pid in watched or pid in (parent, os.getpid()):
        return
    try:
        watched[pid] = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -os.getpgid(pid)
    except OSError:
        pass

def kill(pid, how):
    try:
        if how > 0:
            signal.pidfd_send_signal(how, signal.SIGKILL)
        elif os.getpgid(pid) == -how:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass

def find():
    parents, found = {}, set(watched)
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        names = []
    for name in names:
        try:
            with open("/proc/" + name + "/stat", "rb") as file:
                state, ppid = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        try:
            with open("/proc/" + name + "/environ", "rb") as file:
                is_marked = mark in file.read().split(b"\\0")
        except OSError:
            is_marked = False
        if state in (b"Z", b"X") or int(name) in (parent, os.getpid()):
            continue
        parents[int(name)] = int(ppid)
        if is_marked:
            found.add(int(name))
    size = 0
    while size < len(found):
        size = len(found)
        found |= {pid for pid, ppid in parents.items() if ppid in found}
    return found & set(parents) if names else found

def sweep():
    # Again and again: a process may fork after the listing and before the kill.
    for _ in range(50):
        for pid in find():
            watch(pid)
        for pid, how in watched.items():
            kill(pid, how)
        time.sleep(0.02)
        if not find():
            break

for pid in sys.argv[4:]:
    watch(int(pid))
is_orphan, pidfd = False, []
try:
    pidfd = [os.pidfd_open(parent)]
except (AttributeError, OSError):
    pass
while True:
    is_orphan = os.getppid() != parent
    ready = select.select([0] + pidfd, [], [], 0 if is_orphan else look_s)[0]
    if 0 not in ready:
        if is_orphan:
            break
        if pidfd and pidfd[0] in ready:
            # The parent has exited, but getppid() may show that a moment later.
            pidfd = []
            time.sleep(0.01)
        continue
    data = os.read(0, 4096)
    *lines, buffer = (buffer + data).split(b"\\n")
    for line in lines:
        if line.isdigit():
            watch(int(line))
    if not data or b"close" in lines:
        break
    if b"kill" in lines:
        sweep()
sweep()
"""


class ProcessGuard:
    """Kills the processes it watches when this process ends for any reason, and when it is closed.

    Processes started with `environ` in their environment are watched automatically. Thread-safe.
    """

    def __init__(self) -> None:
        self._mark = f"{MARK}{os.getpid()}_{secrets.token_hex(8)}"
        self._watched: dict[int, str] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._process = self._start()
        threading.Thread(target=self._start_again, name="guard", daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        return {self._mark: "1"}

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, pid: int) -> None:
        """Watch a process. A second call for the same pid does nothing."""
        with self._lock:
            if pid not in self._watched and not self._is_closed:
                self._watched[pid] = _birth(pid)
                self._tell(f"{pid}\n".encode())

    @contextlib.contextmanager
    def hearing_forks(self) -> Iterator[None]:
        """In this context, every child that this thread forks first reports itself to the guard."""
        with self._lock:
            _forking[threading.get_ident()] = self._pipe().fileno()
        try:
            yield
        finally:
            del _forking[threading.get_ident()]

    def kill(self) -> None:
        """Kills all watched processes, and keeps watching."""
        with self._lock:
            self._tell(KILL)

    def close(self) -> None:
        """Kills all watched processes and ends the guard. A second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._tell(CLOSE)
            with contextlib.suppress(OSError):
                self._pipe().close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        """The guard gets the pids as arguments, because this process may be killed before it writes to a pipe."""
        arguments = [str(os.getpid()), f"{self._mark}=1", str(LOOK_S), *map(str, self._watched)]
        return start_child("-I", "-S", "-c", _PROGRAM, *arguments, has_stdout=False)

    def _start_again(self) -> None:
        """Starts the guard again each time it ends unexpectedly."""
        pause = threading.Event()
        while True:
            self._process.wait()
            with self._lock:
                if self._is_closed:
                    return
                with contextlib.suppress(OSError):
                    self._pipe().close()
                with contextlib.suppress(OSError):  # out of memory or processes: the next attempt may succeed
                    # While there was no guard, a pid may have been given to an unrelated process: never kill that.
                    self._watched = {pid: birth for pid, birth in self._watched.items() if _birth(pid) == birth}
                    self._process = self._start()
            pause.wait(AGAIN_S)

    def _tell(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # the guard has just ended; the next one gets the whole list
            self._pipe().write(data)
            self._pipe().flush()

    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


def _birth(pid: int) -> str:
    """The start time of a process, which shows whether a pid was reused; empty if the system does not provide it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


# The pipes of guards, by the threads whose forks report to them.
_forking: dict[int, int] = {}


def _report_fork() -> None:
    pipe = _forking.get(threading.get_ident())
    # A plain write: after a fork, any lock may be held by a thread that does not exist in the child.
    if pipe is not None:
        with contextlib.suppress(OSError):
            os.write(pipe, f"{os.getpid()}\n".encode())


os.register_at_fork(after_in_child=_report_fork)


# How long the processes of an engine may take to end before they are killed. On a CPU, a shutdown takes five seconds;
# killing frees the same memory immediately.
CLOSE_S = 1.0
# While a model loads: a thread that waits without a timeout would not handle signals.
JOIN_S = 0.2


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets these variables for processes that start in this context, and restores them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes that start in this context do not import the program of this one again.

    multiprocessing does that in each process it spawns, as its pickled objects may be of that module; vLLM's are not.
    A script without `if __name__ == "__main__"` would start its own run in there.
    """
    found = spawn.get_preparation_data
    spawn.get_preparation_data = lambda name: {
        key: value for key, value in found(name).items() if not key.startswith("init_main")
    }
    try:
        yield
    finally:
        spawn.get_preparation_data = found


def built_apart(build: Callable[[], Any], model: str, guard: ProcessGuard) -> Any:
    """Build the LLM so that its processes end neither before this one nor after it. Raises: SettingsError, EngineDead.

    Not before: a terminal sends Ctrl-C to the whole process group, systemd and `timeout` do the same with SIGTERM, and
    both would end vLLM's processes with all requests in flight. Processes inherit the signal mask of the thread that
    starts them, so the building thread blocks both signals, while the waiting thread still handles them. The resource
    tracker is started first, because starting it unblocks the signals (multiprocessing/resource_tracker.py).
    Not after: this process may be killed while a model loads, so the guard knows vLLM's processes from their start, by
    their environment or their fork. If loading is interrupted, processes that start later are killed too.
    """
    resource_tracker.ensure_running()
    built: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with environment(guard.environ), without_main(), guard.hearing_forks():
                built.append(build())
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=work, name="vllm-build", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(JOIN_S)
    except BaseException:
        threading.Thread(target=_end, args=(thread, guard), name="vllm-end", daemon=True).start()
        raise
    if failed:
        guard.close()
        raise not_loaded(failed[0], model) from failed[0]
    return built[0]


def _end(thread: threading.Thread, guard: ProcessGuard) -> None:
    """Kills what the thread still starts, until it ends."""
    while thread.is_alive():
        guard.kill()
        thread.join(JOIN_S)
    guard.close()


def close_sockets(core: Any) -> None:
    """Closes the socket context that vLLM leaves open, which causes a warning. Does nothing if a version has none."""
    reader, context = getattr(core, "output_queue_thread", None), getattr(core, "ctx", None)
    if reader is None or context is None:
        return
    reader.join(CLOSE_S)
    if not reader.is_alive():
        context.destroy(linger=0)


def descendants(processes: Iterable[BaseProcess]) -> list[Any]:
    """These processes and all their descendants."""
    import psutil  # type: ignore[import-untyped]  # a dependency of vllm

    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            found += [root, *root.children(recursive=True)]
    return found


def children() -> frozenset[BaseProcess]:
    """The running processes that this one has started with multiprocessing, as vLLM does."""
    return frozenset(multiprocessing.active_children())


def ended(processes: Iterable[BaseProcess]) -> str | None:
    """A description of how one of them ended; None while all are running."""
    for process in processes:
        if not process.is_alive():
            return _how(process.exitcode)
    return None


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    if exit_code == -signal.SIGKILL:
        return "was killed by signal 9, as the system does when memory runs out"
    return f"was killed by signal {-exit_code}"
