"""A running service as its clients see it: the few calls that the smoke test and the load test share."""

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx

BATCHES = "/v1/messages/batches"
STATES = ["collected", "submitted", "processing", "ended"]
RESULT_KEYS = ["custom_id", "status", "message", "usage", "error"]
HTTP_S_MAX = 60.0
LOOK_S = 0.25
PAGE = 1000

Json = dict[str, Any]


class Failed(Exception):
    """Something is not as it must be; the message says what was found."""


def require(is_so: object, expected: str, found: object) -> None:
    """Raises: Failed where it is not so."""
    if not is_so:
        raise Failed(f"expected {expected}, found {str(found)[:500]}")


class Deployment:
    """`wait_s`: how long one batch may take."""

    def __init__(self, url: str, api_key: str | None, wait_s: float) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=HTTP_S_MAX)
        self._wait_s = wait_s

    def get(self, path: str, **query: str | int) -> Any:
        """Raises: Failed where the answer is no 200."""
        answer = self.http.get(path, params=query)
        require(answer.status_code == 200, f"200 from GET {path}", f"{answer.status_code} {answer.text}")
        return answer.json()

    def submit(self, stage: str, requests: list[Json], **headers: str) -> str:
        answer = self.http.post(BATCHES, json={"stage": stage, "requests": requests}, headers=headers)
        require(answer.status_code == 200, f"200 from POST {BATCHES}", f"{answer.status_code} {answer.text}")
        require(list(answer.json()) == ["id"], "an id alone", answer.text)
        return str(answer.json()["id"])

    def until_ended(self, batch_id: str) -> Iterator[Json]:
        """Each status that is seen, the last one `ended`. A service that is away for a moment is waited for."""
        deadline = time.monotonic() + self._wait_s
        while True:
            answer = None
            try:
                answer = self.http.get(f"{BATCHES}/{batch_id}")
            except httpx.TransportError as error:
                found = str(error)
            if answer is not None and answer.status_code == 200:
                status = answer.json()
                yield status
                if status["processing_status"] == "ended":
                    return
                found = f"{status['processing_status']} {status['counts']}"
            elif answer is not None:
                found = f"{answer.status_code} {answer.text}"
                require(answer.status_code in {429, 503}, f"a status of {batch_id}", found)
            require(time.monotonic() < deadline, f"{batch_id} to end in {self._wait_s:.0f} s", found)
            time.sleep(LOOK_S)

    def results(self, batch_id: str) -> list[Json]:
        """In the stage contract."""
        document = self.get(f"{BATCHES}/{batch_id}/results")
        require(list(document) == ["results"], "results alone", list(document))
        found: list[Json] = document["results"]
        return found

    def live_runners(self) -> list[Json]:
        found: list[Json] = self.get("/api/runners")
        return found


def text_of(message: Json) -> str:
    """What a message of the stage contract says; a pool that thinks says its thoughts before. Raises: Failed."""
    *thoughts, last = message["content"]
    require(list(last) == ["type", "text"] and last["type"] == "text", "type and text", last)
    require(all(block["type"] == "thinking" for block in thoughts), "nothing but thoughts before the text", thoughts)
    return str(last["text"])


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that say which deployment."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    url, api_key = os.environ.get("LOCAL_BATCH_URL"), os.environ.get("LOCAL_BATCH_API_KEY")
    found.add_argument("--url", default=url or "http://127.0.0.1:8000", help="of the API (LOCAL_BATCH_URL, port 8000)")
    found.add_argument("--api-key", default=api_key, help="if it wants one (LOCAL_BATCH_API_KEY)")
    found.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="for each batch (%(default).0f)")
    return found
