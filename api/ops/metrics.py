"""The service's Prometheus metrics. Gauges are read from the store at each scrape. No label is a batch id.

Runners serve their own metrics, such as request latencies and vLLM's metrics.
"""

import collections
import math
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batchfile.errors import StoreError
from batchfile.ledger.records import BatchRecord, EndReason
from batchfile.ledger.set_aside import SetAside
from batchfile.store.metered import MeteredStore

from .pool_totals import PoolTotals
from .pools import PoolStatus
from .webhooks import WebhookOutcome

BATCH_BUCKETS_S = (1, 5, 15, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)


class Metrics:
    """`count_answer`, `observe_ended` and `count_webhook` are called by the auth middleware, the janitor and the sender
    of webhooks of this process. `spool_dir`: for request bodies while they arrive; None: the system's folder.
    """

    def __init__(
        self,
        pool_status: PoolStatus,
        store: MeteredStore,
        pools: list[str],
        aside: SetAside,
        spool_dir: Path | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StoreCollector(store))
        self._pools = _PoolCollector(pool_status, pools)
        self._registry.register(self._pools)
        set_aside = Gauge(
            "batchfile_api_batches_set_aside",
            "Batches that this process has set aside because the store rejects or damages one of their objects.",
            registry=self._registry,
        )
        set_aside.set_function(lambda: len(aside.reasons()))
        self._answers = Counter(
            "batchfile_http_answers",
            "HTTP responses by method and status.",
            ["method", "status"],
            registry=self._registry,
        )
        self._latency = Histogram(
            "batchfile_batch_seconds",
            "Time from the creation of a batch to its end. Every replica counts every batch: aggregate with max, "
            "not sum.",
            ["stage", "reason"],
            buckets=BATCH_BUCKETS_S,
            registry=self._registry,
        )

        self._ended = Counter(
            "batchfile_batches_ended",
            "Batches that have ended, by reason. Every replica counts every batch: aggregate with max, not sum.",
            ["reason"],
            registry=self._registry,
        )
        self._webhooks = Counter(
            "batchfile_webhook_attempts",
            "Attempts to deliver a webhook, by outcome; given_up: a webhook that is not tried again.",
            ["outcome"],
            registry=self._registry,
        )
        for reason in get_args(EndReason):  # from the start, so that the first one is an increase
            self._ended.labels(reason)
        for outcome in get_args(WebhookOutcome):
            self._webhooks.labels(outcome)
        spool = spool_dir or Path(tempfile.gettempdir())
        for name, text in (("free", "Free bytes"), ("total", "Size")):
            gauge = Gauge(
                f"batchfile_spool_{name}_bytes", f"{text} of the disk for request bodies.", registry=self._registry
            )
            gauge.set_function(partial(_disk, spool, name))

    def count_webhook(self, outcome: WebhookOutcome) -> None:
        self._webhooks.labels(outcome).inc()

    def count_answer(self, method: str, status: int) -> None:
        self._answers.labels(method if method in _METHODS else "other", str(status)).inc()

    def observe_ended(self, batch: BatchRecord) -> None:
        if batch.ended_at is not None:
            seconds = max(0.0, batch.ended_at - batch.created_at)
            self._latency.labels(batch.stage or "none", batch.reason or "none").observe(seconds)
            self._ended.labels(batch.reason or "completed").inc()

    def render(self, *, has_store: bool = True) -> bytes:
        """The metrics page. `has_store` False: without the metrics that are read from the store."""
        self._pools.has_store = has_store
        return generate_latest(self._registry)


def _disk(folder: Path, name: str) -> float:
    """NaN where the folder is not there."""
    try:
        return float(getattr(shutil.disk_usage(folder), name))
    except OSError:
        return math.nan


_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}


class _StoreCollector(Collector):
    def __init__(self, store: MeteredStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "batchfile_store_requests", "Requests to the store by verb and outcome.", labels=["verb", "outcome"]
        )
        seconds = CounterMetricFamily("batchfile_store_seconds", "Time in store requests.", labels=["verb", "outcome"])
        for call, spent in self._store.figures().items():
            requests.add_metric([call.verb, call.outcome], spent.num)
            seconds.add_metric([call.verb, call.outcome], spent.seconds)
        yield requests
        yield seconds


class _PoolCollector(Collector):
    """Pending work and runners. Omitted while the store is unavailable, but the page is still served."""

    def __init__(self, pool_status: PoolStatus, pools: list[str]) -> None:
        self.has_store = True
        self._pool_status = pool_status
        self._pools = pools
        self._totals = PoolTotals()

    def describe(self) -> list[Metric]:
        return []  # registering must not read the store

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("batchfile_store_up", "1 while the store is available.")
        try:
            found = [*self._queues(), *self._runners()] if self.has_store else None
        except StoreError:
            found = None
        up.add_metric([], 0 if found is None else 1)
        yield up
        yield from found or ()

    def _queues(self) -> Iterator[Metric]:
        names = {
            "open_batches": "Open batches with pending requests for the pool.",
            "pending_requests": "Requests without a committed result (queue depth).",
            "pending_shards": "Shards that a runner could claim.",
            "leased_shards": "Shards with a lease.",
        }
        scales = {pool: self._pool_status.scale_of(pool) for pool in self._pools}
        for name, text in names.items():
            gauge = GaugeMetricFamily(f"batchfile_{name}", text, labels=["pool"])
            for pool, scale in scales.items():
                gauge.add_metric([pool], getattr(scale, name))
            yield gauge
        oldest = GaugeMetricFamily(
            "batchfile_oldest_open_created_seconds", "Creation time of the oldest open batch.", labels=["pool"]
        )
        for pool, scale in scales.items():
            if scale.oldest_created_at is not None:
                oldest.add_metric([pool], scale.oldest_created_at)
        yield oldest

    def _runners(self) -> Iterator[Metric]:
        runners = self._pool_status.heartbeats()
        states = GaugeMetricFamily("batchfile_runners", "Live runners by state.", labels=["pool", "state"])
        for (pool, state), num in collections.Counter((runner.pool, runner.state) for runner in runners).items():
            states.add_metric([pool, state], num)
        yield states
        for name in ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s"):
            text = "Sum over live runners, while they had work in the last minute; 0 if none had."
            gauge = GaugeMetricFamily(f"batchfile_runner_{name}", text, labels=["pool"])
            for pool in self._pools:
                gauge.add_metric([pool], sum(getattr(runner, name) for runner in runners if runner.pool == pool))
            yield gauge
        text = "Time of a request in the engine: of the slowest live runner's last 1,000 requests."
        latency = GaugeMetricFamily("batchfile_pool_request_seconds", text, labels=["pool", "quantile"])
        for quantile, name in (("0.5", "latency_p50_s"), ("0.95", "latency_p95_s")):
            for pool in self._pools:
                known = [getattr(runner, name) for runner in runners if runner.pool == pool]
                if seconds := [one for one in known if one is not None]:
                    latency.add_metric([pool, quantile], max(seconds))
        yield latency
        yield from self._totals.collect(runners)
