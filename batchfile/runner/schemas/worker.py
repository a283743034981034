"""The process that checks answers: one after the other, each within a bound on processor time.

Started by process.py. It is ended by the system once a check takes too long (SIGPROF), or too much memory; it
ends by itself when its standard input closes.
"""

import signal

from batchfile.child_env import begin_child, limit_memory
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
    answers = begin_child()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    limit_memory(MEMORY_MAX)
    serve(0, answers)


if __name__ == "__main__":
    main()
