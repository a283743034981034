"""Serves a runner's Prometheus metrics, next to those that vLLM registers itself.

No label is a batch id. The same port answers /healthz while the process runs.
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
from batchfile.runner.runner import Runner
from batchfile.runner.stats import Histogram
from batchfile.store.metered import MeteredStore

from .heartbeat import state_of

log = structlog.get_logger()

PREFIX = "batchfile_runner_"
SHARDS_COUNTED_MAX = 100_000
CLIENT_WAIT_S = 10.0


class RunnerCollector(Collector):
    """Reads counters that other threads write. They may be slightly stale, but never decrease."""

    def __init__(self, runner: Runner, store: MeteredStore, pool: str, model: str) -> None:
        self._runner = runner
        self._store = store
        self._pool = pool
        self._model = model

    def collect(self) -> Iterable[Metric]:
        runner, counts = self._runner, self._runner.runner_stats
        stats, state = runner.engine_stats(), state_of(runner)
        yield self._counter(
            "requests",
            "Requests with a result, by outcome; rejected: the request was invalid",
            {"succeeded": counts.succeeded, "failed": counts.failed, "rejected": counts.rejected},
            "outcome",
        )
        tokens: dict[str, float] = {
            "input": counts.input_tokens,
            "cached": counts.cached_tokens,
            "output": counts.output_tokens,
        }
        yield self._counter("tokens", "Tokens by kind; cached tokens are included in input", tokens, "kind")
        yield self._counter("usage_unknown", "Answers without a token count from the endpoint", counts.usage_unknown)
        yield self._counter("steps", "Engine steps", stats.num_steps)
        yield self._counter("full_steps", "Engine steps with all slots in use", stats.num_full_steps)
        yield self._counter("engine_deaths", "Engines that died and were restarted", counts.num_engine_deaths)
        yield self._counter("leases_lost", "Shards taken over by another runner", counts.num_leases_lost)
        states = {known: float(known == state) for known in get_args(RunnerState)}
        yield self._gauge("state", "1 for the current state, 0 for all others", states, "state")
        yield self._gauge("shards_held", "Shards that this runner holds", len(runner.shards_held(SHARDS_COUNTED_MAX)))
        text = "Batches set aside because the store rejects or damages one of their objects"
        yield self._gauge("batches_set_aside", text, len(runner.set_aside()))
        yield self._gauge("requests_in_flight", "Requests in the engine", runner.num_in_flight)
        yield self._gauge("requests_prefetched", "Requests in the ready queue", runner.num_prefetched)
        yield self._histogram("request_seconds", "Time of a request in the engine", counts.request_s)
        yield self._histogram("checkpoint_seconds", "Duration of one checkpoint of one shard", counts.checkpoint_s)
        yield from self._store_figures()

    def _store_figures(self) -> Iterator[Metric]:
        """Uses the same metric names as the API."""
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

    def _counter(self, name: str, text: str, values: float | dict[str, float], label: str | None = None) -> Metric:
        return self._filled(CounterMetricFamily(PREFIX + name, text, labels=self._labels(label)), values)

    def _gauge(self, name: str, text: str, values: float | dict[str, float], label: str | None = None) -> Metric:
        return self._filled(GaugeMetricFamily(PREFIX + name, text, labels=self._labels(label)), values)

    @staticmethod
    def _labels(label: str | None) -> list[str]:
        return ["pool", "model"] if label is None else ["pool", "model", label]

    def _filled(self, family: CounterMetricFamily | GaugeMetricFamily, values: float | dict[str, float]) -> Metric:
        for value, number in values.items() if isinstance(values, dict) else [(None, values)]:
            family.add_metric([self._pool, self._model] if value is None else [self._pool, self._model, value], number)
        return family

    def _histogram(self, name: str, text: str, seen: Histogram) -> Metric:
        family = HistogramMetricFamily(PREFIX + name, text, labels=self._labels(None))
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
            self._answer(404, "text/plain", b"not found; use /metrics or /healthz\n")

    do_HEAD = do_GET  # load balancers use HEAD

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def counted(collector: RunnerCollector) -> Iterator[None]:
    """Registers the collector while entered."""
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)


@contextmanager
def serving(host: str, ports: Sequence[int]) -> Iterator[None]:
    """Serves /metrics and /healthz on the first free port of `ports` while entered.

    If none is free, the runner works without metrics.
    """
    try:
        server = _listening(host, ports)
    except (OSError, OverflowError) as error:  # OverflowError: not a valid port number
        log.warning("metrics.not_served", host=host, port=ports[0], error=str(error), what_to_do="set --metrics-port")
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
