"""Counts what vLLM has done so far, from the outputs that its engine sends after each step.

Does not import vllm. vLLM's own statistics have the same numbers, but take several times as much time per token. The
attributes used here are not documented; `lacking` returns those that a version of vLLM does not have.
"""

import queue
import re
from typing import Any

# Undocumented attributes of vLLM's engine client, and what does not work without them.
UNDOCUMENTED = {
    "get_output": "tokens are counted when a request finishes, not while it runs",
    "outputs_queue": "a step waits as long as vLLM does, even if the engine process was killed",
}

# vLLM adds a random suffix to a request's name, and a prefix to that of each further choice.
_NAME = re.compile(r"(?:\d+_)?(\d+\.\d+)(?:-.*)?")


def lacking(core: Any) -> dict[str, str]:
    """The part of UNDOCUMENTED that this engine client does not have."""
    has = {"get_output": callable(getattr(core, "get_output", None)), "outputs_queue": _queue_of(core) is not None}
    return {name: loss for name, loss in UNDOCUMENTED.items() if not has[name]}


def _queue_of(core: Any) -> "queue.Queue[Any] | None":
    answers = getattr(core, "outputs_queue", None)
    is_known = isinstance(answers, queue.Queue) and hasattr(answers, "not_empty") and hasattr(answers, "queue")
    return answers if is_known else None


class StepCounter:
    """Counts tokens as they arrive. Called by the engine's thread; any thread may read the numbers.

    `prompt_tokens`: of computed prompts; `output_tokens`: generated. Both only grow.
    `num_running`: sequences, as last reported by vLLM's scheduler; without its statistics, those that got a token in
    the last step; or 0. `kv_use`: the share of the KV cache that it reported; None if it does not.
    """

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.num_running = 0
        self.kv_use: float | None = None
        self._is_attached = False
        self._prompts: dict[str, int] = {}  # tokens of prompts that are not computed yet, by our names
        self._begun: set[str] = set()  # vLLM's names of requests whose prompts are counted, while others are pending

    def attach(self, core: Any) -> None:
        """Starts counting the outputs of this engine client. Does nothing if it has no `get_output`."""
        receive = getattr(core, "get_output", None)
        if not callable(receive):
            return

        def get_output() -> Any:
            outputs = receive()
            if self._is_attached:
                try:
                    self._count(outputs)
                except (AttributeError, TypeError):  # outputs of another form: tokens are counted when requests finish
                    self._is_attached = False
            return outputs

        core.get_output = get_output
        self._is_attached = True

    def added(self, name: str, num_prompt_tokens: int) -> None:
        self._prompts[name] = num_prompt_tokens

    def finished(self, names: list[str], num_output_tokens: int) -> None:
        """Counts the tokens that no step has reported."""
        self.prompt_tokens += sum(self._prompts.pop(name, 0) for name in names)
        if not self._is_attached:
            self.output_tokens += num_output_tokens

    def forget(self, names: list[str]) -> None:
        for name in names:
            self._prompts.pop(name, None)

    def _count(self, outputs: Any) -> None:
        num_tokens = 0
        is_computing_prompts = bool(self._prompts)
        received = getattr(outputs, "outputs", None) or ()
        for output in received:
            num_tokens += len(output.new_token_ids)
            if is_computing_prompts and output.request_id not in self._begun:
                self._begin(output.request_id)
        self.output_tokens += num_tokens
        if not self._prompts:
            self._begun.clear()
        scheduler = getattr(outputs, "scheduler_stats", None)
        self.num_running = len(received) if scheduler is None else getattr(scheduler, "num_running_reqs", 0)
        if scheduler is not None:
            self.kv_use = getattr(scheduler, "kv_cache_usage", None)

    def _begin(self, request_id: str) -> None:
        self._begun.add(request_id)
        named = _NAME.fullmatch(request_id)
        if named is not None:
            self.prompt_tokens += self._prompts.pop(named[1], 0)


class OutputWait:
    """Waits for the next outputs with a time limit, so that a slow step does not block its caller."""

    def __init__(self, core: Any) -> None:
        self._answers = _queue_of(core)

    def is_over(self, timeout_s: float) -> bool:
        """True if a step would return immediately, or if that is unknown."""
        answers = self._answers
        if answers is None:
            return True
        # Checked under the lock: outputs that arrive between check and wait would not wake this thread.
        with answers.not_empty:
            return bool(answers.queue) or (answers.not_empty.wait(timeout_s) and bool(answers.queue))


STALL_LOOK_S_MAX = 1.0  # counted per look: during a longer pause, this process itself was stopped or busy
COLD = 3  # multiple of the limit before the first answer, when kernels may still be compiled


class Stall:
    """Measures time without progress, from looks several times a second."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self.is_warm = False
        self.reset()

    def reset(self) -> None:
        self._still_s = 0.0
        self._looked_at: float | None = None
        self._seen: object = None

    @property
    def bound_s(self) -> float:
        return self._stall_s if self.is_warm else COLD * self._stall_s

    def is_over(self, now: float, seen: object, *, has_stepped: bool) -> bool:
        """`now`: a monotonic clock, in seconds. `seen`: a value that changes with any progress."""
        passed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, STALL_LOOK_S_MAX)
        has_moved = has_stepped or seen != self._seen
        self._still_s = 0.0 if has_moved else self._still_s + passed_s
        self._looked_at, self._seen = now, seen
        return self._still_s >= self.bound_s
