"""Every command of the docs runs as the page shows it, or is in NOT_RUN with the reason.

The service that the README starts (`batchfile serve`, `batchfile worker`) runs with the echo engine over a real S3
server while the commands of the other pages run, so that they find what the page says.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.chaos.servers import KEYS, Server
from tests.service.remote_kit import ROOT, jsonl, line

PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "deploy/**/*.md", "containers/**/*.md", "ts/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name not in {"CHANGELOG.md", "DECISIONS.md"}
]
LEADS = [f"lead_{number}" for number in range(5)]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
KEY = "key-of-docs"

# Command (a regular expression that matches from its start) -> why no test here runs it.
NOT_RUN = {
    r"python3 -m venv|\. \.venv/bin/activate": "the set-up that ran before the tests",
    r"(python3 -m )?pip install": "the set-up that ran before the tests; tests/deploy/test_wheel.py installs extras",
    r"\.venv/bin/just serve": "tests/service/test_smoke_and_load.py runs it",
    r"just adapter": "tests/service/test_smoke_and_load.py runs the script, tests/service/test_node_adapter.py builds",
    r"npm ": "needs packages of npm; tests/service/test_node_package.py and tests/service/test_node_adapter.py run it",
    r"LOCAL_BATCH_URL=\S+ node node_modules/": "needs the package; tests/service/test_node_package.py installs it",
    r"docker |for image in ": "needs Docker and a registry; tests/deploy/test_files.py lints the Dockerfiles",
    r"kubectl (apply|exec|create) ": "needs a cluster; tests/deploy/test_kubernetes.py validates the manifests",
    r"ray start|cd CHECKOUT|python -m runners\.ray ": "needs a Ray cluster; tests/fleet/test_ray.py starts real ones",
    r"deploy/runpod/deploy\.sh ": "needs a RunPod account; tests/deploy/test_runpod.py runs it against a fake",
    r"(BATCHFILE_API_KEY=\S+ )?python -m runners\.runpod": "needs a RunPod account; tests/deploy/test_scaler.py",
    r"python tests/smoke_test\.py ": "tests/service/test_smoke_and_load.py runs it over a bucket",
    r"python tests/load_test\.py ": "measures for minutes; tests/service/test_smoke_and_load.py runs a small one",
    r'batchfile doctor --store "\$BATCHFILE_STORE"': "needs a bucket of R2; docs/reliability.md has it for ours",
}

# What stands for something of the reader's own: text of the page -> what the test has instead. Buckets have the pages'
# own names, on a server that AWS_ENDPOINT_URL names.
OWN = {
    "https://llm.example/v1": "{endpoint}",
    "https://batch.example": "{api}",
    "https://POD-8000.proxy.runpod.net": "{api}",
    "localhost:8000": "{api}",
    "results BATCH": "results {batch}",
    "rerun BATCH": "rerun {batch}",
    "status BATCH": "status {batch}",
}
BUCKETS = ("bucket", "backup", "new", "my-bucket")

# These run until they are stopped: one of each for all pages.
SERVICE = (
    "batchfile serve --store s3://bucket/prefix",
    "batchfile worker --pool mistral --store s3://bucket/prefix",
    "batchfile worker --pool llama-70b --store s3://bucket/prefix",
)
SETTINGS = """
[run]
engine = "echo"

[pools.mistral]
engine = "echo"
model = "mistralai/Mistral-7B-Instruct-v0.3"

