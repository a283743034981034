"""How much of the work of N engines a file gets: 1, 2, 4 and 8 echo replicas with latency, or two real vLLM replicas.

Echo (default): one file, `batchfile run --replicas N` for each N. The efficiency is the time that the requests take in
all slots, divided by the time that the slots were there: from each replica being ready to the end of the batch. The
starts of the processes are not counted, since an engine's start is not the echo engine's.

`--model DIR`: real vLLM on the CPU, one engine with all cores against two replicas that share them, in turns; the
median ratio of output tokens per second and engine-second, and of the whole commands.

Run: `python tests/bench/replicas.py`, or with `--model DIR`.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
EFFICIENCY_MIN = 0.97


@dataclass
class Measured:
    """`ready_at`: of each engine. `ended_at`: of the first engine that had nothing left."""

    ready_at: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    wall_s: float = 0.0
    receipt: dict = field(default_factory=dict)  # type: ignore[type-arg]

    @property
    def engine_s(self) -> float:
        return sum(self.ended_at - at for at in self.ready_at)


def run(folder: Path, num_replicas: int, *options: str, **variables: str) -> Measured:
    """The command, with each line of its log timed as it arrives."""
    name = f"out-{num_replicas}-{time.monotonic_ns()}.jsonl"
    command = [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", name, "-v", *options]
    command += ["--replicas", str(num_replicas), "--store", f"store-{time.monotonic_ns()}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **variables}
    found, began_at, said = Measured(), time.monotonic(), []
    with subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "engine.ready" in line:
                found.ready_at.append(time.monotonic())
            if "runner.ended" in line and not found.ended_at:
                found.ended_at = time.monotonic()
    found.wall_s = time.monotonic() - began_at
    if process.returncode or len(found.ready_at) != num_replicas:
        raise SystemExit("".join(said[-40:]))
    found.receipt = json.loads((folder / f"{name}.receipt.json").read_text())
    return found


def write_input(folder: Path, num: int, max_tokens: int) -> None:
    with (folder / "in.jsonl").open("w") as file:
        for number in range(num):
            text = f"Lead {number}: a company of {number % 977 + 10} people asked about pricing. Write a short answer."
            params = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0}
            file.write(json.dumps({"custom_id": f"r{number}", "params": params}) + "\n")


def echo(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    num = args.slots * args.waves * max(args.replicas)
    write_input(folder, num, 8)
    variables = {"BATCHFILE_ECHO_SLOTS": str(args.slots), "BATCHFILE_ECHO_LATENCY_S": str(args.latency)}
    found: dict[str, object] = {}
    for replicas in args.replicas:
        measured = run(folder, replicas, "--engine", "echo", **variables)
        efficiency = num * args.latency / args.slots / measured.engine_s
        found[str(replicas)] = {
            "efficiency": round(efficiency, 4),
            "engine_s": round(measured.engine_s, 2),
            "wall_s": round(measured.wall_s, 2),
        }
        print(f"{replicas} replicas: {found[str(replicas)]}", file=sys.stderr, flush=True)
    row = {"bench": "replicas", "requests": num, "slots": args.slots, "latency_s": args.latency, "replicas": found}
    return row | {"efficiency_min": min(one["efficiency"] for one in found.values())}  # type: ignore[index]


def vllm(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    write_input(folder, args.requests, args.max_tokens)
    options = ["--model", args.model, "--max-model-len", "512", "--engine-arg", "seed=0"]
    rates: dict[int, list[float]] = {1: [], 2: []}
    walls: dict[int, list[float]] = {1: [], 2: []}
    for number in range(args.rounds):
        for replicas in (1, 2) if number % 2 == 0 else (2, 1):
            # As many slots in all: a replica has half of the cores and half of the requests.
            measured = run(folder, replicas, *options, "--max-num-seqs", str(args.slots // replicas))
            tokens = measured.receipt["usage"]["output_tokens"]
            rates[replicas].append(tokens / (measured.engine_s / replicas))
            walls[replicas].append(measured.wall_s)
            print(f"{replicas} engines: {rates[replicas][-1]:.1f} tokens/s", file=sys.stderr, flush=True)
    return {
        "bench": "replicas",
        "model": re.sub(r".*/", "", args.model),
        "requests": args.requests,
        "tokens_per_s": {str(num): round(statistics.median(found), 1) for num, found in rates.items()},
        "ratio": round(statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True)), 3),
        "wall_s": {str(num): round(statistics.median(found), 1) for num, found in walls.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--latency", type=float, default=0.25, help="seconds of a request of the echo engine")
    parser.add_argument("--waves", type=int, default=80, help="requests of each slot, with the most replicas")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--model", help="real vLLM with this model, instead of the echo engine")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = vllm(args, Path(folder)) if args.model else echo(args, Path(folder))
    print(json.dumps(row))


if __name__ == "__main__":
    main()
