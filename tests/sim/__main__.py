"""By hand: `python -m tests.sim SEED --trace` replays a schedule, `--count N` runs many and prints the figures."""

import argparse
import json
import sys
import time

from tests.sim.green import installed
from tests.sim.simulation import Outcome, run, shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="the first seed")
    parser.add_argument("--seed", type=int, default=0, dest="first", help="the same")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--for-s", type=float, default=float("inf"), help="begin no more after so many seconds")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    args = parser.parse_args()
    seed = args.first if args.seed is None else args.seed
    with installed():
        if args.count > 1:
            return many(seed, args.count, args.for_s)
        outcome = run(seed, is_traced=args.trace)
        show(outcome)
        return 1 if outcome.error is not None else 0


def show(outcome: Outcome) -> None:
    print("\n".join(outcome.trace))
    print(f"seed {outcome.seed}: {outcome.num_calls} calls, {len(outcome.struck)} faults, {outcome.virtual_s:.0f} s")
    if outcome.error is None:
        print("every promise holds")
        return
    print(f"BROKEN: {outcome.error!r}")
    print("with these faults alone:", *shrink(outcome).struck, sep="\n  ")


def many(first: int, count: int, for_s: float) -> int:
    started_at = time.monotonic()
    num = calls = faults = deaths = batches = 0
    virtual_s = 0.0
    broken: list[int | str] = []
    for seed in range(first, first + count):
        if time.monotonic() - started_at > for_s:
            break
        outcome = run(seed)
        num += 1
        calls += outcome.num_calls
        faults += len(outcome.struck)
        deaths += outcome.num_deaths
        batches += outcome.num_batches
        virtual_s += outcome.virtual_s
        if outcome.error is not None:
            broken.append(seed)
            print(f"seed {seed}: {outcome.error!r}", file=sys.stderr, flush=True)
    row = {
        "sim": "schedules",
        "first_seed": first,
        "schedules": num,
        "broken": broken,
        "batches": batches,
        "store_calls": calls,
        "faults": faults,
        "deaths": deaths,
        "virtual_h": round(virtual_s / 3600, 1),
        "wall_s": round(time.monotonic() - started_at, 1),
    }
    print(json.dumps(row))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
