"""batchfile: one JSONL of LLM requests in, one JSONL of results out; all state is in the store.

The Python API. `run` answers a file on this machine, and `map` the rows of a table; `connect` opens a service or a
store; the other names are their types, their errors, and the parts to extend. docs/python.md has examples. A name is
loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from batchfile import errors as errors
    from batchfile import testing as testing
    from batchfile.client.base import BatchStatus as BatchStatus
    from batchfile.client.batch import Batch as Batch
    from batchfile.client.connection import Connection as Connection
    from batchfile.client.connection import connect as connect
    from batchfile.client.results import Result as Result
    from batchfile.engine.base import Engine as Engine
    from batchfile.errors import BatchFailed as BatchFailed
    from batchfile.errors import BatchfileError as BatchfileError
    from batchfile.errors import InvalidFile as InvalidFile
    from batchfile.errors import NotEnded as NotEnded
    from batchfile.errors import NotFound as NotFound
    from batchfile.errors import OutputTaken as OutputTaken
    from batchfile.errors import SettingsError as SettingsError
    from batchfile.errors import WaitTimeout as WaitTimeout
    from batchfile.ledger.base import Ledger as Ledger
    from batchfile.local.api import run as run
    from batchfile.local.map_table import map as map
    from batchfile.local.receipt import Receipt as Receipt
    from batchfile.runner.runner import Runner as Runner
    from batchfile.runner.runner import RunnerOptions as RunnerOptions
    from batchfile.store.open import open_store as open_store
    from batchfile.types import Counts as Counts
    from batchfile.types import Usage as Usage

__all__ = [
    "Batch",
    "BatchFailed",
    "BatchStatus",
    "BatchfileError",
    "Connection",
    "Counts",
    "Engine",
    "InvalidFile",
    "Ledger",
    "NotEnded",
    "NotFound",
    "OutputTaken",
    "Receipt",
    "Result",
    "Runner",
    "RunnerOptions",
    "SettingsError",
    "Usage",
    "WaitTimeout",
    "connect",
    "errors",
    "map",
    "open_store",
    "run",
    "testing",
]

_MODULES = {
    "Batch": "client.batch",
    "BatchStatus": "client.base",
    "Connection": "client.connection",
    "Counts": "types",
    "Engine": "engine.base",
    "Ledger": "ledger.base",
    "Receipt": "local.receipt",
    "Result": "client.results",
    "Runner": "runner.runner",
    "RunnerOptions": "runner.runner",
    "Usage": "types",
    "connect": "client.connection",
    "map": "local.map_table",
    "open_store": "store.open",
    "run": "local.api",
}


def __getattr__(name: str) -> object:
    """PEP 562: load a public name on first use. Names that are not in `_MODULES` are modules or errors."""
    if name not in __all__:
        raise AttributeError(f"module 'batchfile' has no attribute {name!r}")
    if name in {"errors", "testing"}:
        return importlib.import_module(f"batchfile.{name}")
    found: object = getattr(importlib.import_module(f"batchfile.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
