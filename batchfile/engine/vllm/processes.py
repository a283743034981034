"""The processes that vLLM starts: begun, watched and ended so that none dies too soon or lives too long.

Imports no vllm. Which processes vLLM started is what Python's multiprocessing says, not what vLLM's objects do.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from batchfile.engine.vllm.load_errors import not_loaded
from batchfile.engine.vllm.process_guard import ProcessGuard

# What the processes of an engine get to end by themselves before they are killed. On a CPU they take five
# seconds to take themselves apart; killing frees the same memory at once.
CLOSE_S = 1.0
# While a model loads: a thread that waits without end would hear no signal.
JOIN_S = 0.2


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables set, for the processes that start meanwhile; afterwards as before."""
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


def built_apart(build: Callable[[], Any], model: str, guard: ProcessGuard) -> Any:
    """Build the LLM so that its processes end neither before this one nor after it. Raises: SettingsError, EngineDead.

    Before: a terminal sends Ctrl-C to the whole process group, systemd and `timeout` do that with SIGTERM, and
    vLLM's processes end on either, with all that is in flight. They inherit the signal mask of the thread that
    starts them, so that one blocks both. The thread that waits for it still hears them. The resource tracker is
    started before, since starting it unblocks them again (multiprocessing/resource_tracker.py). After: see
    process_guard.py; the guard knows them by their environment, or by their fork, from their first moment on,
    since this process may be killed while a model loads. Where that is interrupted, what it still starts is ended
    too.
    """
    resource_tracker.ensure_running()
    built: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with environment(guard.environ), guard.hearing_forks():
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
    """Nobody wants any more what the thread builds."""
    while thread.is_alive():
        guard.kill()
        thread.join(JOIN_S)
    guard.close()


def close_sockets(core: Any) -> None:
    """vLLM leaves its socket context open, and Python warns of that; where a version has none, there is nothing."""
    reader, context = getattr(core, "output_queue_thread", None), getattr(core, "ctx", None)
    if reader is None or context is None:
        return
    reader.join(CLOSE_S)
    if not reader.is_alive():
        context.destroy(linger=0)


def descendants(processes: Iterable[BaseProcess]) -> list[Any]:
    """These processes and all that they started."""
    import psutil  # type: ignore[import-untyped]  # vllm needs it too

    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            found += [root, *root.children(recursive=True)]
    return found


def children() -> frozenset[BaseProcess]:
    """The processes that this one has started with multiprocessing, as vLLM does, and that live."""
    return frozenset(multiprocessing.active_children())


def ended(processes: Iterable[BaseProcess]) -> str | None:
    """How one of them ended, in words; None while all live."""
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
