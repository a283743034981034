"""The processes that vLLM starts: begun, watched and ended so that none dies too soon or lives too long.

Imports no vllm; it is handed vLLM's own objects and looks at the few attributes of theirs that it needs.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any

from batchfile.engine.guard import ProcessGuard
from batchfile.errors import EngineDead, SettingsError

# What the processes of an engine get to end by themselves before they are killed. On a CPU they take five
# seconds to take themselves apart; killing frees the same memory at once.
CLOSE_S = 1.0
# While a model loads: how often to look for processes that have been started.
CHILDREN_LOOK_S = 0.2


def built_apart(build: Callable[[], Any], model: str, guard: ProcessGuard) -> Any:
    """Build the LLM so that its processes end neither before this one nor after it.

    Before: a terminal sends Ctrl-C to the whole process group, systemd and `timeout` do that with SIGTERM, and
    vLLM's processes end on either, with all that is in flight. They inherit the signal mask of the thread that
    starts them, so that one blocks both. The thread that waits for it still hears them. The resource tracker is
    started before, since starting it unblocks them again (multiprocessing/resource_tracker.py). After: see
    guard.py; the guard is told of them as they come, since this process may be killed while a model loads.
    """
    resource_tracker.ensure_running()
    others = set(multiprocessing.active_children())
    built: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            built.append(build())
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=work, name="vllm-build", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(CHILDREN_LOOK_S)
        for child in set(multiprocessing.active_children()) - others:
            if child.pid is not None:
                guard.watch(child.pid)
    if failed:
        raise _not_built(failed[0], model) from failed[0]
    return built[0]


def _not_built(error: BaseException, model: str) -> BaseException:
    if isinstance(error, ValueError | OSError | TypeError | ImportError):
        return SettingsError(f"vLLM can not load the model {model!r}: {error}")
    if isinstance(error, Exception):
        return EngineDead(f"vLLM did not start with the model {model!r}: {error}")
    return error


def close_sockets(core: Any) -> None:
    """vLLM leaves its socket context open, and Python warns of that."""
    reader = core.output_queue_thread
    reader.join(CLOSE_S)
    if not reader.is_alive():
        core.ctx.destroy(linger=0)


def descendants(processes: list[Any]) -> list[Any]:
    """These processes and all that they started."""
    import psutil  # type: ignore[import-untyped]  # vllm needs it too

    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            found += [root, *root.children(recursive=True)]
    return found


def processes(engine: Any) -> list[Any]:
    resources = getattr(engine.engine_core, "resources", None)
    return list(getattr(getattr(resources, "engine_manager", None), "processes", []))
