"""What the echo engine can be told, and how the environment tells it. Reads no other settings."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchfile.errors import SettingsError

PREFIX = "BATCHFILE_ECHO_"


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoOptions:
    """`guided`: the answer to a request that brings a JSON schema, which this engine can not follow by itself.

    `tool_input`: with it tools are served: a request that offers some calls one with this input (the named one, else
    the first), unless its last turn is the answer of a tool. `thinking`: with it thinking is served, by this.
    """

    num_slots: int = 256
    seconds_per_token: float = 0.0
    latency_s: float = 0.0
    guided: str | None = None
    tool_input: dict[str, Any] | None = None
    thinking: str | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "EchoOptions":
        """BATCHFILE_ECHO_SLOTS, _SECONDS_PER_TOKEN, _LATENCY_S, _GUIDED, _TOOL_INPUT, _THINKING.

        Raises: SettingsError.
        """
        env = os.environ if env is None else env
        return cls(
            num_slots=int(_number(env, "SLOTS", 256, at_least=1)),
            seconds_per_token=_number(env, "SECONDS_PER_TOKEN", 0.0),
            latency_s=_number(env, "LATENCY_S", 0.0),
            guided=env.get(PREFIX + "GUIDED") or None,
            tool_input=_object(env, "TOOL_INPUT"),
            thinking=env.get(PREFIX + "THINKING") or None,
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
