"""CPU time of vLLM's front end and batchfile's for each generated token, with a full engine whose outputs are made up.

The front end is the process that adds requests, decodes tokens and keeps the statistics. Its engine process is replaced
by one that answers at once: the same token for each running request in each step. No weights are loaded.

- before: with vLLM's statistics, as they were;
- scraped: with statistics and cached environment variables, as the workers of a fleet, whose metrics are served;
- now: without statistics, as `batchfile run`;
- generate: `LLM.generate` on the same requests, as the peer.

They take turns. Run: `python tests/bench/frontend.py --model DIR`
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.helpers.vllm import VllmEngine, VllmOptions

PROMPT = list(range(100, 164))
TOKEN = 30  # a letter of most vocabularies
BOUND_NOW_US, BOUND_OF_BEFORE = 4.0, 0.6


class InstantCore:
    """In place of vLLM's client of its engine process: each request gets `num_tokens` tokens, one in each step."""

    num_tokens = 0

    def __init__(self, *, log_stats: bool) -> None:
        self._log_stats = log_stats
        self._waiting: list[str] = []
        self._running: list[str] = []
        self._step = 0
        self._outputs: list[Any] = []

    def add_request(self, request: Any) -> None:
        self._waiting.append(request.request_id)

    def get_output(self) -> Any:
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        if not self._running:
            self._running, self._waiting, self._step = self._waiting, [], 0
            self._outputs = [EngineCoreOutput(request_id=name, new_token_ids=[TOKEN]) for name in self._running]
        self._step += 1
        if self._step == self.num_tokens:
            for output in self._outputs:
                output.finish_reason = FinishReason.LENGTH
        outputs, num = self._outputs, len(self._running)
        if self._step == self.num_tokens:
            self._running = []
        return EngineCoreOutputs(outputs=outputs, scheduler_stats=self._stats(num) if self._log_stats else None)

    @staticmethod
    def _stats(num: int) -> Any:
        from vllm.v1.metrics.stats import SchedulerStats

        return SchedulerStats(num_running_reqs=num)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def __getattr__(self, name: str) -> Any:
        """All that has no effect here: aborting, resetting caches."""
        if name.startswith("_") or name in {"outputs_queue", "resources"}:
            raise AttributeError(name)
        return lambda *given, **named: None

    def shutdown(self, timeout: float | None = None) -> None:
        pass


def engine_of(model: str, num: int, **extra: Any) -> VllmEngine:
    from vllm.v1.engine import llm_engine

    made: Callable[..., InstantCore] = lambda **given: InstantCore(log_stats=given["log_stats"])  # noqa: E731
    real = llm_engine.EngineCoreClient.make_client
    llm_engine.EngineCoreClient.make_client = staticmethod(made)
    try:
        options = VllmOptions(model=model, max_num_seqs=num, max_model_len=2048, enforce_eager=True, extra=extra)
        return VllmEngine(options)
    finally:
        llm_engine.EngineCoreClient.make_client = real


def ours(engine: VllmEngine, num: int) -> None:
    prepared = [engine.prepare(request) for request in requests(num)]
    for key, one in enumerate(prepared):
        engine.add(key, one)
    left = num
    while left:
        left -= len(engine.step())


def requests(num: int) -> list[Any]:
    from batchfile.types import Message, Request, Sampling

    sampling = Sampling(max_tokens=InstantCore.num_tokens, temperature=0.0)
    return [Request(custom_id=str(n), messages=(Message("user", "Hello"),), sampling=sampling) for n in range(num)]


def generate(engine: VllmEngine, num: int) -> None:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=InstantCore.num_tokens, temperature=0.0)
    engine._llm.generate([{"prompt_token_ids": PROMPT}] * num, params, use_tqdm=False)


def measured(way: Callable[[VllmEngine, int], None], engine: VllmEngine, num: int) -> float:
    """CPU us of this process for each token; the cost of a request is taken out by a run of few tokens."""
    spent = []
    for tokens in (LONG, SHORT):
        InstantCore.num_tokens = tokens
        began = time.process_time()
        way(engine, num)
        spent.append(time.process_time() - began)
    return (spent[0] - spent[1]) / (num * (LONG - SHORT)) * 1e6


LONG, SHORT = 800, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--running", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    from vllm import envs

    with_stats = engine_of(args.model, args.running, disable_log_stats=False)
    without = engine_of(args.model, args.running)
    ways = {
        "before": (ours, with_stats, False),
        "scraped": (ours, with_stats, True),
        "now": (ours, without, False),
        "generate": (generate, without, False),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (way, engine, is_cached) in ways.items():
            (envs.enable_envs_cache if is_cached else envs.disable_envs_cache)()
            found[name].append(measured(way, engine, args.running))
    for name, values in found.items():
        print(f"{name:>10}  {statistics.median(values):5.2f} us/token [{min(values):.2f}, {max(values):.2f}]")
    row = {"bench": "frontend", "running": args.running, "rounds": args.rounds}
    row |= {f"{name}_us": round(statistics.median(values), 2) for name, values in found.items()}
    print(json.dumps(row))
    is_within = row["now_us"] <= BOUND_NOW_US and row["now_us"] <= BOUND_OF_BEFORE * row["before_us"]
    return 0 if is_within or args.rounds < 3 else 1


if __name__ == "__main__":
    sys.exit(main())
