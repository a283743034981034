"""Output tokens per second of vLLM on this machine's processor: each data type, and one thread against all.

Every case is a process of its own, in turn: real weights, the leads of the example, so many output tokens each. Printed
at the end, as one JSON line: tokens per second and start-up seconds of each case, their ratios, and the processor's
flags that matter. Nothing is judged.

float16 is left out unless it is named (`--cases float16`): without instructions for it, it takes very long.
Run: `python tests/bench/cpu.py --model DIR`
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.helpers.engine import BIND, RESERVED, read_cpu

LEADS = Path(__file__).parents[2] / "examples" / "leads.jsonl"
FLAGS = ("avx2", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "asimdhp", "bf16")


def cases() -> dict[str, tuple[str, dict[str, str]]]:
    """The data type and the environment of each."""
    every = {RESERVED: "0"}
    first = str(read_cpu().cores[0])
    return {
        "chosen": ("auto", {}),
        "float32": ("float32", every),
        "bfloat16": ("bfloat16", every),
        "float32, one thread": ("float32", {BIND: first}),
        "bfloat16, one thread": ("bfloat16", {BIND: first}),
        "float16": ("float16", every),
    }


def work(args: argparse.Namespace) -> None:
    """One case: load, warm up with one request, generate for the rest."""
    from batchfile.types import Message, Request, Sampling
    from tests.helpers.vllm import VllmEngine, VllmOptions

    started_at = time.monotonic()
    engine = VllmEngine(VllmOptions(model=args.model, max_model_len=1024, dtype=args.dtype))
    start_s = time.monotonic() - started_at
    requests = []
    for line in LEADS.read_bytes().splitlines()[: args.requests + 1]:
        params = json.loads(line)["params"]
        turns = (Message("system", params["system"]), Message("user", params["messages"][0]["content"]))
        sampling = Sampling(max_tokens=args.max_tokens, temperature=0.0, ignore_eos=True)
        requests.append(Request(custom_id="r", messages=turns, sampling=sampling))
    seconds = 0.0
    for group in (requests[:1], requests[1:]):
        began_at = time.monotonic()
        for key, request in enumerate(group):
            engine.add(key, engine.prepare(request))
        left = len(group)
        while left:
            left -= len(engine.step())
        seconds = time.monotonic() - began_at
    rate = args.requests * args.max_tokens / seconds
    row = {"tokens_per_s": round(rate, 1), "start_s": round(start_s, 1), "note": engine.info.note}
    engine.close()
    print("ROW " + json.dumps(row), flush=True)


def measure(args: argparse.Namespace, dtype: str, environ: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", args.model, "--dtype", dtype]
    command += ["--requests", str(args.requests), "--max-tokens", str(args.max_tokens)]
    done = subprocess.run(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.rpartition("ROW ")[2])
    return row


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as fast, of the cases that were run."""
    pairs = {
        "float32_vs_bfloat16": ("float32", "bfloat16"),
        "all_cores_vs_one_thread": ("float32", "float32, one thread"),
        "chosen_vs_bfloat16_on_one_thread": ("chosen", "bfloat16, one thread"),
    }
    return {
        name: round(rows[one]["tokens_per_s"] / rows[other]["tokens_per_s"], 2)
        for name, (one, other) in pairs.items()
        if one in rows and other in rows
    }


def processor() -> dict[str, Any]:
    found = read_cpu()
    flags = sorted((found.flags or frozenset()) & set(FLAGS))
    return {"machine": found.machine, "cores": len(found.cores), "flags": flags}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--cases", help="only those whose names contain this")
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dtype:
        work(args)
        return
    rows = {}
    for name, (dtype, environ) in cases().items():
        if args.cases in name if args.cases else name != "float16":
            rows[name] = measure(args, dtype, environ)
            print(name, rows[name], flush=True)
    print(json.dumps({"bench": "cpu", "model": Path(args.model).name, "cpu": processor(), "rows": rows} | ratios(rows)))


if __name__ == "__main__":
    main()
