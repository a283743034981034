"""Traces for OpenTelemetry. Off, and nothing of it imported, unless OTEL_TRACES_EXPORTER names an exporter.

The trace of a batch begins with its create and is kept in its record as a `traceparent` (W3C Trace Context), so that
every process that works on the batch adds its spans. The OTEL_* variables configure the exporter, the sampler and the
resource.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any

from batchfile.errors import SettingsError, check_installed

EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Attributes = Mapping[str, str | int | float]

_tracer: Any = None
_current: ContextVar[str] = ContextVar("traceparent", default="")


def start(service: str) -> None:
    """Export the spans of this process if the variables ask for it. `service`: its name without OTEL_SERVICE_NAME.

    Raises: SettingsError for an unknown exporter or protocol, and without the extra `otel`.
    """
    names = [name.strip() for name in os.environ.get(EXPORTER_VARIABLE, "none").split(",")]
    wanted = [name for name in names if name not in {"", "none"}]
    if not wanted or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    use([_exporter(name) for name in wanted], service)


def use(exporters: list[Any], service: str = "batchfile", *, at_once: bool = False) -> None:
    """Export the spans of this process with these. `at_once`: each as it ends, for tests."""
    global _tracer  # noqa: PLW0603 one for the process, as its logs
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if is_named else {"service.name": service}))
    for exporter in exporters:
        provider.add_span_processor((SimpleSpanProcessor if at_once else BatchSpanProcessor)(exporter))
    _tracer = provider.get_tracer("batchfile") if exporters else None


def current() -> str:
    """The traceparent of the span around this call; empty without any."""
    return _current.get()


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Spans inside belong to the trace of a caller. An invalid `traceparent` counts as none."""
    token = _current.set(traceparent if traceparent and TRACEPARENT.fullmatch(traceparent) else "")
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def span(name: str, attributes: Attributes, *, of: str | None = None) -> Iterator[None]:
    """A span around a piece of work. `of`: the traceparent of its batch, of which an empty one is not traced; None: the
    span around this call, or a new trace.
    """
    if _tracer is None or of == "":
        yield
        return
    made = _tracer.start_span(name, context=_context(of or current()), attributes=attributes)
    token = _current.set(_traceparent(made))
    try:
        yield
    except BaseException as error:
        _fail(made, type(error).__name__)  # its message may quote a prompt
        raise
    finally:
        _current.reset(token)
        made.end()


def record(
    name: str, attributes: Attributes, *, of: str, started_at: float, ended_at: float, problem: str = ""
) -> None:
    """A span of work that is over, in epoch seconds. `of`: as in `span`. `problem`: why it failed."""
    if _tracer is None or not of:
        return
    made = _tracer.start_span(name, context=_context(of), attributes=attributes, start_time=int(started_at * 1e9))
    if problem:
        _fail(made, problem)
    made.end(end_time=int(max(started_at, ended_at) * 1e9))


def _fail(made: Any, problem: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    made.set_status(Status(StatusCode.ERROR, problem))


def _context(traceparent: str) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())


def _traceparent(made: Any) -> str:
    known = made.get_span_context()
    return f"00-{known.trace_id:032x}-{known.span_id:016x}-{known.trace_flags:02x}"


def _exporter(name: str) -> Any:
    check_installed("opentelemetry", extra="otel", what=f"{EXPORTER_VARIABLE}={name}")
    protocol = next((os.environ[one] for one in PROTOCOL_VARIABLES if os.environ.get(one)), "http/protobuf")
    if name == "otlp" and protocol not in PROTOCOLS:
        raise SettingsError(f"{PROTOCOL_VARIABLES[1]}={protocol}: is not supported; use one of {', '.join(PROTOCOLS)}")
    offered = {one.name: one for one in entry_points(group="opentelemetry_traces_exporter")}
    found = offered.get(PROTOCOLS[protocol] if name == "otlp" else name)
    if found is None:
        known = ", ".join(sorted({*offered, "none"}))
        raise SettingsError(f"{EXPORTER_VARIABLE}={name}: is not installed; use one of {known}")
    return found.load()()
