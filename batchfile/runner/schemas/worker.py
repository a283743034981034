"""The process that checks answers: one after the other, each within a bound on processor time.

Started by process.py. It is ended by the system once a check takes too long (SIGPROF), or too much memory; it
ends by itself when its standard input closes.
"""

import contextlib
import os
import resource
import signal

from batchfile.engine.schemas.compile_worker import read, write
from batchfile.runner.schemas.rules import judged

READY = b"READY"
MEMORY_MAX = 1024**3  # bytes of address space, in addition to what it has when it starts


def serve(requests: int, answers: int) -> None:
    """Until `requests` closes. A request: the bound in seconds, the schema, the text."""
    write(answers, READY)
    while True:
        try:
            time_s, schema, text = read(requests)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, float(time_s))
        verdict = judged(schema, text.decode("utf-8", "surrogatepass"))
        signal.setitimer(signal.ITIMER_PROF, 0)
        write(answers, verdict.kind.encode(), verdict.why.encode("utf-8", "replace"))


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the owner, which may have work to finish
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    _limit_memory()
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get in between
    serve(0, answers)


def _limit_memory() -> None:
    """A system that knows no such limit (macOS) has none."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm", encoding="ascii") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_MAX, hard))


if __name__ == "__main__":
    main()
