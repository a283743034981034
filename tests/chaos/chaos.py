"""Kill everything, and see that nothing is lost and nothing is there twice.

Two API replicas and three runners over a real S3 server, a fault proxy before each process, and callers that repeat
what got no answer. One seed draws the batches, the faults and what happens to which process; real processes do not
replay exactly. At the end calm, and every promise is checked; the last line of the output is JSON.

With `--engine vllm` two runners have a small real model each: smaller batches, and nobody counts executions.

Run: `python -m tests.chaos.chaos --batches 60 --minutes 10 --seed 1`.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.checks import check_all_known, check_batch, executions, left_to_sweep, severe
from tests.chaos.clients import SIZES, Asker, Caller, Sent, plan
from tests.chaos.fleet import Fleet, can_mount
from tests.chaos.servers import BUCKET, PREFIX, SERVERS, Server
from tests.chaos.weather import Weather, proxies

NAMES = {
    "echo": ["api-a", "api-b", "runner-a", "runner-b", "runner-c"],
    "vllm": ["api-a", "api-b", "runner-a", "runner-b"],
}
NUM_CALLERS = 6
SLOTS, LATENCY_S = 16, 0.25
LEASE_S, CHECKPOINT_S, GRACE_S = 6.0, 1.0, 3.0
VARIABLES = {
    "BATCHFILE_ECHO_SLOTS": str(SLOTS),
    "BATCHFILE_ECHO_LATENCY_S": str(LATENCY_S),
    "BATCHFILE_LIMITS__LEASE_TTL_S": str(LEASE_S),
    "BATCHFILE_LIMITS__CHECKPOINT_S": str(CHECKPOINT_S),
    "BATCHFILE_LIMITS__GRACE_S": str(GRACE_S),
}
MODEL = Path(os.environ.get("BATCHFILE_CACHE") or "~/.cache/batchfile").expanduser() / "models/SmolLM2-135M-Instruct"
VLLM = {
    "BATCHFILE_POOLS__MISTRAL__MODEL": str(MODEL),
    "BATCHFILE_POOLS__MISTRAL__MAX_MODEL_LEN": "512",
    "BATCHFILE_POOLS__MISTRAL__MAX_NUM_SEQS": "8",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
VLLM_SIZES = (1, 10, 40, 80)
# In flight and what one checkpoint interval finishes: all that one interruption of a runner may repeat.
AGAIN_MAX = SLOTS + int(SLOTS / LATENCY_S * CHECKPOINT_S)
START_S = 6.0  # before the first blow
IDLE_S_MAX = {"echo": 8.0, "vllm": 300.0}  # a blow waits so long for somebody to work
TERM_S_MAX = 9.0
OUTAGE_S = 60.0
ILL_S = (5.0, 40.0)  # how long an object is ill: shorter and longer than a lease
EVENTS = {
    "kill runner": 8,
    "kill runner's child": 4,
    "kill runner's supervisor": 2,
    "pause runner": 6,
    "term runner": 4,
    "kill api": 5,
    "term api": 2,
    "pause api": 2,
    "cut off": 4,
    "fill api's disk": 2,
    "storm": 1,
    "ill object": 6,
}


@dataclass
class Chaos:
    """What happens to the processes, from one seed, until `stop_at`. `busy`: what is under way, and its undoing.

    `worked`: a number that grows while somebody works.
    """

    fleet: Fleet
    server: Server
    weather: Weather
    random: Random
    gap_s: float
    idle_s_max: float
    worked: Callable[[], int]
    worked_before: int = 0
    events: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    slow_to_end: int = 0
    busy: dict[str, tuple[float, Callable[[], None]]] = field(default_factory=dict)

    def run(self, stop_at: float, outage_at: float) -> None:
        next_at = time.monotonic() + START_S
        while time.monotonic() < stop_at:
            now = time.monotonic()
            self.undo(now)
            self.keep_alive(now)
            if now >= outage_at:
                outage_at = float("inf")
                self.events["outage"] += 1
                self.server.kill()
                self.busy["server"] = (now + OUTAGE_S, self.server.start)
            if now >= next_at + self.idle_s_max or (now >= next_at and self.has_worked()):
                next_at = now + self.random.expovariate(1 / self.gap_s)
                self.strike(now)
            time.sleep(0.05)
        self.weather.is_calm = True
        self.undo(float("inf"))
        self.keep_alive(time.monotonic())
        self.server.wait()

    def has_worked(self) -> bool:
        """Since the last blow: one that hits processes that only start tells little, on a slow machine above all."""
        now = self.worked()
        has_worked = now > self.worked_before
        self.worked_before = now
        return has_worked

    def undo(self, now: float) -> None:
        for name, (at, action) in list(self.busy.items()):
            if now >= at:
                del self.busy[name]
                action()

    def keep_alive(self, now: float) -> None:
        """What ended by itself is started again, as any init would; it is counted by its exit code."""
        for name in self.fleet.names:
            if name not in self.busy and (code := self.fleet.code(name)) is not None:
                self.exits[f"{name.split('-')[0]} {code}"] += 1
                self.busy[name] = (now + 1.0, lambda name=name: self.fleet.start(name))  # type: ignore[misc]

    def strike(self, now: float) -> None:
        event = self.random.choices(list(EVENTS), list(EVENTS.values()))[0]
        if event == "storm":
            if "storm" not in self.busy:
                self.weather.is_storm = True
                self.busy["storm"] = (now + self.random.uniform(3, 6), lambda: setattr(self.weather, "is_storm", False))
                self.events[event] += 1
            return
        if event == "ill object":
            place = self.weather.fall_ill()
            if place is not None:
                self.busy[place] = (now + self.random.uniform(*ILL_S), lambda: self.weather.get_well(place))
                self.events[event] += 1
            return
        verb, _, role = event.partition(" ")
        names = self.fleet.apis if role.startswith("api") else self.fleet.names if verb == "cut" else self.fleet.runners
        free = [name for name in names if name not in self.busy]
        if free:
            name = self.random.choice(free)
            if self._hit(event, verb, name, now):
                self.events[f"cut off {name.split('-')[0]}" if verb == "cut" else event] += 1

    def _hit(self, event: str, verb: str, name: str, now: float) -> bool:
        random, fleet = self.random, self.fleet
        if event == "kill runner's child":
            return fleet.send_child(name, signal.SIGKILL)  # its supervisor starts another
        if verb == "kill":
            if event.endswith("supervisor"):
                fleet.send_parent(name, signal.SIGKILL)
            else:
                fleet.kill(name)
            self.busy[name] = (now + random.uniform(0.2, 2), lambda: fleet.start(name))
        elif verb == "pause":
            pause_s = LEASE_S + random.uniform(2, 6) if event == "pause runner" else random.uniform(2, 8)
            fleet.send(name, signal.SIGSTOP)
            self.busy[name] = (now + pause_s, lambda: fleet.send(name, signal.SIGCONT))
        elif verb == "fill":
            self.busy[name] = (now + random.uniform(3, 10), lambda: fleet.empty_disk(name))
            return fleet.fill_disk(name)
        elif verb == "term":
            fleet.send_parent(name, signal.SIGTERM)
            self.busy[name] = (now + TERM_S_MAX, lambda: self._start_again(name))
        else:
            self.weather.cut_off.add(name)
            self.busy[name] = (now + random.uniform(3, 12), lambda: self.weather.cut_off.discard(name))
        return True

    def _start_again(self, name: str) -> None:
        if self.fleet.code(name) is None:
            self.slow_to_end += 1
            self.fleet.kill(name)
        self.fleet.start(name)


def main() -> int:
    options = _parser().parse_args()
    for name in [name for name in os.environ if name.startswith(("BATCHFILE_", "AWS_"))]:
        del os.environ[name]  # the model's place has been read
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        row = run(options, folder)
    except BaseException:
        print(f"all logs are in {folder}", file=sys.stderr)
        raise
    print("\n".join(f"{name:>24}  {value}" for name, value in row.items()))
    print(json.dumps(row))
    if row["problems"] or options.keep:
        print(f"all logs are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if row["problems"] else 0


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    is_echo = options.engine == "echo"
    names, has_disks = NAMES[options.engine], can_mount()
    batches = plan(options.batches, options.seed, SIZES if is_echo else VLLM_SIZES)
    weather = Weather(options.seed)
    file = folder / "executions"
    with ExitStack() as stack:
        server = Server(options.server, folder)
        stack.callback(server.kill)
        server.start()
        server.wait()
        server.make_bucket()
        ways = stack.enter_context(proxies(weather, names, server.url))
        store_of = {name: f"s3://{BUCKET}/{PREFIX}?endpoint={way.url}&region=us-east-1" for name, way in ways.items()}
        variables = {**VARIABLES, "BATCHFILE_ECHO_EXECUTIONS": str(file)} | ({} if is_echo else VLLM)
        own = {} if is_echo else cores([name for name in names if name.startswith("runner")])
        fleet = Fleet(folder, store_of, variables, engine=options.engine, own=own, has_disks=has_disks)
        stack.callback(fleet.close)
        for name in names:
            fleet.start(name)

        def worked() -> int:
            if is_echo:
                return file.stat().st_size if file.exists() else 0
            return sum(sent.num_done for sent in batches)

        idle_s_max = IDLE_S_MAX[options.engine]
        chaos = Chaos(fleet, server, weather, Random(options.seed), options.gap, idle_s_max, worked)
        ports = list(fleet.ports.values())
        statuses: Counter[int] = Counter()
        callers = _start_callers(batches, options, [Asker(ports, statuses) for _ in range(NUM_CALLERS)])
        weather.is_calm = False
        length_s = options.minutes * 60
        outage_at = time.monotonic() + length_s / 2 if options.outage else float("inf")
        chaos.run(time.monotonic() + length_s, outage_at)
        calm_at = time.monotonic()
        while any(caller.is_alive() for caller in callers):
            chaos.undo(time.monotonic())
            chaos.keep_alive(time.monotonic())
            time.sleep(0.1)
        calm_s = time.monotonic() - calm_at
        outcomes: Counter[str] = Counter()
        each = [Asker([port], statuses) for port in ports]
        problems = [
            item for asker in each for sent in batches for item in check_batch(asker, sent, outcomes, is_echo=is_echo)
        ]
        problems += check_all_known(each[0], batches)
        num_left = left_to_sweep(server, batches)
    ran = executions(file)
    logged = severe(fleet.logs())
    row = _figures(options, chaos, batches, ran) | {
        "answers": {str(status): num for status, num in sorted(statuses.items())},
        "outcomes": {name: num // len(ports) for name, num in outcomes.items()},
        "left_to_sweep": num_left,
        "logged": dict(logged.most_common(12)),
        "calm_s": round(calm_s, 1),
        "wall_s": round(time.monotonic() - began, 1),
    }
    return row | {"problems": sorted({*problems, *_problems_of(row, batches, ran)})}


def cores(runners: list[str]) -> dict[str, dict[str, str]]:
    """To each runner its own, or two engines of one machine compute on the same ones."""
    found = sorted(os.sched_getaffinity(0))
    share = max(1, len(found) // len(runners))
    own = {name: found[number * share :][:share] for number, name in enumerate(runners)}
    return {name: {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, ids))} for name, ids in own.items() if ids}


def _start_callers(batches: list[Sent], options: argparse.Namespace, askers: list[Asker]) -> list[Caller]:
    due_s = options.minutes * 60 * 0.9 / len(batches)
    todo, now = iter(batches), time.monotonic()
    callers = [Caller(todo, due_s, now, asker, f"run-{options.seed}") for asker in askers]
    for caller in callers:
        caller.start()
    return callers


def _figures(options: argparse.Namespace, chaos: Chaos, batches: list[Sent], ran: Counter[str]) -> dict[str, Any]:
    """`blows`: kills, pauses and ends. `interruptions`: of a runner that may cost it what it has not committed."""
    events, weather = chaos.events, chaos.weather
    runners = len(chaos.fleet.runners)
    stalls = sum(num for name, num in weather.stalls.items() if name in chaos.fleet.runners)
    interruptions = sum(num for name, num in events.items() if "runner" in name and "term" not in name)
    interruptions += runners * (events["storm"] + events["outage"] * int(OUTAGE_S // LEASE_S)) + stalls
    return {
        "chaos": options.server,
        "engine": options.engine,
        "seed": options.seed,
        "minutes": options.minutes,
        "batches": len(batches),
        "requests": sum(len(sent.texts) for sent in batches),
        "blows": sum(num for name, num in events.items() if name.startswith(("kill", "pause", "term"))),
        "events": dict(sorted(events.items())),
        "ended_by_itself": dict(chaos.exits),
        "slow_to_end": chaos.slow_to_end,
        "store_requests": weather.num_requests,
        "store_faults": dict(sorted(weather.faults.items())),
        "executions": ran.total(),
        "again": ran.total() - len(ran),
        "interruptions": interruptions,
        "again_each": round((ran.total() - len(ran)) / max(1, interruptions), 1),
        "again_each_max": AGAIN_MAX,
        "batch_s_max": round(max(sent.seconds for sent in batches), 1),
    }


def _problems_of(row: dict[str, Any], batches: list[Sent], ran: Counter[str]) -> list[str]:
    problems = []
    if row["engine"] != "echo":
        ran = Counter(custom_id for sent in batches for custom_id in sent.texts)  # nobody knows
    must_run = {custom_id for sent in batches if not sent.is_cancelled for custom_id in sent.texts}
    if missing := must_run - ran.keys():
        problems.append(f"{len(missing)} requests have a result and never ran")
    if row["again"] > row["interruptions"] * AGAIN_MAX:
        problems.append(f"{row['again']} executions again for {row['interruptions']} interruptions of a runner")
    if "500" in row["answers"]:
        problems.append(f"{row['answers']['500']} answers 500")
    if refused := {name: num for name, num in row["ended_by_itself"].items() if not name.endswith((" 0", " 1"))}:
        problems.append(f"processes refused to work: {refused}")
    # What an ill object answers is logged as that, and costs time alone.
    expected = (
        {"batch.damaged", "store.unusable"} if any(name.startswith("ill ") for name in row["store_faults"]) else set()
    )
    for event in ("batch.damaged", "part.lost", "input.changed", "process.crashed", "store.unusable"):
        if event not in expected and event in row["logged"]:
            problems.append(f"{event} was logged {row['logged'][event]} times")
    return problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.chaos", description=__doc__)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=10.0, help="of chaos; then calm until all is done")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gap", type=float, default=2.5, help="seconds between two blows, on average")
    parser.add_argument("--server", choices=SERVERS, default="ministack")
    parser.add_argument("--engine", choices=sorted(NAMES), default="echo")
    parser.add_argument("--outage", action="store_true", help=f"kill the store half-way, for {OUTAGE_S:.0f} s")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
