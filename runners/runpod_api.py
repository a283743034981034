"""RunPod over HTTP: management (`/v2` of api.runpod.io) and jobs (`/v2/{endpoint}` of api.runpod.ai).

Uses the standard library only, so that a deployment needs nothing but Python. Knows no pool and no file.
"""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

MANAGEMENT_URL = "https://api.runpod.io"
JOBS_URL = "https://api.runpod.ai"
KEY_VARIABLE = "RUNPOD_API_KEY"
TIMEOUT_S = 30.0
READ_ATTEMPTS = 3  # of a GET; nothing that changes anything is sent twice
READ_WAIT_S = 1.0

Json = dict[str, Any]


class RunpodError(Exception):
    """RunPod refused, or did not answer (`status` 0). The message holds what it said."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Runpod:
    """`management_url`, `jobs_url`: other than RunPod's own for a test."""

    def __init__(self, key: str, management_url: str = MANAGEMENT_URL, jobs_url: str = JOBS_URL) -> None:
        self._key = key
        self._management_url = management_url.rstrip("/")
        self._jobs_url = jobs_url.rstrip("/")

    @classmethod
    def from_environment(cls) -> "Runpod":
        """Raises: RunpodError without a key."""
        key = os.environ.get(KEY_VARIABLE)
        if not key:
            raise RunpodError(f"{KEY_VARIABLE} is not set: make a key in RunPod's console under Settings, API Keys")
        management_url = os.environ.get("RUNPOD_MANAGEMENT_URL", MANAGEMENT_URL)
        return cls(key, management_url, os.environ.get("RUNPOD_JOBS_URL", JOBS_URL))

    def manage(self, method: str, path: str, body: Json | None = None) -> Json:
        """`path` without `/v2`. An answer without a body is {}. Raises: RunpodError."""
        return call(method, f"{self._management_url}/v2{path}", self._key, body)

    def jobs(self, method: str, endpoint_id: str, verb: str, body: Json | None = None) -> Json:
        """`verb`: `run`, `health`, `purge-queue`, ... Raises: RunpodError."""
        name = urllib.parse.quote(endpoint_id, safe="")
        return call(method, f"{self._jobs_url}/v2/{name}/{verb}", self._key, body)


def call(method: str, url: str, key: str | None, body: Json | None = None) -> Json:
    """A GET is tried three times while the server is busy or away. Raises: RunpodError."""
    num_attempts = READ_ATTEMPTS if method == "GET" else 1
    for attempt in range(1, num_attempts + 1):
        try:
            return _once(method, url, key, body)
        except RunpodError as error:
            if attempt == num_attempts or not (error.status in {0, 429} or error.status >= 500):
                raise
            time.sleep(READ_WAIT_S * attempt)
    raise AssertionError("unreachable")


def _once(method: str, url: str, key: str | None, body: Json | None) -> Json:
    headers = {"Accept": "application/json", "User-Agent": "batchfile"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            told = error.read().decode(errors="replace")
        raise RunpodError(f"{method} {url}: {error.code} {_reason(told)}", error.code) from error
    except (OSError, HTTPException) as error:
        raise RunpodError(f"{method} {url}: no answer ({error})") from error
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise RunpodError(f"{method} {url}: the answer is no JSON: {text[:200]!r}") from error
    return found if isinstance(found, dict) else {"items": found}


def _reason(text: str) -> str:
    """What an answer as of RFC 9457 says, or the text itself."""
    try:
        found = json.loads(text)
        return "; ".join([str(found["detail"]), *map(str, found.get("errors", []))])
    except (ValueError, KeyError, TypeError, AttributeError):
        return text[:500]
