"""The guard, with real processes: whatever ends the one that started them, they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Prints the guard's pid and then those that must not outlive this process, one way of starting them each.
PARENT = """
import os, subprocess, sys, threading, time
from batchfile.engine.vllm.processes import ProcessGuard

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# A grandchild in a session of its own, whose pid is printed by the child; that ends, or stays.
ORPHAN = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid, flush=True)"
NEST = ORPHAN + "; import time; time.sleep(600)"

way, what = sys.argv[1:]
guard = ProcessGuard()
print(guard.pid, flush=True)
if what == "told":
    child = subprocess.Popen(SLEEP, start_new_session=True)
    guard.watch(child.pid)
    guard.watch(child.pid)
    print(child.pid, flush=True)
elif what == "grandchild":
    child = subprocess.Popen([sys.executable, "-c", NEST, *SLEEP], start_new_session=True)
    guard.watch(child.pid)
elif what == "marked":
    child = subprocess.Popen(SLEEP, start_new_session=True, env={**os.environ, **guard.environ})
    print(child.pid, flush=True)
elif what == "orphan":
    child = subprocess.Popen([sys.executable, "-c", ORPHAN, *SLEEP], env={**os.environ, **guard.environ})
    child.wait()
elif what == "forked":
    def fork():
        with guard.hearing_forks():
            pid = os.fork()
            if not pid:
                time.sleep(600)
                os._exit(0)
            print(pid, flush=True)
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
if way == "close":
    sys.stdin.readline()
    guard.close()
    guard.close()
    print("closed", flush=True)
time.sleep(600)
"""
STARTED = ("told", "grandchild", "marked", "orphan", "forked")


class Parent:
    def __init__(self, way: str, what: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, way, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.guard, self.child = (int(self.line()) for _ in range(2))

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def eventually(is_so: Callable[[], bool]) -> None:
    """The limit is for what never comes, on any machine."""
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def guards_of(parent: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat, open(f"/proc/{name}/cmdline") as command:
                if (
                    int(stat.read().rsplit(")", 1)[1].split()[1]) == parent
                    and "GUARDED_BY_BATCHFILE_" in command.read()
                ):
                    found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("what", STARTED)
def test_nothing_outlives_a_parent_that_was_killed(what: str) -> None:
    parent = Parent("wait", what)
    assert is_running(parent.child)
    parent.end()
    eventually(lambda: not is_running(parent.child))
    eventually(lambda: not is_running(parent.guard))


def test_nothing_outlives_the_kill_of_the_parents_whole_group() -> None:
    parent = Parent("wait", "marked")
    os.killpg(parent.process.pid, signal.SIGKILL)
    parent.end()
    eventually(lambda: not is_running(parent.child))


def test_a_stopped_process_is_ended_too() -> None:
    parent = Parent("wait", "told")
    os.kill(parent.child, signal.SIGSTOP)
    os.kill(parent.process.pid, signal.SIGSTOP)
    parent.end()
    eventually(lambda: not is_running(parent.child))


@pytest.mark.parametrize("what", [what for what in STARTED if what != "forked"])  # of which the first guard alone heard
def test_a_guard_that_was_killed_is_followed_by_another(what: str) -> None:
    parent = Parent("wait", what)
    os.kill(parent.guard, signal.SIGKILL)
    eventually(lambda: any(pid != parent.guard for pid in guards_of(parent.process.pid)))
    [again] = (pid for pid in guards_of(parent.process.pid) if pid != parent.guard)
    arguments = Path(f"/proc/{again}/cmdline").read_text().split("\0")
    # From its first moment: the parent may be killed before it could tell.
    assert (str(parent.child) in arguments) == (what == "told")
    assert is_running(parent.child)
    parent.end()
    eventually(lambda: not is_running(parent.child))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_service_does_not_end_the_guard(number: signal.Signals) -> None:
    parent = Parent("wait", "told")
    os.kill(parent.guard, number)
    parent.end()
    eventually(lambda: not is_running(parent.child))


@pytest.mark.parametrize("what", STARTED)
def test_closing_the_guard_ends_what_it_watches(what: str) -> None:
    parent = Parent("close", what)
    assert is_running(parent.child)
    assert parent.process.stdin is not None
    print(file=parent.process.stdin, flush=True)
    assert parent.line() == "closed\n"
    eventually(lambda: not is_running(parent.child))  # it was killed, and ends in its own time
    parent.end()
