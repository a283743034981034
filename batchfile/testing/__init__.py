"""What tests of programs that use batchfile need: no model, no network, no waiting.

`MemoryStore`: a store in this process. `FaultyStore`: one that fails as `Faults` and `Ill` say. `EchoEngine`: an engine
without a model, with `EchoFaults`. `ManualClock`: time that moves when it is told to. `run_alone`: a runner without
threads. `CrashPoint` and `armed`: a process that kills itself at a named write.

>>> from batchfile.testing import EchoEngine, MemoryStore, run_alone
>>> store = MemoryStore()
>>> client = batchfile.connect(store)
>>> batch = client.submit("requests.jsonl", stage="email")
>>> options = batchfile.RunnerOptions(runner_id="test", pool="mistral", only=batch.id)
>>> run_alone(batchfile.Runner(batchfile.Ledger(store=store), EchoEngine, options))
>>> [result.text for result in batch.results()]
['Hello.', 'Goodbye.']
"""

from collections.abc import Callable

from batchfile.clock import ManualClock
from batchfile.engine.echo import EchoEngine
from batchfile.engine.echo_options import EchoFaults, EchoOptions
from batchfile.runner.runner import Runner
from batchfile.store.memory import MemoryStore
from batchfile.testing.crash_points import CrashPoint, armed
from batchfile.testing.faulty_store import Faults, FaultyStore, Ill

__all__ = [
    "CrashPoint",
    "EchoEngine",
    "EchoFaults",
    "EchoOptions",
    "Faults",
    "FaultyStore",
    "Ill",
    "ManualClock",
    "MemoryStore",
    "armed",
    "run_alone",
]


def run_alone(runner: Runner, until: Callable[[], bool] = lambda: False) -> None:
    """`runner.run()` without a thread, everything in turn and on the ledger's clock, until `until()` or its end."""
    runner.run_alone(until)