[pools.llama-70b]
engine = "echo"
model = "meta-llama/Meta-Llama-3-70B-Instruct"
"""

# Pages whose commands are alternatives: each begins with nothing that another has left.
ALTERNATIVES = {"README.md"}
# Pages whose Python examples make what their commands need.
WITH_PYTHON = {"docs/quickstart.md"}
MAY_BE_MISSING = ("curl", "jq")  # programs that neither set-up nor the system is sure to have

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SHOWN_AS_TEXT = re.compile(
    r"^ {3,}(?:\.venv/|deploy/|(?:batchfile|just|pip|python3?|aws|curl|docker|kubectl|npm|export|sed) ).*", re.MULTILINE
)
INLINE = re.compile(r"`(?:\.venv/bin/)?((?:batchfile|just) [a-z][^`]*)`")


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    text: str
    is_python: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def reasons(self) -> list[str]:
        """Patterns of NOT_RUN."""
        return [] if self.is_python else [pattern for pattern in NOT_RUN if re.match(pattern, self.text)]

    @property
    def is_missing(self) -> bool:
        return any(re.search(rf"\b{name}\b", self.text) and not shutil.which(name) for name in MAY_BE_MISSING)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands_of(page: Path) -> Iterator[Command]:
    """In the order of the page: what bash reads as one command each, without comments."""
    name, text = name_of(page), page.read_text()
    for found in FENCE.finditer(text):
        indent, kind, code = found.groups()
        first = text[: found.start()].count("\n") + 2
        if kind == "python" and name in WITH_PYTHON:
            yield Command(name, first, code, is_python=True)
        if kind != "sh":
            continue
        open_lines: list[str] = []
        for number, row in enumerate(code.splitlines(), first):
            open_lines.append(re.sub(r"(^|\s+)#( .*)?$", "", row.removeprefix(indent)))
            command = "\n".join(open_lines)
            if command.endswith("\\") or not is_whole(command):
                continue
            open_lines = []
            if command:
                yield Command(name, number, re.sub(r"\s*\\\n\s*", " ", command))
        assert not open_lines, f"{name}:{first}: bash does not accept {open_lines}"


def is_whole(command: str) -> bool:
    return subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0


COMMANDS = [command for page in PAGES for command in commands_of(page)]


@dataclass
class Place:
    """What the commands find. `values`: for the braces of OWN."""

    s3: Server
    environ: dict[str, str]
    values: dict[str, str] = field(default_factory=dict)

    def run(self, command: str, folder: Path, exports: list[str]) -> None:
        script = "\n".join([*exports, command])
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    def own(self, command: str) -> str:
        for shown, instead in OWN.items():
            command = command.replace(shown, instead.format(**self.values))
        return command

    def empty_outbox(self) -> None:
        admin = self.s3.client()
        for found in admin.list_objects_v2(Bucket="bucket", Prefix="prefix/outbox/").get("Contents", []):
            admin.delete_object(Bucket="bucket", Key=found["Key"])
        admin.close()

    def settle(self) -> None:
        """Until no batch is at work: a copy of a store in use may miss an object that is removed meanwhile."""
        before, names = None, self.names()
        while names != before:
            time.sleep(2)
            before, names = names, self.names()

    def names(self) -> set[str]:
        admin = self.s3.client()
        pages = admin.get_paginator("list_objects_v2").paginate(Bucket="bucket")
        found = {row["Key"] for page in pages for row in page.get("Contents", [])}
        admin.close()
        return found

    def make_user(self, name: str) -> None:
        names = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("iam", endpoint_url=self.s3.url, **names).create_user(UserName=name)

    def wait_for(self, key: str) -> None:
        admin, deadline = self.s3.client(), time.monotonic() + WAIT_S
        while not admin.list_objects_v2(Bucket="bucket", Prefix=key).get("Contents"):
            assert time.monotonic() < deadline, f"{key} does not come"
            time.sleep(0.5)
        admin.close()


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible one that serves NAME."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "NAME", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": "Good."}, "finish_reason": "stop"}
        self.answer({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    def answer(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("service")
    with ExitStack() as stack:
        s3 = Server("ministack", folder, SERVICES="s3,iam")
        s3.start()
        stack.callback(s3.kill)
        llm = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        stack.callback(llm.server_close)
        threading.Thread(target=llm.serve_forever, args=[0.01], daemon=True).start()
        stack.callback(llm.shutdown)
        one = Place(s3, environ_of(folder, s3.url))
        one.values = {"endpoint": f"http://127.0.0.1:{llm.server_port}/v1"}
        one.environ |= {"BASE_URL": one.values["endpoint"], "ENDPOINT_KEY": "sk-docs"}
        s3.wait()
        for bucket in BUCKETS:
            s3.client().create_bucket(Bucket=bucket)
        started = [
            stack.enter_context(Running(command, folder / f"{number}.log", one.environ))
            for number, command in enumerate(SERVICE)
        ]
        port = started[0].said("api.started")["port"]
        one.values["api"] = one.environ["BATCHFILE_URL"] = f"http://127.0.0.1:{port}"
        (folder / "bad.jsonl").write_bytes(jsonl(line("good"), line("bad", max_token=5)))
        command = [
            str(Path(sys.executable).with_name("batchfile")),
            "submit",
            "bad.jsonl",
            "--stage",
            "email",
            "--wait",
        ]
        done = subprocess.run(command, cwd=folder, env=one.environ, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 3, done.stderr  # one request failed
        one.values["batch"] = done.stdout.split()[0].rstrip(":")
        for running in started[1:]:
            running.said("engine.ready")
        yield one


def environ_of(folder: Path, s3_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    (folder / "settings.toml").write_text(SETTINGS)
    (folder / ".curlrc").write_text("fail\n")  # a status of 400 or more is a failure
    return {
        **kept,
        **KEYS,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
        "CURL_HOME": str(folder),
        "AWS_ENDPOINT_URL": s3_url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "OPENAI_API_KEY": "sk-docs",
        "BATCHFILE_CONFIG": str(folder / "settings.toml"),
        "BATCHFILE_HOST": "127.0.0.1",
        "BATCHFILE_PORT": "0",
        "BATCHFILE_API_KEYS": f"docs:{hashlib.sha256(KEY.encode()).hexdigest()}",
        "BATCHFILE_API_KEY": KEY,
        "KEY": KEY,
    }


class Running:
    """A command that runs until SIGTERM stops it."""

    def __init__(self, command: str, log: Path, environ: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=log.parent, env=environ, stdout=file, stderr=file
            )

    def said(self, event: str) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            for row in self._log.read_text().splitlines():
                if row.startswith("{") and row.endswith("}") and json.loads(row).get("event") == event:
                    found: dict[str, Any] = json.loads(row)
                    return found
            time.sleep(0.1)
        pytest.fail(f"no {event}: {self._log.read_text()[-3000:]}")

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(WAIT_S) in {0, -signal.SIGTERM}, self._log.read_text()[-3000:]


def folder_for(folder: Path) -> Path:
    """As a checkout with files of the reader's own."""
    folder.mkdir()
    for name in ("deploy", "tests", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "leads.jsonl").write_bytes(jsonl(*(line(lead) for lead in LEADS)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({command.page for command in COMMANDS if not command.reasons}))
def test_the_commands_of_a_page_run_in_their_order(page: str, place: Place, tmp_path: Path) -> None:
    folder, exports = folder_for(tmp_path / "checkout"), list[str]()
    place.empty_outbox()
    for number, command in enumerate(command for command in COMMANDS if command.page == page):
        if command.reasons or command.text in SERVICE or command.is_missing:
            continue
        text = place.own(command.text)
        if command.is_python:
            text = f"python - <<'END'\n{text}END"
        if found := re.search(r"s3://bucket/(\S+/outbox/\S+\.jsonl)\.", text):
            place.wait_for(f"{found[1]}.receipt.json")
        if text.startswith("aws s3 sync"):
            place.settle()
        if text.startswith("aws iam"):
            place.make_user("uploads")
        if page in ALTERNATIVES and text.startswith("batchfile "):
            place.run(text, folder_for(tmp_path / str(number)), exports)
        else:
            place.run(text, folder, exports)
        if text.startswith("export "):
            exports.append(text)
    for found in folder.glob("leads.jsonl.results.jsonl"):
        rows = [json.loads(row) for row in found.read_text().splitlines()]
        assert [(row["custom_id"], row["status"]) for row in rows] == [(lead, "succeeded") for lead in LEADS]


def test_no_command_has_two_reasons_and_no_reason_is_without_a_command() -> None:
    assert [str(command) for command in COMMANDS if len(command.reasons) > 1] == []
    assert {pattern for command in COMMANDS for pattern in command.reasons} == set(NOT_RUN)
    named = [ROOT / name for why in NOT_RUN.values() for name in re.findall(r"tests/\S+\.py", why)]
    assert [str(path) for path in named if not path.is_file()] == []


def test_what_stands_for_the_readers_own_is_on_a_page() -> None:
    texts = [command.text for command in COMMANDS]
    assert [shown for shown in OWN if not any(shown in text for text in texts)] == []
    assert [command for command in SERVICE if command not in texts] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_shown_as_shell(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    assert SHOWN_AS_TEXT.findall(text) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_within_a_sentence_exists(page: Path) -> None:
    """Its name, and each of its options."""
    recipes = re.findall(r"^([\w-]+)[^:=\n]*:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE)
    reference = (ROOT / "docs" / "cli.md").read_text()
    for command in INLINE.findall(FENCE.sub("", page.read_text())):
        program, *words = command.split(" ")
        if program == "just":
            assert words[0] in recipes, command
            continue
        name = " ".join(words[: 2 if words[0] in {"keys", "config"} else 1])
        assert f"\n## `batchfile {name}`\n" in reference, command
        section = reference.partition(f"\n## `batchfile {name}`\n")[2].partition("\n## ")[0]
        options = re.findall(r"(?<= )--[a-z-]+", " ".join(words))
        assert [option for option in options if not re.search(rf"{option}\b", section)] == [], command
