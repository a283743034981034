"""The public Python API: what loads, what each name says of itself, and what it does over a service and a store."""

import asyncio
import doctest
import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import batchfile
from batchfile.testing import EchoEngine
from tests.service.remote_kit import ROOT, jsonl, line

GREETINGS = [
    {"custom_id": name, "params": {"messages": [{"role": "user", "content": text}], "max_tokens": 8}}
    for name, text in (("a", "Hello."), ("b", "Goodbye."))
]


def work(store: str, batch: batchfile.Batch) -> None:
    options = batchfile.RunnerOptions(runner_id="test", pool="mistral", only=batch.id, is_janitor=False)
    batchfile.Runner(batchfile.Ledger(store=batchfile.open_store(store)), EchoEngine, options).run()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("requests.jsonl").write_bytes(jsonl(*GREETINGS))
    return tmp_path


@pytest.fixture(params=["service", "directory"])
def place(request: pytest.FixtureRequest, here: Path) -> tuple[str, str]:
    """Where to connect to, and the store behind it."""
    if request.param == "service":
        api = request.getfixturevalue("api")
        return api.url, api.store
    return "./store", str(here / "store")


@pytest.fixture
def client(place: tuple[str, str]) -> Iterator[batchfile.Connection]:
    with batchfile.connect(place[0]) as connection:
        yield connection


def test_importing_it_and_its_names_loads_nothing_heavy() -> None:
    def loaded(code: str) -> set[str]:
        script = f"import sys, batchfile\n{code}\nprint(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
        return set(done.stdout.split())

    heavy = {"vllm", "torch", "transformers", "boto3", "aiohttp", "pyarrow", "click"}
    assert not loaded("dir(batchfile)") & {*heavy, "msgspec", "pydantic", "structlog", "asyncio"}
    assert not loaded("for name in batchfile.__all__: getattr(batchfile, name)") & heavy


def test_a_name_that_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'batchfile' has no attribute 'submit'"):
        batchfile.submit  # type: ignore[attr-defined]  # noqa: B018
    assert set(batchfile.__all__) <= set(dir(batchfile))


@pytest.mark.parametrize("name", batchfile.__all__)
def test_each_name_says_what_it_is_with_an_example_that_runs(name: str, here: Path) -> None:
    named = getattr(batchfile, name)
    text = inspect.getdoc(named) or ""
    assert ">>> " in text
    with batchfile.connect("./store") as client:
        done = client.submit("requests.jsonl", stage="email")
        work("./store", done)
        done.wait()
        known = {"batchfile": batchfile, "client": client, "done": done}
        example = doctest.DocTestParser().get_doctest(text, known, name, None, 0)
        assert doctest.DocTestRunner().run(example).failed == 0


def test_a_file_is_submitted_waited_for_read_saved_rerun_and_deleted(
    client: batchfile.Connection, place: tuple[str, str], here: Path
) -> None:
    Path("mixed.jsonl").write_bytes(jsonl(*GREETINGS, line("bad", max_token=5)))
    batch = client.submit("mixed.jsonl", stage="email", metadata={"team": "blue"}, priority=2)
    assert (batch.last_status.total, batch.status().state) == (3, "open")
    with pytest.raises(batchfile.NotEnded, match=r"has not ended \(0 of 3 requests are done\): wait\(\) for its end"):
        batch.results()
    for too_early in (batch.rerun_failed, batch.delete):
        with pytest.raises(batchfile.NotEnded, match="has not ended"):
            too_early()
    with pytest.raises(TimeoutError, match=r"has not ended .* it keeps running") as caught:
        batch.wait(timeout_s=0)
    assert isinstance(caught.value, batchfile.WaitTimeout)
    assert "mistral" not in client.live_pools()

    tailed: list[batchfile.Result] = []
    tail = threading.Thread(target=lambda: tailed.extend(batch.tail()))
    tail.start()
    work(place[1], batch)
    status = batch.wait()
    tail.join()
    assert (status.reason, status.counts.succeeded, status.counts.errored) == ("completed", 2, 1)
    assert not status.is_all_succeeded
    first, second, bad = batch.results()
    assert (first.text, first.is_succeeded, first.error, first.usage.output_tokens) == ("Hello.", True, None, 1)
    assert (second.custom_id, second.choices[0].stop_reason) == ("b", "end_turn")
    assert (bad.text, bad.status, bad.choices) == (None, "errored", ())
    assert bad.error is not None
    assert bad.error.code == "invalid_request_error"
    assert "max_token" in bad.error.message
    assert sorted(map(repr, tailed)) == sorted(map(repr, (first, second, bad)))

    with pytest.raises(batchfile.SettingsError, match=r"format: 'jsonl' is unknown; use one of"):
        batch.save("x.jsonl", format="jsonl")  # type: ignore[arg-type]
    batch.save("results.jsonl")
    batch.save(here / "results.jsonl")  # replaced: the same results
    assert [json.loads(row)["custom_id"] for row in Path("results.jsonl").read_text().splitlines()] == ["a", "b", "bad"]
    assert json.loads(Path("results.jsonl.errors.jsonl").read_bytes())["custom_id"] == "bad"
    batch.save("openai.jsonl", format="openai")
    assert json.loads(Path("openai.jsonl").read_text().splitlines()[0])["response"]["status_code"] == 200
    batch.save("results.parquet")
    assert Path("results.parquet").read_bytes()[:4] == b"PAR1"
    with Path("file").open("wb") as file:
        batch.save(file)
        with pytest.raises(batchfile.SettingsError, match="Parquet cannot be written to an open file"):
            batch.save(file, format="parquet")
    assert Path("file").read_bytes() == Path("results.jsonl").read_bytes()
    batch.save_errors("errors.jsonl")
    assert Path("errors.jsonl").read_bytes() == Path("results.jsonl.errors.jsonl").read_bytes()

    again = batch.rerun_failed()
    assert (again.last_status.total, again.last_status.metadata["retry_of"]) == (1, batch.id)
    assert [one.id for one in client.batches()][:2] == [again.id, batch.id]
    assert again.cancel().reason in {"canceled", "completed"}
    batch.delete(now=True)
    for gone in (batch.status, lambda: client.batch(batch.id), lambda: client.batch("no batch")):
        with pytest.raises(batchfile.NotFound):
            gone()


