"""How long the last requests keep the engine from being empty, in virtual time.

The echo engine generates on a virtual clock with lognormal output lengths; the whole runner drives it, one turn at a
time. Ideal = max(work / slots, longest): no schedule can be faster. Run: `python tests/bench/tail.py`.
"""

import argparse
import heapq
import json
import logging
import math
import random
import statistics
import sys

import structlog

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import EchoEngine, ManualClock, MemoryStore, run_alone
from batchfile.types import Defaults, RoutingTable
from tests.helpers.ledger import Draft, create, input_key
from tests.helpers.plan import plan_input

SLOTS = 39
SECONDS_PER_TOKEN = 0.03
SIGMA = 0.5  # of the lengths' logarithm. Below 0.45 no schedule of 100 on 39 slots comes within 1.05 of the ideal
BOUNDS = {(100, 0.0): 1.05, (1000, 0.0): 1.02, (100, 0.3): 1.12, (1000, 0.3): 1.03}


def lengths(num: int, seed: int) -> list[int]:
    """Lognormal, median 180 tokens, cut at 2048."""
    rng = random.Random(seed)
    return [min(2048, max(8, round(math.exp(rng.gauss(math.log(180), SIGMA))))) for _ in range(num)]


def batch(actual: list[int], error: float, seed: int) -> bytes:
    """`max_tokens` says the length, true or off by up to +-error; scaled up, so that it never cuts."""
    rng = random.Random(seed + 1)
    rows = []
    for number, tokens in enumerate(actual):
        said = max(1, math.ceil(tokens * (1 + rng.uniform(-error, error)) / (1 - error)))
        messages = [{"role": "user", "content": f"{tokens}"}]
        rows.append(json.dumps({"custom_id": f"r{number}", "params": {"messages": messages, "max_tokens": said}}))
    return "\n".join(rows).encode()


def first_come_first_served(actual: list[int]) -> float:
    """The peer: slots filled in input order, as an engine does that gets the file as it is. Virtual seconds."""
    slots = [0.0] * SLOTS
    for tokens in actual:
        heapq.heapreplace(slots, slots[0] + tokens * SECONDS_PER_TOKEN)
    return max(slots)


def makespan(data: bytes) -> float:
    """Virtual seconds from the first dispatch to the last result, through the real runner."""
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(1))
    key = input_key("bench", "n")
    ledger.store.put(key, data)
    routing = RoutingTable(everything="local")
    planned = plan_input(ledger, "bench", key, routing=routing)
    create(ledger, Draft(batch_id="bench", routing=routing, defaults=Defaults()), planned)

    def engine() -> EchoEngine:
        # The length is in the prompt: what the engine will generate, not what `max_tokens` claims.
        return EchoEngine(
            num_slots=SLOTS,
            seconds_per_token=SECONDS_PER_TOKEN,
            clock=clock,
            tokens=lambda request: int(request.messages[-1].content),
        )

    options = RunnerOptions(runner_id="bench", pool="local", only="bench", is_janitor=False)
    runner = Runner(ledger, engine, options)
    started_at = clock.now()
    run_alone(runner)
    return clock.now() - started_at


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each kind; the worst counts")
    seeds = parser.parse_args().seeds
    print(f"{'requests':>8} {'length known':>12} {'bound':>6} {'median':>7} {'worst':>7} {'in input order':>14}")
    rows = []
    for (num, error), bound in BOUNDS.items():
        ours, theirs = [], []
        for seed in range(seeds):
            actual = lengths(num, seed)
            ideal = max(sum(actual) / SLOTS, *actual) * SECONDS_PER_TOKEN
            ours.append(makespan(batch(actual, error, seed)) / ideal)
            theirs.append(first_come_first_served(actual) / ideal)
        median, peer = statistics.median(ours), statistics.median(theirs)
        known = "exactly" if not error else f"+-{error:.0%}"
        print(f"{num:>8} {known:>12} {bound:>6.2f} {median:>7.3f} {max(ours):>7.3f} {peer:>14.3f}")
        row = {"requests": num, "error": error, "bound": bound, "median": median, "worst": max(ours), "fcfs": peer}
        rows.append({key: round(value, 4) for key, value in row.items()})
    print(json.dumps({"bench": "tail", "slots": SLOTS, "seeds": seeds, "rows": rows}))
    return 0 if all(row["median"] <= row["bound"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
