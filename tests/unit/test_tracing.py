"""Traces: off and not even imported by default; else one trace for a batch, whichever processes work on it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchfile
from batchfile import tracing
from batchfile.errors import InvalidFile, SettingsError
from batchfile.testing import EchoEngine, MemoryStore
from tests.helpers.service import AuthMiddleware
from tests.helpers.settings import load_settings

ROOT = Path(__file__).parents[2]
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[Any]:
    """Those that have ended, for as long as the test lasts."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing.use([exporter], at_once=True)
    yield exporter
    tracing.use([])


def run_batch(folder: Path, store: MemoryStore, *, num: int = 70) -> batchfile.BatchStatus:
    with (folder / "in.jsonl").open("w") as file:
        for n in range(num):
            messages = [{"role": "user", "content": "Hi there."}] if n else []
            file.write(json.dumps({"custom_id": f"r{n}", "params": {"messages": messages}}) + "\n")
    with batchfile.connect(store) as client:
        batch = client.submit(folder / "in.jsonl", pool="mistral")
        options = batchfile.RunnerOptions(runner_id="r", pool="mistral", only=batch.id)
        batchfile.Runner(batchfile.Ledger(store=store), EchoEngine, options).run()
        return batch.status()


def test_a_batch_is_one_trace(spans: Any, tmp_path: Path) -> None:
    with tracing.continued(CALLER):
        status = run_batch(tmp_path, MemoryStore())
    assert status.succeeded == 69
    found = spans.get_finished_spans()
    assert {f"{one.context.trace_id:032x}" for one in found} == {CALLER[3:35]}
    (create,) = (one for one in found if one.name == "batchfile.create")
    assert f"{create.parent.span_id:016x}" == CALLER[36:52]
    others = [one for one in found if one is not create]
    assert {one.name for one in others} == {"batchfile.plan", "batchfile.shard", "batchfile.assemble"}
    assert {one.parent.span_id for one in others} == {create.context.span_id}
    assert {one.attributes["batchfile.batch_id"] for one in found} == {status.batch_id}


def test_the_shards_of_a_trace_add_up_to_the_batch(spans: Any, tmp_path: Path) -> None:
    status = run_batch(tmp_path, MemoryStore())
    shards = [one for one in spans.get_finished_spans() if one.name == "batchfile.shard"]
    assert len(shards) == 3
    assert {one.attributes["batchfile.shard"] for one in shards} == {f"mistral/{n}" for n in range(3)}
    total = {name: sum(one.attributes[name] for one in shards) for name in shards[0].attributes if "requests" in name}
    assert total["batchfile.requests.succeeded"] == status.succeeded
    for name, tokens in (("input", status.input_tokens), ("output", status.output_tokens)):
        assert sum(one.attributes[f"gen_ai.usage.{name}_tokens"] for one in shards) == tokens > 0
    for one in shards:
        assert one.attributes["gen_ai.operation.name"] == "chat"
        assert one.attributes["gen_ai.provider.name"] == "echo"
        assert one.start_time <= one.end_time


def test_a_batch_that_was_created_without_traces_has_none(spans: Any, tmp_path: Path) -> None:
    store = MemoryStore()
    tracing.use([])
    params = {"messages": [{"role": "user", "content": "Hi."}]}
    (tmp_path / "in.jsonl").write_text(json.dumps({"custom_id": "a", "params": params}))
    with batchfile.connect(store) as client:
        batch = client.submit(tmp_path / "in.jsonl", pool="mistral")
    tracing.use([spans], at_once=True)
    options = batchfile.RunnerOptions(runner_id="r", pool="mistral", only=batch.id)
    batchfile.Runner(batchfile.Ledger(store=store), EchoEngine, options).run()
    assert spans.get_finished_spans() == ()


def test_a_span_that_fails_says_what_kind_of_error_and_quotes_nothing(spans: Any) -> None:
    with pytest.raises(InvalidFile, match="secret"), tracing.span("a", {}):
        raise InvalidFile("messages: 'a secret prompt' is not a list")
    (one,) = spans.get_finished_spans()
    assert (one.status.status_code.name, one.status.description, one.events) == ("ERROR", "InvalidFile", ())


@pytest.mark.parametrize("given", [None, "", "00-0-0-01", CALLER.upper(), f"00-{'0' * 32}{CALLER[35:]}", CALLER + "x"])
def test_an_invalid_traceparent_counts_as_none(given: str | None) -> None:
    with tracing.continued(given):
        assert tracing.current() == ""


@pytest.mark.parametrize("path", ["/api/batches", "/v1/batches", "/api/batches/batch_1/retry"])
def test_every_route_belongs_to_the_trace_of_its_caller(path: str) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await asyncio.to_thread(tracing.current))  # where batches are created

    async def nothing(*_: Any) -> Any:
        return {"type": "http.request", "body": b""}

    answer = AuthMiddleware(app, load_settings(), asyncio.Event(), lambda method, status: None)
    headers = [(b"host", b"localhost"), (b"traceparent", CALLER.encode())]
    scope: Any = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "headers": headers}
    asyncio.run(answer(scope, nothing, nothing))
    assert seen == [CALLER]
    assert tracing.current() == ""


@pytest.mark.slow
def test_without_the_variable_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, api.app, runners.worker, batchfile.cli.run; from batchfile import tracing; tracing.start('a')\n"
        "with tracing.span('a', {}): assert tracing.current() == ''\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkim"}, "OTEL_TRACES_EXPORTER=zipkim: is not installed; use one of console, "),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "use one of http/protobuf, grpc",
        ),
    ],
)
def test_what_cannot_be_exported_is_said(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        tracing.start("a")


@pytest.mark.parametrize("exporter", ["none", "", "otlp"])
def test_it_can_be_turned_off(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.start("a")
    with tracing.span("a", {}):
        assert tracing.current() == ""


def test_the_standard_variables_name_the_exporter_and_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp, console")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracing.start("a")
    tracer: Any = tracing._tracer
    assert tracer.resource.attributes["service.name"] == "mine"
    exporters = [one.span_exporter for one in tracer.span_processor._span_processors]
    assert [type(one).__name__ for one in exporters] == ["OTLPSpanExporter", "ConsoleSpanExporter"]
    assert exporters[0]._endpoint == "http://127.0.0.1:9/v1/traces"
    tracer.span_processor.shutdown()
    tracing.use([])
