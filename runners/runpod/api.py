"""A client of RunPod's HTTP APIs: management (`/v2` of api.runpod.io) and jobs (`/v2/{endpoint}` of api.runpod.ai).

Uses only the standard library, so that a deployment needs nothing but Python.
"""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar

MANAGEMENT_URL = "https://api.runpod.io"
JOBS_URL = "https://api.runpod.ai"
KEY_VARIABLE = "RUNPOD_API_KEY"
SCALER_KEY_VARIABLE = "SCALER_RUNPOD_API_KEY"  # because RunPod sets RUNPOD_API_KEY in pods to a key of its own
TIMEOUT_S = 30.0
READ_ATTEMPTS = 3  # of a GET; another request is sent again only after a 429, which has changed nothing
READ_WAIT_S = 1.0
PAGE_NUM = 1000  # the most that RunPod returns at once
HEALTH = ("inQueue", "inProgress", "completed", "failed")

Json = dict[str, Any]
T = TypeVar("T")


class RunpodError(Exception):
    """An error response, or no usable response (`status` 0). The message includes RunPod's own.

    `retry_after_s`: of a 429, if the response says so.
    """

    def __init__(self, message: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointHealth:
    """The health of an endpoint. `num_failed`: of the jobs that RunPod still lists. `workers`: count by state."""

    num_waiting: int
    num_at_work: int
    num_completed: int
    num_failed: int
    workers: dict[str, int]


class Runpod:
    """`management_url`, `jobs_url`: overridden in tests. `patience_s`: the longest wait after a 429."""

    def __init__(
        self, key: str, management_url: str = MANAGEMENT_URL, jobs_url: str = JOBS_URL, patience_s: float = 5.0
    ) -> None:
        self._key = key
        self._patience_s = patience_s
        self._management_url = management_url.rstrip("/")
        self._jobs_url = jobs_url.rstrip("/")

    @classmethod
    def from_environment(cls, patience_s: float = 5.0) -> "Runpod":
        """Raises: RunpodError if the key is not set."""
        key = key_of(SCALER_KEY_VARIABLE) or key_of(KEY_VARIABLE)
        if not key:
            raise RunpodError(f"{KEY_VARIABLE} is not set; create a key in RunPod's console under Settings, API Keys")
        management_url = os.environ.get("RUNPOD_MANAGEMENT_URL", MANAGEMENT_URL)
        return cls(key, management_url, os.environ.get("RUNPOD_JOBS_URL", JOBS_URL), patience_s)

    def manage(self, method: str, path: str, body: Json | None = None) -> Json:
        """`path` without `/v2`. Returns {} for a response without a body. Raises: RunpodError."""
        return call(method, f"{self._management_url}/v2{path}", self._key, body, self._patience_s)

    def jobs(self, method: str, endpoint_id: str, verb: str, body: Json | None = None) -> Json:
        """`verb`: `run`, `health`, `purge-queue`, ... Raises: RunpodError."""
        name = urllib.parse.quote(endpoint_id, safe="")
        return call(method, f"{self._jobs_url}/v2/{name}/{verb}", self._key, body, self._patience_s)

    def listed(self, path: str, key: str) -> list[Json]:
        """All pages of a list of resources, each with a string `id`. Raises: RunpodError."""
        things: dict[str, Json] = {}  # by ID: a resource that is created meanwhile moves others to the next page
        cursors: list[str] = [""]
        while True:
            more = f"&cursor={urllib.parse.quote(cursors[-1], safe='')}" if cursors[-1] else ""
            answer = self.manage("GET", f"{path}?limit={PAGE_NUM}{more}")
            for thing in at(answer, key, kind=list, of=path):
                things[at(thing, "id", kind=str, of=f"{path}: {key}")] = thing
            cursor = (answer.get("pagination") or {}).get("nextCursor")
            if not cursor:
                return list(things.values())
            if cursor in cursors:
                raise RunpodError(f"{path}: unexpected response: the pages never end; run the same command again")
            cursors.append(cursor)

    def health(self, endpoint_id: str) -> EndpointHealth:
        """Raises: RunpodError."""
        found, of = self.jobs("GET", endpoint_id, "health"), f"health of {endpoint_id}"
        num_of = {name: at(found, "jobs", name, kind=int, of=of) for name in HEALTH}
        workers = at(found, "workers", kind=dict, of=of)
        return EndpointHealth(
            num_waiting=num_of["inQueue"],
            num_at_work=num_of["inProgress"],
            num_completed=num_of["completed"],
            num_failed=num_of["failed"],
            workers={name: at(workers, name, kind=int, of=of) for name in workers},
        )


def at(answer: Any, *names: str, kind: type[T], of: str) -> T:
    """The value in `answer` under these names. `of`: what was asked for.

    Raises: RunpodError if it is missing or of another type. The message never contains values, which may be secret.
    """
    found = answer
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, kind):
        actual = "missing" if found is None else f"a {type(found).__name__}"
        raise RunpodError(f"{of}: unexpected response: {'.'.join(names)} is {actual} and must be a {kind.__name__}")
    return found


def key_of(variable: str) -> str | None:
    """The stripped key; None if it is not set. Raises: RunpodError, without the key in its message."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RunpodError(f"{variable} contains characters that no key has, such as a line break; copy it again")
    return key or None


def call(method: str, url: str, key: str | None, body: Json | None = None, patience_s: float = 5.0) -> Json:
    """Sends a request; retries a GET twice if the server is busy or unavailable, and any request after a 429 whose
    `Retry-After` is at most `patience_s`. Raises: RunpodError.
    """
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return _once(method, url, key, body)
        except RunpodError as error:
            is_retried = error.status == 429 or (method == "GET" and (error.status == 0 or error.status >= 500))
            wait_s = READ_WAIT_S * attempt if error.retry_after_s is None else error.retry_after_s
            if attempt == READ_ATTEMPTS or not is_retried or wait_s > patience_s:
                raise
            time.sleep(wait_s)
    raise AssertionError("unreachable")


class _Unredirected(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error, because its target would receive the key."""

    def redirect_request(self, *_: object) -> None:
        return None


_opener = urllib.request.build_opener(_Unredirected)


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
        with _opener.open(request, timeout=TIMEOUT_S) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read().decode(errors="replace")
        if "Location" in error.headers:
            reason = f"redirect to {error.headers['Location']} is not followed; use that URL if it is right"
        wait_s = _seconds(error.headers.get("Retry-After")) if error.code == 429 else None
        if wait_s is not None:
            reason = f"{_reason(reason)}; try again in {wait_s:.0f} s"
        raise RunpodError(f"{method} {url}: {error.code} {_reason(reason)}", error.code, wait_s) from error
    except (OSError, HTTPException) as error:
        raise RunpodError(f"{method} {url}: no response ({error})") from error
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise RunpodError(f"{method} {url}: the response is not JSON: {text[:200]!r}") from error
    return found if isinstance(found, dict) else {"items": found}


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdecimal() else None


def _reason(text: str) -> str:
    """The detail of an RFC 9457 error response, or the text itself."""
    try:
        found = json.loads(text)
        return "; ".join([str(found["detail"]), *map(str, found.get("errors", []))])
    except (ValueError, KeyError, TypeError, AttributeError):
        return text[:500]
