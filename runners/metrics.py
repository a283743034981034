"""A runner as Prometheus sees it: its stats, read at each scrape, beside whatever vLLM registers itself.

No batch id is a label. The same port answers /healthz while the process lives.
"""

import errno
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import get_args

import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from batchfile.ledger.records import RunnerState
from batchfile.runner.histogram import Histogram
from batchfile.runner.runner import Runner
from batchfile.store.metered import MeteredStore

from .heartbeat import state_of

log = structlog.get_logger()

PREFIX = "batchfile_runner_"
SHARDS_COUNTED_MAX = 100_000
CLIENT_WAIT_S = 10.0


class RunnerCollector(Collector):
    """Reads counters that other threads write: each is a moment old, none goes back."""

    def __init__(self, runner: Runner, store: MeteredStore, pool: str, model: str) -> None:
        self._runner = runner
        self._store = store
        self._pool = pool
        self._model = model

    def collect(self) -> Iterable[Metric]:
        runner, runner_stats = self._runner, self._runner.runner_stats
        stats, state = runner.engine_stats(), state_of(runner)
        yield self._counter(
            "requests",
            "Requests that have a result, by outcome; refused ones never reached the engine",
            "outcome",
            {"succeeded": runner_stats.succeeded, "failed": runner_stats.failed, "refused": runner_stats.refused},
        )
        yield self._counter(
            "tokens",
            "Tokens read (cached ones among them) and written",
            "kind",
            {
                "input": runner_stats.input_tokens,
                "cached": runner_stats.cached_tokens,
                "output": runner_stats.output_tokens,
            },
        )
        yield self._one("usage_unknown", "Answers whose tokens an endpoint did not tell", runner_stats.usage_unknown)
        yield self._one("steps", "Steps of the engine", stats.num_steps)
        yield self._one("full_steps", "Steps with every slot in use", stats.num_full_steps)
        yield self._one("engine_deaths", "Engines that died and were built again", runner_stats.num_engine_deaths)
        yield self._one("leases_lost", "Shards that another runner has taken over", runner_stats.num_leases_lost)
        yield self._gauge(
            "state", "1 for the state that it is in", "state", {s: float(s == state) for s in get_args(RunnerState)}
        )
        yield self._now("shards_held", "Shards in work", len(runner.shards_held(SHARDS_COUNTED_MAX)))
        yield self._now(
            "batches_set_aside",
            "Batches left alone because the store refuses something of them",
            len(runner.set_aside()),
        )
        yield self._now("requests_in_flight", "Requests inside the engine", runner.num_in_flight)
        yield self._now("requests_prefetched", "Requests that are ready for the engine", runner.num_prefetched)
        yield self._histogram(
            "request_seconds", "From the engine's taking a request to its answer", runner_stats.request_s
        )
        yield self._histogram("checkpoint_seconds", "One checkpoint of one shard", runner_stats.checkpoint_s)
        yield from self._store_figures()

    def _store_figures(self) -> Iterator[Metric]:
        """Under the names that the API has for its own."""
        labels = ["pool", "verb", "outcome"]
        requests = CounterMetricFamily(
            "batchfile_store_requests", "Requests to the store by verb and outcome.", labels=labels
        )
        seconds = CounterMetricFamily("batchfile_store_seconds", "Time in these requests.", labels=labels)
        for call, spent in self._store.figures().items():
            requests.add_metric([self._pool, call.verb, call.outcome], spent.num)
            seconds.add_metric([self._pool, call.verb, call.outcome], spent.seconds)
        yield requests
        yield seconds

    def _counter(self, name: str, text: str, label: str, values: dict[str, int]) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=["pool", "model", label])
        for value, number in values.items():
            family.add_metric([self._pool, self._model, value], number)
        return family

    def _one(self, name: str, text: str, number: int) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=["pool", "model"])
        family.add_metric([self._pool, self._model], number)
        return family

    def _gauge(self, name: str, text: str, label: str, values: dict[str, float]) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["pool", "model", label])
        for value, number in values.items():
            family.add_metric([self._pool, self._model, value], number)
        return family

    def _now(self, name: str, text: str, number: int) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["pool", "model"])
        family.add_metric([self._pool, self._model], number)
        return family

    def _histogram(self, name: str, text: str, seen: Histogram) -> Metric:
        family = HistogramMetricFamily(PREFIX + name, text, labels=["pool", "model"])
        edges = [*map(str, seen.bounds), "+Inf"]
        family.add_metric(
            [self._pool, self._model], list(zip(edges, accumulate(seen.counts), strict=True)), sum_value=seen.sum
        )
        return family


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_WAIT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, content_type, encode(REGISTRY))
        elif path == "/healthz":
            self._answer(200, "text/plain", b"ok\n")
        else:
            self._answer(404, "text/plain", b"here are /metrics and /healthz\n")

    do_HEAD = do_GET  # load balancers ask so

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no event."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def counted(collector: RunnerCollector) -> Iterator[None]:
    """While entered, its figures are on the page."""
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)


@contextmanager
def serving(host: str, ports: Sequence[int]) -> Iterator[None]:
    """While entered, /metrics and /healthz answer on the first of `ports` that is free.

    If none can be had, that costs the page, not the runner.
    """
    try:
        server = _listening(host, ports)
    except (OSError, OverflowError) as error:  # OverflowError: there is no such port
        log.warning("metrics.not_served", host=host, port=ports[0], error=str(error), what_to_do="give --metrics-port")
        yield
        return
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    log.info("metrics.served", host=host, port=server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listening(host: str, ports: Sequence[int]) -> _Server:
    for port in ports[:-1]:
        try:
            return _Server((host, port), _Handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _Server((host, ports[-1]), _Handler)