def test_all_of_a_file_goes_to_the_pool_that_is_named(client: batchfile.Connection, here: Path) -> None:
    batch = client.submit("requests.jsonl", pool="llama-70b")
    assert list(batch.last_status.pools) == ["llama-70b"]
    batch.cancel()
    assert batch.wait().reason == "canceled"
    again = batch.rerun_failed()
    assert list(again.last_status.pools) == ["llama-70b"]
    with pytest.raises(batchfile.SettingsError, match="pool: 'lama' is unknown; use one of llama-70b, mistral"):
        client.submit("requests.jsonl", pool="lama")


def test_what_cannot_be_submitted_is_said_and_nothing_is_made(client: batchfile.Connection, here: Path) -> None:
    first = client.submit("requests.jsonl", stage="email")
    Path("bad.jsonl").write_bytes(jsonl(*GREETINGS, {"custom_id": "no params"}))
    with pytest.raises(batchfile.InvalidFile, match=r"leads\.jsonl: no such file"):
        client.submit("leads.jsonl", stage="email")
    with pytest.raises(batchfile.SettingsError, match="stage: 'emial' is unknown; use one of email, "):
        client.submit("requests.jsonl", stage="emial")
    with pytest.raises(batchfile.InvalidFile, match="line 3: params: is missing"):
        client.submit("bad.jsonl", stage="email", strict=True)
    with pytest.raises(batchfile.SettingsError, match="metadata 'n': 1 is not a string"):
        client.submit("requests.jsonl", metadata={"n": 1})  # type: ignore[dict-item]
    assert next(client.batches()).id == first.id


def test_it_works_where_an_event_loop_runs_and_from_several_threads(api: Any, here: Path) -> None:
    async def cell() -> list[str]:
        with batchfile.connect(api.url) as client:
            batch = client.submit("requests.jsonl", stage="email")
            found = await asyncio.gather(*(asyncio.to_thread(lambda: client.batch(batch.id).id) for _ in range(4)))
        return [*found, batch.id]

    assert len(set(asyncio.run(cell()))) == 1


def test_a_connection_that_was_closed_or_dropped_leaves_no_thread(api: Any) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "batchfile-http"]

    before = threads()
    client = batchfile.connect(api.url)
    next(iter(client.batches()), None)
    assert len(threads()) == len(before) + 1
    client.close()
    with pytest.raises(batchfile.BatchfileError, match="the connection is closed; connect again"):
        client.batch("batch_0")
    client = batchfile.connect(api.url)
    del client
    assert threads() == before


def test_a_wrong_place_or_key_is_said(serve_api: Callable[..., Any], here: Path) -> None:
    keyed = serve_api(BATCHFILE_API_KEYS="default:" + "0" * 64)
    for key, message in ((None, "requires an API key"), ("bf_other", "does not accept this API key")):
        with batchfile.connect(keyed.url, api_key=key) as client, pytest.raises(batchfile.SettingsError, match=message):
            client.batch("batch_0")
    with pytest.raises(batchfile.SettingsError, match=r"\./store is a store"):
        batchfile.connect("./store", api_key="bf_other")
    with pytest.raises(batchfile.SettingsError, match="is not a valid service URL"):
        batchfile.connect("http://")
    with pytest.raises(batchfile.SettingsError, match="tenant: 'A/B' is not a valid name"):
        batchfile.connect("./store", tenant="A/B")
    unavailable = pytest.raises(batchfile.errors.ServiceUnavailable, match="cannot be reached")
    with batchfile.connect("http://127.0.0.1:9") as client, unavailable:
        client.batch("batch_0")
    with batchfile.connect("memory:") as client:
        batch = client.submit("requests.jsonl", stage="email")
        assert client.batch(batch.id).cancel().reason == "canceled"
        (first, _) = batch.results()
        assert (first.status, first.error and first.error.code) == ("canceled", "canceled")
