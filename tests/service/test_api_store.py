"""An S3 server that stops answering, and one that dies: what the API says, and how soon."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
BATCHES = "/v1/messages/batches"


class Server:
    """MiniStack on loopback, with a bucket."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.store = f"s3://bucket/service?endpoint={self.url}&region=us-east-1"
        variables = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("ministack"))],
            cwd=folder,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._await()
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        admin = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)
        admin.create_bucket(Bucket="bucket")
        admin.close()

    def _await(self) -> None:
        for _ in range(600):
            try:
                with urllib.request.urlopen(self.url, timeout=2):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail("the S3 server did not come up")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    yield found
    found.process.kill()
    found.process.wait()


def test_a_store_that_goes_silent_is_503_for_everybody_until_it_answers_again(
    start_api: Any, make_request: Any, server: Server
) -> None:
    api = start_api(server.store, **CREDENTIALS)
    batch_id = api.submit("email", [make_request("a")])
    asked: list[httpx.Response] = []

    def ask(path: str) -> None:
        with httpx.Client(base_url=api.url, timeout=60, trust_env=False) as http:
            asked.append(http.get(path))

    server.process.send_signal(signal.SIGSTOP)
    # More of them than the service has threads: they must not wait for each other's timeouts.
    paths = ["/api/batches", f"{BATCHES}/{batch_id}"] * 30
    askers = [threading.Thread(target=ask, args=(path,)) for path in paths]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert {answer.status_code for answer in asked} == {503}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in asked)
    assert api.http.get("/ready").status_code == 503
    assert api.http.get("/healthz").json()["status"] == "degraded"
    assert "batchfile_store_up 0.0" in api.http.get("/metrics").text
    document = {"stage": "email", "requests": [make_request("b")]}
    refused = api.http.post(BATCHES, json=document, headers={"idempotency-key": "k"})
    assert refused.status_code == 503

    server.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 60
    while api.http.get(f"{BATCHES}/{batch_id}").status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert api.http.get(f"{BATCHES}/{batch_id}").status_code == 200
    assert api.http.post(BATCHES, json=document, headers={"idempotency-key": "k"}).status_code == 200
    assert len(api.http.get("/api/batches").json()["data"]) == 2


def test_a_store_that_is_dead_is_503(start_api: Any, make_request: Any, server: Server) -> None:
    api = start_api(server.store, **CREDENTIALS)
    batch_id = api.submit("email", [make_request("a")])
    server.process.kill()
    for answer in (
        api.http.get(f"{BATCHES}/{batch_id}"),
        api.http.post(BATCHES, json={"stage": "email", "requests": [make_request("b")]}),
        api.http.get("/ready"),
    ):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
    assert api.http.get("/healthz").json()["storage"] is False
