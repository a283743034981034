"""Our runner on real vLLM against vLLM's own two ways to run a file, in one run on one machine.

The same requests and output lengths, each from the engine being ready to the output being on disk:

- ours: the runner loop over a directory store (claims, checkpoints and assembly included);
- generate: `LLM.generate` on all prompts at once, then the file is written;
- run_batch: vLLM's `run-batch` on the same OpenAI file; with `--wheel`, also the launcher of a newer vLLM.

With `--flags equal`, all have the same scheduler flags, data type, block size and cores, and no statistics; `generate`
runs on our engine. With `--flags own`, each has its own defaults. Each engine is loaded once; the ways take turns, and
what counts is the ratio within each round (median of the rounds). Also counted: how many of the scheduler's steps were
full until the input ended, and the steps of 64 shards against 1.

Run: `python tests/bench/engine.py --model DIR` (real weights), or on a GPU with any model's shape and
`--load-format dummy`.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.vllm import ProcessGuard
from tests.vllm_peers import answer, answers, generate, work_generate, work_run_batch

BOUND_GENERATE = 1.0
BOUND_RUN_BATCH = 1.1
BOUND_FULL = 0.995
BOUND_STEPS = 0.01
SHARDS = 64
WARM_REQUESTS = 8  # before the first round
NEWER = "newer_run_batch"
PEERS = ("generate", "run_batch", NEWER)
SAME = "BATCHFILE_BENCH_SAME"  # what our engine has chosen, for the peers


def write_requests(path: Path, num: int) -> None:
    """OpenAI lines: one of four system prompts of about 150 tokens, 8 to 48 output tokens, forced."""
    rng = random.Random(1)
    systems = [
        f"You write {kind} for a sales team. " + "Be specific, be brief, and never invent a fact about the lead. " * 10
        for kind in ("reports", "subject lines", "emails", "final drafts")
    ]
    with path.open("w") as file:
        for number in range(num):
            text = f"Lead {number}: a company of {rng.randint(10, 9000)} people that asked about pricing."
            body = {
                "model": "bench",
                "messages": [{"role": "system", "content": rng.choice(systems)}, {"role": "user", "content": text}],
                "max_tokens": rng.randint(8, 48),
                "temperature": 0,
                "ignore_eos": True,
            }
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


@dataclass
class Steps:
    """What the scheduler did: all steps, those until the input ended, and the full ones among these."""

    all: int = 0
    fed: int = 0
    full: int = 0
    times: list[float] = field(default_factory=list)


class Worker:
    """A process that has loaded one engine and runs a way when told to: JSON lines in, JSON lines out."""

    def __init__(
        self, way: str, args: argparse.Namespace, guard: ProcessGuard, more: Mapping[str, str] | None = None
    ) -> None:
        command = [sys.executable, __file__, "--worker", way, *flags_of(args)]
        environ = {**os.environ, **guard.environ, **(more or {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environ
        )
        self.about = self.ask({"ready": True})

    def pause(self) -> None:
        """An idle engine's processes poll, and would take the cores from the one that is measured."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
                return answer
        raise SystemExit(f"a worker ended with exit code {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def flags_of(args: argparse.Namespace) -> list[str]:
    """The flags of the bench, for its own processes."""
    flags = ["--model", args.model, "--load-format", args.load_format, "--max-num-seqs", str(args.max_num_seqs)]
    flags += ["--max-num-batched-tokens", str(args.max_num_batched_tokens), "--max-model-len", str(args.max_model_len)]
    flags += ["--flags", args.flags] + (["--enforce-eager"] if args.enforce_eager else [])
    return flags + (["--wheel", args.wheel] if args.wheel else [])


def flags_of_run_batch(args: argparse.Namespace) -> list[str]:
    """Those of our engine; with `own` only the model."""
    flags = ["--model", args.model, "--load-format", args.load_format]
    if args.flags == "own":
        return flags
    flags += ["--max-num-seqs", str(args.max_num_seqs), "--max-num-batched-tokens", str(args.max_num_batched_tokens)]
    flags += ["--max-model-len", str(args.max_model_len), "--disable-log-stats", "--enable-prefix-caching"]
    flags += ["--enforce-eager"] if args.enforce_eager else []
    same = json.loads(os.environ[SAME])
    return [*flags, "--dtype", same["dtype"], "--block-size", str(same["block_size"])]


def work_ours(args: argparse.Namespace) -> None:
    """Ours; with equal flags also `generate` on the same engine."""
    from tests.helpers.vllm import VllmEngine, VllmOptions, known_arguments, throughput_arguments, visible_devices

    if args.flags == "own":
        given = {"load_format": args.load_format, "gpu_memory_utilization": 0.95}
        chosen = throughput_arguments(visible_devices()[:1], given, known=known_arguments())
        options = VllmOptions(model=args.model, defaults=chosen, extra=given)
    else:
        options = VllmOptions(
            model=args.model,
            max_num_seqs=args.max_num_seqs,
            max_model_len=args.max_model_len,
            enforce_eager=args.enforce_eager,
            extra={"load_format": args.load_format, "max_num_batched_tokens": args.max_num_batched_tokens},
        )
    engine = VllmEngine(options)
    config = engine._engine.vllm_config
    for question in answers():
        if "ready" in question:
            dtype = str(config.model_config.dtype).removeprefix("torch.")
            answer(note=engine.info.note, dtype=dtype, block_size=config.cache_config.block_size)
            continue
        engine._llm.reset_prefix_cache()
        source, output = Path(question["source"]), Path(question["output"])
        if question["way"] == "generate":
            answer(seconds=generate(engine._llm, source, output))
        else:
            seconds, steps = ours(engine, source, output, question["shards"])
            answer(seconds=seconds, all=steps.all, fed=steps.fed, full=steps.full)
    engine.close()


def ours(engine: Any, source: Path, output: Path, shards: int | None) -> tuple[float, Steps]:
    """The runner over a fresh directory store; the output is its durable results file."""
    from batchfile import Ledger, Runner, RunnerOptions
    from batchfile.types import Defaults, RoutingTable
    from tests.helpers.ledger import LOCAL, Draft, create, input_key
    from tests.helpers.plan import plan_input
    from tests.helpers.store import DirectoryStore

    steps = Steps()
    num = sum(1 for _ in source.open())
    lent = LentEngine(engine, steps, num)
    ledger = Ledger(store=DirectoryStore(output.with_suffix(".store")), limits=LOCAL)
    routing = RoutingTable(everything="local")
    started_at = time.monotonic()
    key = input_key("bench", "n")
    ledger.store.link(key, str(source))
    lines_per_range = None if shards is None else -(-num // shards)
    planned = plan_input(ledger, "bench", key, routing=routing, lines_per_range=lines_per_range)
    create(ledger, Draft(batch_id="bench", routing=routing, defaults=Defaults()), planned)
    options = RunnerOptions(runner_id="bench", pool="local", only="bench", is_janitor=False)
    ended = Runner(ledger, lambda: lent, options).run()
    seconds = time.monotonic() - started_at
    assert ended is not None
    assert ended.counts.succeeded == num, ended.counts
    return seconds, steps


class LentEngine:
    """An engine that outlives the runner: `close` leaves it open. Counts its steps."""

    def __init__(self, engine: Any, steps: Steps, num_requests: int) -> None:
        self._engine = engine
        self._steps = steps
        self._left = num_requests
        self.info = engine.info
        self.prepare = engine.prepare
        self.abort = engine.abort
        self.stats = engine.stats

    def add(self, key: int, prepared: Any) -> None:
        self._left -= 1
        self._engine.add(key, prepared)

    def step(self) -> Any:
        before = self._engine.stats()
        finished = self._engine.step()
        after = self._engine.stats()
        self._steps.all += after.num_steps - before.num_steps
        if self._left:
            self._steps.fed += after.num_steps - before.num_steps
            self._steps.full += after.num_full_steps - before.num_full_steps
        return finished

    def close(self) -> None:
        pass


def interval(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


def compare(args: argparse.Namespace) -> int:
    # A worker that is paused cannot notice this process's end, and vLLM's own processes would not.
    guard = ProcessGuard()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return measure(args, guard)
    finally:
        guard.close()


def measure(args: argparse.Namespace, guard: ProcessGuard) -> int:
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        write_requests(source, args.requests)
        write_requests(folder / "first.jsonl", WARM_REQUESTS)
        ways = [("ours", Worker("ours", args, guard))]
        own = ways[0][1]
        own.pause()
        same = {SAME: json.dumps(own.about)}
        if args.flags == "equal":  # on a CPU: the same cores and memory
            same |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}
            ways.append(("generate", own))
        for way in PEERS[len(ways) - 1 : None if args.wheel else -1]:
            ways.append((way, Worker(way, args, guard, same)))
            ways[-1][1].pause()
        for way, worker in ways:
            worker.resume()
            output = str(folder / f"{way}-first")
            worker.ask({"way": way, "source": str(folder / "first.jsonl"), "output": output, "shards": None})
            worker.pause()
        rounds = []
        for number in range(args.rounds):
            row = {}
            first = number % len(ways)
            for way, worker in ways[first:] + ways[:first]:
                question = {"way": way, "source": str(source), "output": str(folder / f"{way}{number}"), "shards": None}
                worker.resume()
                row[way] = worker.ask(question)
                worker.pause()
            rounds.append(row)
            print({way: round(what["seconds"], 2) for way, what in row.items()}, flush=True)
        own.resume()
        one, many = (
            own.ask({"way": "ours", "source": str(source), "output": str(folder / f"s{shards}"), "shards": shards})
            for shards in (1, SHARDS)
        )
        for worker in dict.fromkeys(worker for _, worker in ways):
            worker.resume()
            worker.close()
    return report(args, own.about, rounds, one, many)


def report(
    args: argparse.Namespace,
    about: dict[str, Any],
    rounds: list[dict[str, Any]],
    one: dict[str, Any],
    many: dict[str, Any],
) -> int:
    peers = [way for way in PEERS if way in rounds[0]]
    faster = {way: [row[way]["seconds"] / row["ours"]["seconds"] for row in rounds] for way in peers}
    full = [row["ours"]["full"] / max(1, row["ours"]["fed"]) for row in rounds]
    steps = many["all"] / one["all"] - 1
    whose = "equal flags" if args.flags == "equal" else "each one's own defaults"
    print(f"{about['note']}; {about['dtype']}; {whose}")
    print(f"{'as fast as':>15}  median [min, max] of {len(rounds)} rounds, {args.requests} requests")
    for way, ratios in faster.items():
        name = f"{way} ({Path(args.wheel).name.split('-cp')[0]} laid over)" if way == NEWER else way
        print(f"{name:>15}  {interval(ratios)}")
    print(f"full steps until the input ended: {interval(full)}")
    print(f"steps of {SHARDS} shards against 1: {many['all']} against {one['all']} ({steps:+.2%})")
    if not args.wheel:
        print("without the launcher of a newer vLLM: --wheel FILE, from `pip download --no-deps vllm==0.33.0`")
    row: dict[str, Any] = {"bench": "engine", "flags": args.flags, "model": Path(args.model).name}
    row |= {"requests": args.requests, "rounds": len(rounds)}
    row |= {f"vs_{way}": round(statistics.median(ratios), 3) for way, ratios in faster.items()}
    row |= {"full_steps": round(statistics.median(full), 4), "shard_steps": round(steps, 4)}
    print(json.dumps(row))
    is_within = (
        row["vs_generate"] >= BOUND_GENERATE
        and all(row[f"vs_{way}"] >= BOUND_RUN_BATCH for way in peers if way != "generate")
        and row["full_steps"] >= BOUND_FULL
        and abs(row["shard_steps"]) <= BOUND_STEPS
    )
    # A short run is for completion only: it judges nothing.
    return 0 if is_within or args.rounds < 3 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--load-format", default="auto", help="`dummy` for random weights of the model's shape")
    parser.add_argument("--flags", choices=("equal", "own"), default="equal", help="`own`: the defaults of each way")
    parser.add_argument("--wheel", metavar="FILE", help="the wheel of a newer vLLM, to measure its run-batch too")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--worker", choices=("ours", *PEERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is None:
        return compare(args)
    if args.worker == "ours":
        work_ours(args)
    elif args.worker == "generate":
        work_generate(args)
    else:
        work_run_batch(args, flags_of_run_batch(args), args.wheel if args.worker == NEWER else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
