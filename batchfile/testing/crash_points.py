"""Named points at which a process kills itself, for tests: BATCHFILE_CRASH_AT=`VERB-KIND:PHASE`, or with `:NUMBER`.

`put-shard:after` kills right after the first write of a shard record; `put-part:before:3` right before the third write
of a part. Decided once, when a store is opened: without the variable, a process works on its store directly.
"""

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from batchfile.errors import SettingsError
from batchfile.store.base import Store
from batchfile.testing.faulty_store import FaultyStore, Phase

VARIABLE = "BATCHFILE_CRASH_AT"
_FORM = re.compile(r"(put|commit|delete|link)-([a-z-]+):(before|after)(?::([1-9][0-9]*))?")


@dataclass(slots=True)
class CrashPoint:
    """`left`: how many more writes of this name and phase there are, including the one that kills."""

    name: str
    phase: Phase
    left: int = 1

    @classmethod
    def parse(cls, text: str) -> "CrashPoint":
        """Raises: SettingsError."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise SettingsError(
                f"{VARIABLE} is {text!r}; use a verb (put, commit, delete, link), a kind of object and a phase, such "
                "as put-shard:after or put-part:before:3"
            )
        verb, kind, phase, number = found.groups()
        return cls(f"{verb}-{kind}", "before" if phase == "before" else "after", int(number or 1))

    def __call__(self, number: int, verb: str, key: str, phase: Phase) -> None:
        if phase == self.phase and f"{verb}-{kind_of(key)}" == self.name:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def armed(store: Store, environ: Mapping[str, str] = os.environ) -> Store:
    """The store itself, or one that kills this process where the variable says. Raises: SettingsError."""
    text = environ.get(VARIABLE)
    return FaultyStore(store, on_call=CrashPoint.parse(text)) if text else store


def kind_of(key: str) -> str:
    """Below `batches/`: `batch`, `shard`, `part`, `plan`, `results` ...; else the first folder: `queue`, `index` ..."""
    folder, _, rest = key.partition("/")
    if folder != "batches":
        return folder
    name = re.split(r"[-./]", rest.partition("/")[2])[0]
    return {"shards": "shard", "parts": "part"}.get(name, name)
