"""An echo engine that fails on purpose, for tests, also with real processes.

A variable BATCHFILE_ECHO_POISON, _HANG, _KILL, _REFUSE, _SCHEMA_MISMATCHES or _EXECUTIONS makes `--engine echo` use it.
"""

import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import pbkdf2_hmac
from typing import Any, Literal

from msgspec.structs import replace as replace_fields

from batchfile.engine.base import Prepared
from batchfile.engine.echo import PREFIX, EchoEngine, EchoPrepared, text_of
from batchfile.errors import EngineDead, InvalidRequest
from batchfile.types import Request

Fault = Literal["kill", "hang", "poison"]
FAULTS: tuple[Fault, ...] = ("kill", "hang", "poison")


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoFaults:
    """A request whose text contains a marker triggers its fault when it starts to run (`refuse`: when prepared).

    `poison`: the engine dies. `kill`: the process is killed with SIGKILL. `refuse`: InvalidRequest.
    `hang`: its step never returns, and no signal handler runs meanwhile.
    `executions_path`: a file that gets one line with the custom_id of each request that starts to run,
    written before anything else happens to it (line breaks in it become \\n).
    `schema_mismatches`: that many first answers to each guided request are plain echoes nevertheless.
    """

    poison: str | None = None
    hang: str | None = None
    kill: str | None = None
    refuse: str | None = None
    executions_path: str | None = None
    schema_mismatches: int = 0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "EchoFaults":
        return cls(
            poison=env.get(PREFIX + "POISON") or None,
            hang=env.get(PREFIX + "HANG") or None,
            kill=env.get(PREFIX + "KILL") or None,
            refuse=env.get(PREFIX + "REFUSE") or None,
            executions_path=env.get(PREFIX + "EXECUTIONS") or None,
            schema_mismatches=int(env.get(PREFIX + "SCHEMA_MISMATCHES") or 0),
        )


class FaultyEchoEngine(EchoEngine):
    def __init__(self, *, faults: EchoFaults, **options: Any) -> None:
        super().__init__(**options)
        self._faults = faults
        self._num_mismatches: Counter[str] = Counter()  # by custom_id
        path = faults.executions_path
        self._executions_fd = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def prepare(self, request: Request) -> EchoPrepared:
        if _has_marker(request, self._faults.refuse):
            raise InvalidRequest(f"The text contains the marker {self._faults.refuse!r}, which this engine rejects.")
        return super().prepare(request)

    def add(self, key: int, prepared: Prepared) -> None:
        assert isinstance(prepared, EchoPrepared)
        request = prepared.request
        is_guided = self._guided is not None and request.sampling.json_schema is not None
        if is_guided and self._num_mismatches[request.custom_id] < self._faults.schema_mismatches:
            self._num_mismatches[request.custom_id] += 1
            free = replace_fields(request, sampling=replace_fields(request.sampling, json_schema=None))
            prepared = replace(prepared, completion=EchoEngine.prepare(self, free).completion)
        super().add(key, prepared)

    def close(self) -> None:
        super().close()
        if self._executions_fd is not None:
            os.close(self._executions_fd)
            self._executions_fd = None

    def _take(self) -> list[tuple[int, EchoPrepared]]:
        started = super()._take()
        if self._executions_fd is not None and started:
            names = "".join(prepared.request.custom_id.replace("\n", "\\n") + "\n" for _, prepared in started)
            os.write(self._executions_fd, names.encode())
        for _, prepared in started:
            for fault in FAULTS:
                if _has_marker(prepared.request, getattr(self._faults, fault)):
                    self._fail(fault)
        return started

    def _fail(self, fault: Fault) -> None:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            pbkdf2_hmac("sha512", b"", b"", 2**31 - 1)  # hours in C, without the GIL: no signal handler runs meanwhile
        self._is_dead = True
        raise EngineDead("The echo engine crashed because of a request with the poison marker. Build another one.")


def _has_marker(request: Request, marker: str | None) -> bool:
    if not marker:
        return False
    texts = (
        [message.content for message in request.messages] if request.raw is None else map(text_of, request.raw.inputs)
    )
    return any(marker in text for text in texts)
