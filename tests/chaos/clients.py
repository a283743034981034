"""Callers that do what docs/service.md tells them: send a key, repeat what got no answer, ask the other replica."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import httpx

BATCHES = "/v1/messages/batches"
ANSWER_S_MAX = 20.0
BATCH_S_MAX = 1200.0  # a machine that does much else is slow, and that is no fault
AGAIN = {408, 409, 429}


@dataclass
class Sent:
    """One batch as its caller knows it. `digest`: of its results, read at once after it ended."""

    number: int
    texts: dict[str, str]  # by custom_id
    is_cancelled: bool
    batch_id: str = ""
    digest: str = ""
    seconds: float = 0.0
    num_done: int = 0  # as last seen
    problems: list[str] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(map(_line, self.texts.items()))


def _line(item: tuple[str, str]) -> bytes:
    params = {"messages": [{"role": "user", "content": item[1]}], "max_tokens": 30}
    return json.dumps({"custom_id": item[0], "params": params}).encode() + b"\n"


SIZES = (1, 40, 300, 500, 500, 700, 1200)


def plan(num_batches: int, seed: int, sizes: tuple[int, ...] = SIZES) -> list[Sent]:
    random = Random(seed)
    found = []
    for number in range(num_batches):
        size = random.choice(sizes)
        texts = {f"b{number}-{row}": f"Lead {row} of {number}" for row in range(size)}
        found.append(Sent(number=number, texts=texts, is_cancelled=random.random() < 0.12))
    return found


class Asker:
    """Asks whichever replica answers, until one does. `statuses` counts all that are seen; askers may share it."""

    def __init__(self, ports: list[int], statuses: Counter[int] | None = None) -> None:
        self.statuses: Counter[int] = Counter() if statuses is None else statuses
        self._ports = ports
        self._turn = 0
        self._http = httpx.Client(timeout=ANSWER_S_MAX, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def once(self, method: str, path: str, **more: object) -> int:
        """The status, whatever it is, of the first replica."""
        url = f"http://127.0.0.1:{self._ports[0]}{path}"
        return self._http.request(method, url, **more).status_code  # type: ignore[arg-type]

    def ask(self, method: str, path: str, *, wait_s: float = BATCH_S_MAX, **more: object) -> httpx.Response:
        """Raises: TimeoutError."""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            self._turn += 1
            url = f"http://127.0.0.1:{self._ports[self._turn % len(self._ports)]}{path}"
            try:
                answer = self._http.request(method, url, **more)  # type: ignore[arg-type]
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code < 500 and answer.status_code not in AGAIN:
                return answer
            time.sleep(0.3)
        raise TimeoutError(f"no answer to {method} {path} within {wait_s:.0f} s")


class Caller(threading.Thread):
    """Takes the next batch when it is due: creates it, waits for its end, reads it."""

    def __init__(self, todo: Iterator[Sent], due_s: float, started_at: float, asker: Asker, key: str) -> None:
        """`todo` is shared with other callers. `key` begins every idempotency key."""
        super().__init__(daemon=True)
        self._todo = todo
        self._due_s = due_s
        self._started_at = started_at
        self._asker = asker
        self._key = key

    def run(self) -> None:
        for sent in self._todo:
            time.sleep(max(0.0, self._started_at + sent.number * self._due_s - time.monotonic()))
            began = time.monotonic()
            try:
                self._one(self._asker, sent)
            except (TimeoutError, AssertionError, KeyError, ValueError) as error:
                sent.problems.append(f"batch {sent.number} ({sent.batch_id}): {error!r}")
            sent.seconds = time.monotonic() - began

    def _one(self, asker: Asker, sent: Sent) -> None:
        sent.batch_id = self._create(asker, sent)
        if sent.number % 3 == 0:
            again = self._create(asker, sent)
            assert again == sent.batch_id, f"the same key made {again} too"
        deadline = time.monotonic() + BATCH_S_MAX
        is_asked = False
        while True:
            status = asker.ask("GET", f"{BATCHES}/{sent.batch_id}").json()
            sent.num_done = len(sent.texts) - status["counts"]["pending"]
            if status["processing_status"] == "ended":
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ended after {BATCH_S_MAX:.0f} s: {status}")
            if sent.is_cancelled and not is_asked and status["counts"]["pending"] < len(sent.texts):
                is_asked = asker.ask("POST", f"/api/batches/{sent.batch_id}/cancel").status_code == 200
            time.sleep(0.5)
        sent.digest = digest(asker.ask("GET", f"/api/batches/{sent.batch_id}/results").content)

    def _create(self, asker: Asker, sent: Sent) -> str:
        headers = {"content-type": "application/x-ndjson", "idempotency-key": f"{self._key}-{sent.number}"}
        answer = asker.ask("POST", BATCHES, params={"stage": "email"}, content=sent.body, headers=headers)
        assert answer.status_code == 200, answer.text
        batch_id: str = answer.json()["id"]
        return batch_id


def digest(results: bytes) -> str:
    return hashlib.sha256(results).hexdigest()
