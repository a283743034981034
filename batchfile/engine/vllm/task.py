"""What vLLM may be loaded for, as the engine sees it: requests into prompts, outputs into outcomes."""

from dataclasses import dataclass
from typing import Any, Protocol

from batchfile.engine.base import Prepared
from batchfile.engine.vllm.parsers import Reading
from batchfile.types import Outcome, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPrepared(Prepared):
    """`prompts`: token ids; more than one only of an embedding. `num_sequences`: the slots it takes in all."""

    prompts: list[list[int]]
    params: Any
    num_sequences: int
    reading: Reading | None = None
    is_raw: bool = False
    is_base64: bool = False


class Work(Protocol):
    """Any thread may call these, several at once."""

    def prepare(self, request: Request) -> VllmPrepared:
        """Raises: InvalidRequest if it can never be served; SchemaUnchecked."""
        ...

    def outcome(self, outputs: list[Any], prepared: VllmPrepared) -> Outcome:
        """`outputs`: vLLM's, one for each prompt, in their order."""
        ...


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that is wrong; versions without a word for it raise ValueError."""
    from vllm import exceptions

    named = getattr(exceptions, "VLLMClientError", ValueError)
    return (ValueError, TypeError, named)
