"""The guard, with real processes."""

import subprocess
import sys
import time

PARENT = """
import subprocess, sys, time
from batchfile.engine.guard import ProcessGuard
guard = ProcessGuard()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
guard.watch(child.pid)
guard.watch(child.pid)
print(child.pid, flush=True)
if sys.argv[1] == "close":
    guard.close()
    print("closed", child.wait(), flush=True)
else:
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_watched_process_does_not_outlive_a_parent_that_was_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "wait"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)

    parent.kill()
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_closing_the_guard_ends_what_it_watches():
    done = subprocess.run(
        [sys.executable, "-c", PARENT, "close"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[1] == "closed -9"
