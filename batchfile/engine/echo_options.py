"""What the echo engine can be told, and how the environment tells it. Reads no other settings.

The faults are for kill tests with real processes: an engine, or a whole process, that dies of one request.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchfile.errors import SettingsError

PREFIX = "BATCHFILE_ECHO_"


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoFaults:
    """A request whose text holds a marker meets its fault when it starts to run (`refuse`: when prepared).

    `poison`: the engine dies. `kill`: the process is killed with SIGKILL. `refuse`: InvalidRequest.
    `hang`: its step never returns, and no signal handler runs meanwhile.
    `executions_path`: a file that gets one line with the custom_id for each request that starts to run,
    handed to the operating system before anything else happens to it (line breaks in it become \\n).
    """

    poison: str | None = None
    hang: str | None = None
    kill: str | None = None
    refuse: str | None = None
    executions_path: str | None = None

    @property
    def has_markers(self) -> bool:
        return bool(self.poison or self.hang or self.kill or self.refuse)


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoOptions:
    """`guided`: the answer to a request that brings a JSON schema, which this engine can not follow by itself.

    `schema_mismatches`: the first so many answers to each such request are its echo all the same.
    `tool_input`: with it tools are served: a request that offers some calls one with this input (the named one, else
    the first), unless its last turn is the answer of a tool. `thinking`: with it thinking is served, by this.
    """

    num_slots: int = 256
    seconds_per_token: float = 0.0
    latency_s: float = 0.0
    guided: str | None = None
    schema_mismatches: int = 0
    tool_input: dict[str, Any] | None = None
    thinking: str | None = None
    faults: EchoFaults = field(default_factory=EchoFaults)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "EchoOptions":
        """BATCHFILE_ECHO_SLOTS, _SECONDS_PER_TOKEN, _LATENCY_S, _GUIDED, _MISFITS, _TOOL_INPUT, _THINKING,
        _POISON, _HANG, _KILL, _REFUSE, _EXECUTIONS.

        Raises: SettingsError.
        """
        env = os.environ if env is None else env
        return cls(
            num_slots=int(_number(env, "SLOTS", 256, at_least=1)),
            seconds_per_token=_number(env, "SECONDS_PER_TOKEN", 0.0),
            latency_s=_number(env, "LATENCY_S", 0.0),
            guided=env.get(PREFIX + "GUIDED") or None,
            schema_mismatches=int(_number(env, "MISFITS", 0)),
            tool_input=_object(env, "TOOL_INPUT"),
            thinking=env.get(PREFIX + "THINKING") or None,
            faults=EchoFaults(
                poison=env.get(PREFIX + "POISON") or None,
                hang=env.get(PREFIX + "HANG") or None,
                kill=env.get(PREFIX + "KILL") or None,
                refuse=env.get(PREFIX + "REFUSE") or None,
                executions_path=env.get(PREFIX + "EXECUTIONS") or None,
            ),
        )


def _number(env: Mapping[str, str], name: str, default: float, at_least: float = 0.0) -> float:
    text = env.get(PREFIX + name)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not at_least <= number < float("inf"):
        raise SettingsError(f"{PREFIX}{name} is {text!r}, but must be a number of at least {at_least:g}.")
    return number


def _object(env: Mapping[str, str], name: str) -> dict[str, Any] | None:
    text = env.get(PREFIX + name)
    if not text:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingsError(f"{PREFIX}{name} is {text!r}, but must be a JSON object.")
    return found
