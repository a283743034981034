"""What the runners of all pools have done, added up from their heartbeats: runners elsewhere cannot be scraped."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from prometheus_client.core import CounterMetricFamily, Metric

from batchfile.ledger.records import HeartbeatRecord

RUNNERS_MAX = 10_000  # remembered, also if they are gone

# Metric -> its text, its label, and what it counts: the value of the label -> the field of RunnerTotals.
_FAMILIES: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "requests": (
        "Requests with a result, by outcome; rejected: the request was invalid",
        "outcome",
        {"succeeded": "succeeded", "failed": "failed", "rejected": "rejected"},
    ),
    "tokens": (
        "Tokens by kind; cached tokens are included in input",
        "kind",
        {"input": "input_tokens", "output": "output_tokens", "cached": "cached_tokens"},
    ),
    "engine_deaths": ("Engines that died and were restarted", None, {"": "engine_deaths"}),
    "leases_lost": ("Shards taken over by another runner", None, {"": "leases_lost"}),
}


class PoolTotals:
    """Counts since this process started. What a runner does after its last heartbeat is missing: 10 s at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str], Counter[str]] = {}  # by pool and model
        self._seen: dict[str, dict[str, int]] | None = None  # by runner; None before the first look

    def collect(self, runners: Iterable[HeartbeatRecord]) -> Iterator[Metric]:
        """`runners`: the living ones. What they did before the first call is not counted."""
        with self._lock:
            self._add(list(runners))
            sums = {key: Counter(counts) for key, counts in self._sums.items()}
        for name, (text, label, fields) in _FAMILIES.items():
            note = "By heartbeats; every replica counts every runner: aggregate with max, not sum."
            labels = ["pool", "model", *([label] if label else [])]
            family = CounterMetricFamily(f"batchfile_pool_{name}", f"{text}. {note}", labels=labels)
            for key, counts in sums.items():
                for value, field in fields.items():
                    family.add_metric([*key, *([value] if label else [])], counts[field])
            yield family

    def _add(self, runners: list[HeartbeatRecord]) -> None:
        is_first, seen = self._seen is None, self._seen or {}
        for runner in runners:
            totals: dict[str, int] = asdict(runner.totals)
            before = seen.get(runner.runner_id, totals if is_first else {})
            counts = self._sums.setdefault((runner.pool, runner.model), Counter())
            for name, total in totals.items():
                counts[name] += max(0, total - before.get(name, 0))
            seen[runner.runner_id] = totals
        if len(seen) > RUNNERS_MAX:
            living = {runner.runner_id for runner in runners}
            seen = {runner_id: totals for runner_id, totals in seen.items() if runner_id in living}
        self._seen = seen
