"""How fast is a deployment? Sends leads through the stages of a config and measures, against any URL:

    python tests/load_test.py --url https://batch.example.com --api-key KEY [--config FILE] [--leads N] [--strict]

Prints a table and, last, one JSON line. Exit status 1: a result is missing, misplaced or errored; with --strict
also where a target is missed. 2: a config that can not be used. Deletes the batches that it made.
"""

import json
import random
import secrets
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from deployment import Deployment, Failed, Json, parser, require, text_of
from load_config import Config, Sizes, Unusable, read_config

CONFIG = Path(__file__).with_name("test_config.yaml")
LEADS_OF_TARGETS = 100
SETTLE_S_MAX = 15.0  # for the runners to say how it went; they do every 10 s
RATE = "requests_per_s"
TEXT = (
    "the company asked for a new plan and said that stock is counted by hand every week in each of its stores while "
    "sales grow fast so the team would like to see all orders in one place with less work before the next season"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """`seconds`: from the first POST to the end of the last batch. `answers`: custom_id -> text, of what succeeded."""

    stage: str
    pool: str
    requests: int
    errored: int
    seconds: float
    target_s: float | None
    input_tokens: int
    output_tokens: int
    answers: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """`target` None: none was set, or nothing to hold against it."""

    pool: str
    name: str
    value: float | None
    target: float | None
    is_met: bool | None


class Load:
    def __init__(self, deployment: Deployment, config: Config) -> None:
        self._deployment = deployment
        self._config = config
        self._nonce = secrets.token_hex(3)
        self._rng = random.Random(7)
        self._pool_of = {stage: pool["name"] for pool in deployment.get("/api/pools") for stage in pool["stages"]}
        self._done_before = done_by_pool(deployment.live_runners())

    def run(self) -> list[StageRun]:
        leads = [f"{self._nonce}{number:06d}" for number in range(self._config.leads)]
        runs = []
        drafts: dict[str, str] = {}
        for stage, sizes in self._config.stages.items():
            require(stage in self._pool_of, f"a stage of {sorted(self._pool_of)}", stage)
            texts = drafts if stage == "polish" else dict.fromkeys(leads, "")
            if texts:
                runs.append(self._stage(stage, sizes, texts))
                say(f"{stage}: {runs[-1].requests} requests in {runs[-1].seconds:.1f} s")
            if stage == "email":
                num = round(self._config.polish_share * len(leads))
                drafts = {name.split("_")[1]: text for name, text in list(runs[-1].answers.items())[:num]}
        return runs

    def _stage(self, stage: str, sizes: Sizes, texts: dict[str, str]) -> StageRun:
        """`texts`: lead -> what its prompt is about; made up where it is empty."""
        shared = self._text(self._config.shared_tokens)
        requests = [self._request(stage, sizes, lead, shared, text) for lead, text in texts.items()]
        size = self._config.batch_requests_max
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        started = time.monotonic()
        with ThreadPoolExecutor(self._config.concurrency) as threads:
            found = list(threads.map(lambda part: self._batch(stage, part), parts))
        results = [result for results, _ in found for result in results]
        good = [result for result in results if result["status"] == "succeeded"]
        return StageRun(
            stage=stage,
            pool=self._pool_of[stage],
            requests=len(requests),
            errored=len(results) - len(good),
            seconds=max(ended for _, ended in found) - started,
            target_s=sizes.target_s and sizes.target_s * max(1.0, len(requests) / LEADS_OF_TARGETS),
            input_tokens=sum(result["usage"]["input_tokens"] or 0 for result in good),
            output_tokens=sum(result["usage"]["output_tokens"] or 0 for result in good),
            answers={result["custom_id"]: text_of(result["message"]) for result in good},
        )

    def _batch(self, stage: str, requests: list[Json]) -> tuple[list[Json], float]:
        """The results, and when the batch ended."""
        batch_id = self._deployment.submit(stage, requests)
        for _ in self._deployment.until_ended(batch_id):
            pass
        ended = time.monotonic()
        results = self._deployment.results(batch_id)
        sent, got = ([item["custom_id"] for item in items] for items in (requests, results))
        require(sent == got, f"the {len(sent)} custom_ids of {batch_id} in order", got)
        self._deployment.http.delete(f"/api/batches/{batch_id}")
        return results, ended

    def _request(self, stage: str, sizes: Sizes, lead: str, shared: str, text: str) -> Json:
        own = max(1, self._config.prompt_tokens - self._config.shared_tokens)
        content = " ".join(text.split()[:own]) if text else self._text(own)
        params = {
            "system": shared,
            "messages": [{"role": "user", "content": content or "-"}],
            "max_tokens": sizes.output_tokens,
        } | ({"ignore_eos": True} if self._config.ignore_eos else {})
        return {"custom_id": f"lead_{lead}_{stage}", "params": params, "metadata": {"leadId": lead}}

    def _text(self, num_tokens: int) -> str:
        return " ".join(self._rng.choices(TEXT.split(), k=num_tokens))

    def measures(self, runs: list[StageRun]) -> list[Measure]:
        """Of each pool that worked: the median runner's median, the slowest runner's P95, and its throughput."""
        runners = self._settled(runs)
        found = []
        for pool, targets in self._config.pools.items():
            own = [run for run in runs if run.pool == pool]
            if not own:
                continue
            p50s, p95s = (
                [runner[name] for runner in runners if runner["pool"] == pool and runner[name] is not None]
                for name in ("latency_p50_s", "latency_p95_s")
            )
            rate = sum(run.requests for run in own) / sum(run.seconds for run in own)
            values = {
                "latency_p50_s": median(p50s) if p50s else None,
                "latency_p95_s": max(p95s, default=None),
                RATE: rate,
            }
            for name, value in values.items():
                target = getattr(targets, name)
                is_met = None
                if value is not None and target is not None:
                    is_met = value >= target if name == RATE else value <= target
                found.append(Measure(pool=pool, name=name, value=value, target=target, is_met=is_met))
        return found

    def _settled(self, runs: list[StageRun]) -> list[Json]:
        """The live runners, once they have spoken of all that they did."""
        expected = Counter(self._done_before)
        for run in runs:
            expected[run.pool] += run.requests
        deadline = time.monotonic() + SETTLE_S_MAX
        while True:
            runners = self._deployment.live_runners()
            if done_by_pool(runners) >= expected or time.monotonic() > deadline:
                return runners
            time.sleep(1.0)


def done_by_pool(runners: list[Json]) -> Counter[str]:
    found: Counter[str] = Counter()
    for runner in runners:
        found[runner["pool"]] += runner["totals"]["succeeded"] + runner["totals"]["failed"]
    return found


def say(line: str) -> None:
    print(line, flush=True)


def show(runs: list[StageRun], measures: list[Measure]) -> None:
    say(
        f"\n{'stage':<14}{'pool':<12}{'requests':>9}{'errored':>9}{'seconds':>9}{'target':>8}{'req/s':>8}{'in':>7}{'out':>6}"
    )
    for run in runs:
        target = "-" if run.target_s is None else f"{run.target_s:.0f}"
        num = max(1, run.requests - run.errored)
        say(
            f"{run.stage:<14}{run.pool:<12}{run.requests:>9}{run.errored:>9}{run.seconds:>9.1f}{target:>8}"
            f"{run.requests / run.seconds:>8.1f}{run.input_tokens / num:>7.0f}{run.output_tokens / num:>6.0f}"
        )
    say(f"\n{'pool':<14}{'what':<20}{'measured':>10}{'target':>9}")
    for measure in measures:
        value = "-" if measure.value is None else f"{measure.value:.2f}"
        bound = ">=" if measure.name == RATE else "<="
        target = "-" if measure.target is None else f"{bound} {measure.target:g}"
        say(
            f"{measure.pool:<14}{measure.name:<20}{value:>10}{target:>9}{'  missed' if measure.is_met is False else ''}"
        )


def summary(runs: list[StageRun], measures: list[Measure], missed: list[str]) -> Json:
    seconds = sum(run.seconds for run in runs)
    stages: dict[str, Any] = {}
    for run in runs:
        row = asdict(run) | {"seconds": round(run.seconds, 2)}
        stages[run.stage] = {name: value for name, value in row.items() if name not in {"stage", "answers"}}
    pools: dict[str, Any] = {}
    for measure in measures:
        pools.setdefault(measure.pool, {})[measure.name] = measure.value and round(measure.value, 3)
    requests = sum(run.requests for run in runs)
    return {
        "test": "load",
        "requests": requests,
        "errored": sum(run.errored for run in runs),
        "seconds": round(seconds, 2),
        "requests_per_s": round(requests / seconds, 2),
        "stages": stages,
        "pools": pools,
        "missed": missed,
    }


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--config", type=Path, default=CONFIG, help="what to send, and the targets (%(default)s)")
    options.add_argument("--leads", type=int, help="instead of what the config says")
    options.add_argument("--strict", action="store_true", help="fail where a target is missed")
    args = options.parse_args()
    try:
        config = read_config(args.config, args.leads)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    try:
        load = Load(Deployment(args.url, args.api_key, args.timeout), config)
        runs = load.run()
        measures = load.measures(runs)
    except (Failed, httpx.HTTPError) as error:
        print(f"{args.url}: {error}", file=sys.stderr)
        return 1
    missed = [run.stage for run in runs if run.target_s is not None and run.seconds > run.target_s]
    missed += [f"{measure.pool}.{measure.name}" for measure in measures if measure.is_met is False]
    result = summary(runs, measures, missed)
    show(runs, measures)
    say(json.dumps(result))
    return 1 if result["errored"] or (args.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
