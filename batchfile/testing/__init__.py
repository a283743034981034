"""Test doubles for programs that use batchfile: no model, no network, no waiting.

`MemoryStore`: a store in this process. `FaultyStore`: one that fails as `Faults` and `Ill` say. `EchoEngine`: an engine
without a model; `FaultyEchoEngine`: one that fails as `EchoFaults` say. `ManualClock`: time that moves when you move
it. `run_alone`: a runner without threads. `CrashPoint` and `armed`: a process that kills itself at a named write.

>>> from batchfile.testing import EchoEngine, MemoryStore, run_alone
>>> store = MemoryStore()
>>> client = batchfile.connect(store)
>>> batch = client.submit("requests.jsonl", stage="email")
>>> options = batchfile.RunnerOptions(runner_id="test", pool="mistral", only=batch.id)
>>> _ = run_alone(batchfile.Runner(batchfile.Ledger(store=store), EchoEngine, options))
>>> [result.text for result in batch.results()]
['Hello.', 'Goodbye.']
"""

from collections.abc import Callable

from batchfile.clock import ManualClock
from batchfile.engine.echo import EchoEngine, EchoOptions
from batchfile.errors import StoreError
from batchfile.ledger.records import BatchRecord
from batchfile.runner.answers import check_next
from batchfile.runner.preparer import prepare_next
from batchfile.runner.runner import IDLE_WAIT_S, Runner
from batchfile.store.memory import MemoryStore
from batchfile.testing.crash_points import CrashPoint, armed
from batchfile.testing.faulty_echo import EchoFaults, FaultyEchoEngine
from batchfile.testing.faulty_store import Faults, FaultyStore, Ill

__all__ = [
    "CrashPoint",
    "EchoEngine",
    "EchoFaults",
    "EchoOptions",
    "Faults",
    "FaultyEchoEngine",
    "FaultyStore",
    "Ill",
    "ManualClock",
    "MemoryStore",
    "armed",
    "run_alone",
]


def run_alone(runner: Runner, until: Callable[[], bool] = lambda: False) -> BatchRecord | None:
    """`runner.run()` without threads, on the ledger's clock, until `until()` is true or it ends."""
    state, clock = runner._state, runner._ledger.clock
    runner._long_work.num_threads = 0
    jobs: list[Callable[[], bool]] = [
        runner._prefetcher.tick,
        runner._media.load_next,
        lambda: prepare_next(state, state.attempts, "preparer"),
        lambda: prepare_next(state, state.unchecked, "compiler"),
        lambda: check_next(state, runner._check_process),
    ]
    runner._engine_host.build()
    try:
        while not runner._is_over() and not until():
            try:
                while any(job() for job in jobs):
                    pass
                if not runner._step():
                    clock.sleep(IDLE_WAIT_S)
                runner._checkpointer.tick()
                runner._finalizer.tick()
                runner._finalizer.janitor()
            except StoreError as error:
                clock.sleep(runner._refusals.pause_s("runner", error))
        runner._checkpointer.release_all()
        runner._engine_host.retire()
    finally:
        runner._check_process.close()
        runner._check_process.release()
        runner._engine_host.close()
    return state.last_ended
