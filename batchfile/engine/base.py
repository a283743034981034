"""The seam to whatever generates: vLLM, an HTTP endpoint, echo."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from batchfile.types import Outcome, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself.

    `num_slots`: how many requests it generates for at the same time. `max_in_flight`: how many should have
    been added at once to keep the slots full without a gap (slots plus a margin that waits inside).
    `max_model_len` is in tokens; None where the engine does not know. `num_gpus` is 0 where it works on none of ours.
    `note`: one line for people about what the engine chose by itself; empty where it chose nothing.
    """

    name: str
    model: str
    version: str
    num_slots: int
    max_in_flight: int
    max_model_len: int | None = None
    num_gpus: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request ready to be added: template applied, tokenised, bounds checked. Engines subclass it.

    `prefix`: equal for requests that likely share a cached prefix. `cost`: expected work, larger is longer;
    only the order counts.
    """

    prefix: int = 0
    cost: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    key: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Since the engine was built. A step is *full* if all slots run or a request waits inside.

    `prompt_tokens`: of prompts whose computation is complete, those found in a prefix cache included. `output_tokens`:
    generated, also for requests that are not finished. Both only grow; an engine that learns of tokens when a request
    finishes counts them then. `num_running`: requests that are generated now; `num_waiting`: added, not yet running.
    `down_s`: for how long what generates has taken no work; 0 while it does, and for engines that die instead.
    `down_reason`: then where it is, and what it says.
    """

    num_steps: int = 0
    num_full_steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    down_s: float = 0.0
    down_reason: str = ""
    extra: dict[str, float] = field(default_factory=dict)


class SchemaUnchecked(Exception):
    """The request's schema has to be compiled before the request is prepared, which may take a minute.

    `finish(owner)` does both, waits for it and raises as `prepare`. `owner`: whose time it takes; the schemas of one
    who has had many slow ones get less time each, and nobody else's.
    """

    def __init__(self, finish: Callable[[str], Prepared]) -> None:
        super().__init__("the request's schema has not been compiled")
        self.finish = finish


def in_flight_for(num_slots: int) -> int:
    """How many requests to have in an engine of this many slots: a quarter more, so that none runs empty."""
    return num_slots + max(16, num_slots // 4)


class Engine(Protocol):
    """What generates. One thread owns an engine: add, step, abort and close are called from there only.

    `prepare` is the exception: any thread may call it, at any time, several at once. The types of its methods are in
    `batchfile.engine.base`; `batchfile.testing.EchoEngine` is one without a model.

    >>> engine: batchfile.Engine = batchfile.testing.EchoEngine(num_slots=8)
    >>> engine.info.name, engine.info.num_slots
    ('echo', 8)
    """

    @property
    def info(self) -> EngineInfo: ...

    def prepare(self, request: Request) -> Prepared:
        """Everything that can be done ahead of time.

        Raises: InvalidRequest if it can never be served; SchemaUnchecked.
        """
        ...

    def add(self, key: int, prepared: Prepared) -> None:
        """Start generating. `key` comes back in Finished and is unique among requests in flight.

        Raises: InvalidRequest if the engine refuses it after all; EngineDead.
        """
        ...

    def step(self) -> list[Finished]:
        """One step of work: blocks briefly, returns what finished since. Raises: EngineDead."""
        ...

    def abort(self, keys: Iterable[int]) -> None:
        """Forget these; they are not returned by a later step."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None: ...


def prepare_now(engine: Engine, request: Request) -> Prepared:
    """Wait for a schema where that is needed. Raises: InvalidRequest."""
    try:
        return engine.prepare(request)
    except SchemaUnchecked as unchecked:
        return unchecked.finish("")


EngineFactory = Callable[[], Engine]
"""Builds a fresh engine: called once at the start and once after each death."""
