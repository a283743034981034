"""Real S3 servers that may be killed and come back with what they had acknowledged."""

import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import boto3

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET, PREFIX = "chaos", "service"
START_S_MAX = 90.0
PORTS = range(12_000, 32_000)
SERVERS = ("ministack", "seaweedfs")


class Server:
    """`kind`: one of SERVERS. All its ports are on loopback, all its files in `folder`. `variables`: of its process."""

    def __init__(self, kind: str, folder: Path, **variables: str) -> None:
        self._folder = folder
        self._ports = free_ports(9)
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self._command, self._variables = (ministack if kind == "ministack" else seaweedfs)(folder, self._ports)
        self._variables = {**self._variables, **variables}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**os.environ, **self._variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(self.url, timeout=2):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(f"no S3 server at {self.url} within {START_S_MAX:.0f} s; see {self._folder / 'server.log'}")

    def make_bucket(self) -> None:
        admin = self.client()
        admin.create_bucket(Bucket=BUCKET)
        admin.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pids(self) -> list[int]:
        return [] if self._process is None or self._process.poll() is not None else [self._process.pid]

    def client(self):  # type: ignore[no-untyped-def]  # boto3 has no types
        names = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **names)


def ministack(folder: Path, ports: list[int]) -> tuple[list[str], dict[str, str]]:
    kept = {"S3_PERSIST": "1", "S3_DATA_DIR": str(folder / "s3"), "STATE_DIR": str(folder / "state")}
    place = {"GATEWAY_PORT": str(ports[0]), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
    place["IOT_MTLS_ENABLED"] = "0"  # it would listen on every interface
    return [program("ministack")], {**kept, **place}


def seaweedfs(folder: Path, ports: list[int]) -> tuple[list[str], dict[str, str]]:
    """Of nine ports the first is the one that speaks S3."""
    places = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    places += ("filer.port", "filer.port.grpc")
    files = folder / "weed"
    files.mkdir()
    options = [f"-{name}={port}" for name, port in zip(places, ports, strict=False)]
    options += [
        f"-dir={files}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    options += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    return [program("weed"), "server", *options], KEYS


def program(name: str) -> str:
    """Of this virtual environment, where the `test` extra puts it."""
    return str(Path(sys.executable).with_name(name))


def free_ports(num: int) -> list[int]:
    """Below those that the kernel gives to connections: none of them is taken while a server starts."""
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == num:
            break
    return ports
