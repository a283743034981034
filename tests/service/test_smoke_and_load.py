"""One command starts the whole service; the smoke test, the load test and the Node example find it well."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
START_S = 60.0
SCRIPT_S = 120.0


class Service:
    """`deploy/service.py` with the echo engine; all that it starts is below `process`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.said = folder / "said"
        command = [sys.executable, ROOT / "deploy" / "service.py", "--engine", "echo", "--port", "0"]
        with self.said.open("wb") as file:
            self.process = subprocess.Popen([*command, "--folder", str(folder), *arguments], stderr=file)

    def until_said(self, words: str) -> str:
        """The line with these words."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for line in self.said.read_text().splitlines():
                if words in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        pytest.fail(f"it never said {words!r}: {self.said.read_text()[-3000:]}")

    def url(self) -> str:
        self.until_said("Everything is up")
        return self.until_said("The API is up").split()[4]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(START_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def begin(*arguments: str) -> Service:
        started.append(Service(tmp_path, *arguments))
        return started[-1]

    yield begin
    for service in started:
        if service.process.poll() is None:
            service.end()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    service = Service(tmp_path_factory.mktemp("service"))
    try:
        yield service.url()
    finally:
        service.end()


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=SCRIPT_S)


def test_the_smoke_test_finds_a_service_over_a_bucket_well(start: Callable[..., Service]) -> None:
    service = start("--s3", "--", sys.executable, str(ROOT / "tests" / "smoke_test.py"))
    assert service.process.wait(SCRIPT_S) == 0, service.said.read_text()


def test_the_smoke_test_prints_a_line_for_each_check_and_leaves_nothing(url: str) -> None:
    done = run(sys.executable, "tests/smoke_test.py", "--url", url)
    assert done.returncode == 0, done.stdout
    *checks, last = done.stdout.splitlines()
    assert len(checks) == 15
    assert {line[:4] for line in checks} == {"ok  "}
    assert last == f"{url}: every check is well"
    assert httpx.get(f"{url}/api/batches").json()["data"] == []


def test_the_smoke_test_fails_where_there_is_no_service(url: str) -> None:
    nowhere = run(sys.executable, "tests/smoke_test.py", "--url", "http://127.0.0.1:1")
    assert (nowhere.returncode, nowhere.stdout.splitlines()[1][:26]) == (1, "Nothing more can be checke")
    other = run(sys.executable, "tests/smoke_test.py", "--url", f"{url}/elsewhere")
    assert other.returncode == 1
    assert other.stdout.startswith("FAIL  it is healthy: Failed: expected 200 from GET /healthz, found 404")


def test_the_load_test_measures_every_stage_and_pool_against_its_targets(url: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "{leads: 10, polish_share: 0.3, batch_requests_max: 4, concurrency: 2, prompt_tokens: 60, shared_tokens: 40, "
        "ignore_eos: true, stages: {sales_intel: {output_tokens: 8, target_s: 900}, email: {output_tokens: 8}, "
        "polish: {output_tokens: 4}}, pools: {mistral: {latency_p50_s: 900, requests_per_s: 1000000}, "
        "llama-70b: {latency_p95_s: 900}}}"
    )
    command = [sys.executable, "tests/load_test.py", "--url", url, "--config", str(config)]
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["requests"], found["errored"], found["missed"]) == (23, 0, ["mistral.requests_per_s"])
    assert {name: stage["requests"] for name, stage in found["stages"].items()} == {
        "sales_intel": 10,
        "email": 10,
        "polish": 3,
    }
    assert found["stages"]["email"]["input_tokens"] == 600
    for pool in ("mistral", "llama-70b"):
        assert found["pools"][pool]["latency_p95_s"] is not None
    assert run(*command, "--strict").returncode == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{leads: 0}", "leads: Input should be greater than 0"),
        ("{stages: null}", "stages: "),
        ("{stages: {}}", "stages: "),
        ("{stages: {email: {}}}", "stages.email.output_tokens: Field required"),
        ("{stages: {polish: {output_tokens: 4}}}", "polish takes what email wrote: name email before it"),
        ("{pools: {mistral: {latency_p50: 3}}}", "pools.mistral.latency_p50: "),
        ("{leads: [", "is no YAML: "),
        ("", "is no table of keys"),
    ],
)
def test_a_load_that_can_not_be_sent_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "config.yaml"
    if text.endswith("}"):  # keys that stand in for those of the whole file
        whole = yaml.safe_load((ROOT / "tests" / "test_config.yaml").read_text())
        text = yaml.safe_dump(whole | yaml.safe_load(text))
    config.write_text(text)
    refused = run(sys.executable, "tests/load_test.py", "--url", "http://127.0.0.1:1", "--config", str(config))
    [line] = refused.stderr.splitlines()
    assert refused.returncode == 2
    assert line.startswith(f"{config}: {words}")


def test_a_load_of_no_leads_or_from_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for arguments in (["--leads", "0"], ["--config", str(tmp_path / "none")]):
        refused = run(sys.executable, "tests/load_test.py", *arguments)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_the_text_of_an_answer_is_found_behind_its_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    deployment = importlib.import_module("deployment")
    text, thought = {"type": "text", "text": "yes"}, {"type": "thinking", "thinking": "hm", "signature": ""}
    assert deployment.text_of({"content": [text]}) == "yes"
    assert deployment.text_of({"content": [thought, text]}) == "yes"
    for content in ([text, thought], [text, text], [thought]):
        with pytest.raises(deployment.Failed):
            deployment.text_of({"content": content})


def test_the_node_example_gets_every_result_from_the_right_model(url: str) -> None:
    compiler = ROOT / "ts" / "node_modules" / ".bin" / "tsc"
    if not shutil.which("node") or not compiler.exists():
        pytest.skip("the adapter is not installed: run `just adapter`, which needs Node")
    built = run(compiler, "-p", "ts/tsconfig.json")
    assert built.returncode == 0, built.stdout
    done = run("node", "examples/node/leads.mjs", LOCAL_BATCH_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    assert last == "340 requests, every custom_id came back in order and from the right model."


def test_ctrl_c_ends_all_of_it(start: Callable[..., Service]) -> None:
    service = start()
    service.url()
    children = service.children()
    assert len(children) == 5  # the API, and for each of two pools a supervisor and a runner
    assert service.end() == 0
    assert not [child for child in children if child.is_running()]


def test_a_part_that_dies_ends_the_rest_and_its_last_words_are_shown(start: Callable[..., Service]) -> None:
    service = start()
    service.url()
    children = service.children()
    next(child for child in children if "api" in child.cmdline()).kill()
    assert service.process.wait(START_S) == 1
    assert f"api exited with {-signal.SIGKILL}" in service.said.read_text()
    assert '"event": "request.answered"' in service.said.read_text()
    assert not [child for child in children if child.is_running()]
