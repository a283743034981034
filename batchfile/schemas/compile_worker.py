"""The child process that compiles schemas: it loads the compiler once, then compiles each schema in a fork with limits.

Started by compile.py with the argument `MODULE`; `MODULE.load(payload)` returns the function that checks one schema,
bytes to bytes. It has its own process group and ends when its standard input closes. A fork takes milliseconds, while
loading takes seconds, and its end frees all memory of the compiler. Imports no library.
"""

import contextlib
import importlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from batchfile.child_env import begin_child, limit_memory, write_all
from batchfile.schemas.child import read, write

TICK_S = 0.05
# A schema fails when both elapsed time and CPU time reach the limit, so that none fails because the machine is busy.
# At this multiple of the limit, elapsed time alone is enough.
STARVED = 6
READY, ANSWER, TOO_SLOW, DIED, BROKEN = b"READY", b"ANSWER", b"TOO_SLOW", b"DIED", b"BROKEN"

Judge = Callable[[bytes], bytes]


def serve(judge: Judge, requests: int, answers: int) -> None:
    """Runs until `requests` closes. A request: the time limit in seconds, the memory limit in bytes, the schema."""
    while True:
        try:
            time_s, memory, schema = read(requests)
        except EOFError:
            return
        write(answers, *_judged(judge, schema, float(time_s), int(memory), requests))


def _judged(judge: Judge, schema: bytes, time_s: float, memory: int, requests: int) -> tuple[bytes, bytes]:
    near, far = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(near)
        _judge_and_end(judge, schema, memory, far)
    os.close(far)
    answer = bytearray()
    try:
        waited_s = 0.0
        while True:
            ready = select.select([near, requests], [], [], TICK_S)[0]
            if near in ready:
                chunk = os.read(near, 1 << 20)
                if not chunk:
                    break
                answer += chunk
                continue
            if requests in ready:  # requests wait for the previous answer, so this means that it was closed
                os.kill(pid, signal.SIGKILL)
                raise SystemExit(0)
            # Counts ticks instead of using the clock, so that time in which this process is stopped does not count.
            waited_s += TICK_S
            if waited_s >= time_s and (_cpu_s(pid, waited_s) >= time_s or waited_s >= STARVED * time_s):
                os.kill(pid, signal.SIGKILL)
                return TOO_SLOW, b""
    finally:
        os.close(near)
        status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    return (ANSWER, bytes(answer)) if code == 0 else (DIED, str(code).encode())


def _judge_and_end(judge: Judge, schema: bytes, memory: int, far: int) -> NoReturn:
    """Runs in the fork. Skips the interpreter's shutdown, which belongs to the parent process."""
    code = 1
    try:
        limit_memory(memory)
        write_all(far, judge(schema))
        code = 0
    finally:
        os._exit(code)


def _cpu_s(pid: int, otherwise: float) -> float:
    """The CPU time of the process, over all its threads."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return otherwise


def main() -> None:
    answers = begin_child()
    try:
        [payload] = read(0)
    except EOFError:
        return
    started = time.monotonic()
    try:
        judge: Judge = importlib.import_module(sys.argv[1]).load(payload)
    except Exception as error:  # noqa: BLE001 libraries may raise anything; the parent reports it
        write(answers, BROKEN, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
        return
    write(answers, READY, f"{time.monotonic() - started:.1f}".encode())
    serve(judge, 0, answers)


if __name__ == "__main__":
    main()
