"""What deploy/compose.yaml runs, as plain processes on loopback: its commands and environments, but no container."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.chaos import servers
from tests.deployment import Deployment

ROOT = Path(__file__).parents[2]
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
SEAWEEDFS_PORTS = 9
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return servers.free_ports(SEAWEEDFS_PORTS + 3)


@pytest.fixture(scope="module")
def services(ports: list[int]) -> dict[str, Any]:
    """As they are written, with the defaults of their variables, but for the addresses."""
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("0.0.0.0", "127.0.0.1")
    text = text.replace("http://store:8333", f"http://127.0.0.1:{ports[0]}")
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


@pytest.fixture
def start(services: dict[str, Any], tmp_path: Path) -> Iterator[Start]:
    """A service's process, with the environment that is written there and none of ours."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(name: str, command: list[str], **variables: str) -> "subprocess.Popen[bytes]":
        own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        written = {key: value or "" for key, value in services[name]["environment"].items()}
        environ = {**own, **written, **variables}
        with (tmp_path / f"{name}.log").open("ab") as log:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=log, stderr=log))
        return started[-1]

    yield begin
    for process in reversed(started):  # the store last, at once: it takes half a minute over an orderly end
        (process.kill if process is started[0] else process.terminate)()
        process.wait()


def test_its_services_do_a_batch_together(
    services: dict[str, Any], ports: list[int], start: Start, tmp_path: Path
) -> None:
    command, _ = servers.seaweedfs(tmp_path, ports[:SEAWEEDFS_PORTS])
    written = services["store"]["command"].replace("/data", str(tmp_path / "weed")).replace("8333", str(ports[0]))
    start("store", [*command, *written.split()[1:]])
    bucket = [sys.executable, *services["bucket"]["entrypoint"][1:], *services["bucket"]["command"]]
    deadline = time.monotonic() + WAIT_S
    while (code := start("bucket", bucket).wait()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert code == 0, (tmp_path / "bucket.log").read_text()[-3000:]
    assert start("bucket", bucket).wait() == 0  # each `up` runs it again
    api, *metrics = ports[SEAWEEDFS_PORTS:]
    start("api", [sys.executable, "-m", "api"], PORT=str(api))
    for name, port in zip(("mistral", "llama"), metrics, strict=True):
        start(name, [sys.executable, "-m", *services[name]["command"], "--metrics-port", str(port)])
    service = Deployment(f"http://127.0.0.1:{api}", None, WAIT_S)
    batch_id = submitted(service, tmp_path, deadline)
    *_, last = service.until_ended(batch_id)
    assert last["counts"] == {"total": 4, "succeeded": 4, "errored": 0, "pending": 0}
    service.http.close()


def submitted(service: Deployment, folder: Path, deadline: float) -> str:
    """A batch of two requests for each pool, once the API takes it."""
    params = {"messages": [{"role": "user", "content": "hi"}]}
    rows = [
        {"custom_id": f"{pool}_{n}", "params": params, "metadata": {"model_hint": pool}}
        for n in range(2)
        for pool in ("mistral", "llama-70b")
    ]
    while time.monotonic() < deadline:
        try:
            if service.http.get("/ready").status_code == 200:
                return service.submit("email", rows)
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the API did not come up: {(folder / 'api.log').read_text()[-3000:]}")
