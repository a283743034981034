"""The service's figures for Prometheus. Gauges are read from the store when they are asked for. No batch ids.

Runners have a page of their own for what only they know: the latency of each request, vLLM's own figures.
"""

import collections
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batchfile.errors import StoreError
from batchfile.ledger.records import BatchRecord
from batchfile.ledger.set_aside import SetAside
from batchfile.store.metered import MeteredStore

from .pools import PoolStatus

BATCH_BUCKETS_S = (1, 5, 15, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)


class Metrics:
    """`count_answer` and `observe_ended` are called by the auth middleware and by the janitor of this process."""

    def __init__(self, pool_status: PoolStatus, store: MeteredStore, pools: list[str], aside: SetAside) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StoreCollector(store))
        self._pools = _PoolCollector(pool_status, pools)
        self._registry.register(self._pools)
        set_aside = Gauge(
            "batchfile_api_batches_set_aside",
            "Batches that this process leaves alone because an object of them is damaged or the store refuses it.",
            registry=self._registry,
        )
        set_aside.set_function(lambda: len(aside.reasons()))
        self._answers = Counter(
            "batchfile_http_answers",
            "HTTP answers by method and status.",
            ["method", "status"],
            registry=self._registry,
        )
        self._latency = Histogram(
            "batchfile_batch_seconds",
            "From a batch's creation to its end. Every API process counts every batch that ends while it lives: "
            "look at one of them, a sum counts each batch again.",
            ["stage", "reason"],
            buckets=BATCH_BUCKETS_S,
            registry=self._registry,
        )

    def count_answer(self, method: str, status: int) -> None:
        self._answers.labels(method if method in _METHODS else "other", str(status)).inc()

    def observe_ended(self, batch: BatchRecord) -> None:
        if batch.ended_at is not None:
            seconds = max(0.0, batch.ended_at - batch.created_at)
            self._latency.labels(batch.stage or "none", batch.reason or "none").observe(seconds)

    def render(self, *, has_store: bool = True) -> bytes:
        """The page. Without a store nothing is asked of it."""
        self._pools.has_store = has_store
        return generate_latest(self._registry)


_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}


class _StoreCollector(Collector):
    def __init__(self, store: MeteredStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "batchfile_store_requests", "Requests to the store by verb and outcome.", labels=["verb", "outcome"]
        )
        seconds = CounterMetricFamily("batchfile_store_seconds", "Time in these requests.", labels=["verb", "outcome"])
        for call, spent in self._store.figures().items():
            requests.add_metric([call.verb, call.outcome], spent.num)
            seconds.add_metric([call.verb, call.outcome], spent.seconds)
        yield requests
        yield seconds


class _PoolCollector(Collector):
    """What is pending and who works on it. A store that is down leaves these out; the page itself still answers."""

    def __init__(self, pool_status: PoolStatus, pools: list[str]) -> None:
        self.has_store = True
        self._pool_status = pool_status
        self._pools = pools

    def describe(self) -> list[Metric]:
        return []  # registering asks nothing of the store

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("batchfile_store_up", "1 while the store answers.")
        try:
            found = [*self._queues(), *self._runners()] if self.has_store else None
        except StoreError:
            found = None
        up.add_metric([], 0 if found is None else 1)
        yield up
        yield from found or ()

    def _queues(self) -> Iterator[Metric]:
        names = {
            "open_batches": "Batches with something left for the pool.",
            "pending_requests": "Requests without a committed result: the queue's depth.",
            "pending_shards": "Shards that another runner could begin.",
            "leased_shards": "Shards in work.",
        }
        scales = {pool: self._pool_status.scale_of(pool) for pool in self._pools}
        for name, text in names.items():
            gauge = GaugeMetricFamily(f"batchfile_{name}", text, labels=["pool"])
            for pool, scale in scales.items():
                gauge.add_metric([pool], getattr(scale, name))
            yield gauge
        oldest = GaugeMetricFamily(
            "batchfile_oldest_open_created_seconds", "When the oldest open batch was made.", labels=["pool"]
        )
        for pool, scale in scales.items():
            if scale.oldest_created_at is not None:
                oldest.add_metric([pool], scale.oldest_created_at)
        yield oldest

    def _runners(self) -> Iterator[Metric]:
        runners = self._pool_status.presence()
        states = GaugeMetricFamily("batchfile_runners", "Live runners by state.", labels=["pool", "state"])
        for (pool, state), num in collections.Counter((runner.pool, runner.state) for runner in runners).items():
            states.add_metric([pool, state], num)
        yield states
        for name in ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s"):
            text = "Of all live runners, while each had work in the last minute; 0: none had."
            gauge = GaugeMetricFamily(f"batchfile_runner_{name}", text, labels=["pool"])
            for pool in self._pools:
                gauge.add_metric([pool], sum(getattr(runner, name) for runner in runners if runner.pool == pool))
            yield gauge
