"""deploy.sh as a command, against a fake server."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_runpod import KEY, Server

FOLDER = Path(__file__).parents[2] / "deploy" / "runpod"
VARIABLES = {
    "RUNPOD_API_KEY": KEY,
    "RUNPOD_DATA_CENTER": "US-KS-2",
    "BATCHFILE_IMAGES": "registry.example/acme",
    "BATCHFILE_VERSION": "1.2.3",
    "BATCHFILE_STORE": "s3://leads/batches",
    "BATCHFILE_URL": "https://batches.example",
}
Deploy = Callable[..., "subprocess.CompletedProcess[str]"]


def deployer(server: Server, files: Path) -> Deploy:
    def run(*arguments: str, stdout: Any = subprocess.PIPE, **variables: str) -> subprocess.CompletedProcess[str]:
        urls = {"RUNPOD_MANAGEMENT_URL": server.url, "RUNPOD_JOBS_URL": server.url}
        environ = {**os.environ, **VARIABLES, **urls, "PYTHON": sys.executable, **variables}
        command = [str(FOLDER / "deploy.sh"), *arguments, "--folder", str(files)]
        return subprocess.run(command, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True)

    return run
