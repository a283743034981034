"""Does a deployment do what it must? A dozen checks with a few small batches, against any URL:

    python tests/smoke_test.py --url https://batch.example.com --api-key KEY

Prints a line for each check. Exit status 0: all is well; 1: a check failed. Deletes the batches that it made.
"""

import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
from deployment import BATCHES, PAGE, RESULT_KEYS, STATES, Deployment, Failed, Json, parser, require, text_of

REQUESTS = 4  # of a small batch
REQUESTS_CANCELED = 400
COUNTS = ["total", "succeeded", "errored", "pending"]
STATUS_KEYS = ["id", "processing_status", "counts", "created_at", "updated_at"]
NO_BATCH = "batch_000000000000"


class Smoke:
    """The checks, in order; later ones look at what earlier ones made. Each returns what it saw, in a few words."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._nonce = secrets.token_hex(3)
        self._pools: list[Json] = []
        self._stages: list[str] = []
        self._sent: dict[str, list[Json]] = {}  # by name: a stage, or what the batch is for
        self._ids: dict[str, str] = {}

    def checks(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("it is healthy", self.health),
            ("it is ready", self.ready),
            ("its pools and runners are known", self.fleet),
            ("a batch of each stage is taken", self.submit),
            ("results before the end are 400", self.early),
            ("a repeated create with its key is one batch", self.idempotency),
            ("a batch that does not exist is 404", self.unknown),
            ("a wrong batch is refused, and the place named", self.refused),
            ("status goes through its order, counts only grow", self.order),
            ("results come in order, each custom_id, exactly the keys", self.results),
            ("a request with wrong params is errored, the rest runs", self.bad_params),
            ("model_hint chooses the pool, the order stays", self.hints),
            ("a canceled batch ends with one result for each request", self.cancel),
            ("the list has all of them, newest first", self.listed),
            ("a deleted batch is gone", self.delete),
        ]

    def health(self) -> str:
        found = self._deployment.get("/healthz")
        require(list(found) == ["status", "storage", "pools", "timestamp"], "the four keys of a health", list(found))
        require(found["status"] == "healthy" and found["storage"] is True, "a healthy service", found)
        return ", ".join(f"{name} {pool['status']}" for name, pool in found["pools"].items())

    def ready(self) -> str:
        found = self._deployment.get("/ready")
        require(found == {"ready": True}, "ready", found)
        return ""

    def fleet(self) -> str:
        self._pools = self._deployment.get("/api/pools")
        self._stages = [stage for pool in self._pools for stage in pool["stages"]]
        require(self._stages, "a pool with a stage", self._pools)
        runners = self._deployment.live_runners()
        return ", ".join(f"{runner['pool']} runs {runner['model']} ({runner['state']})" for runner in runners) or "none"

    def submit(self) -> str:
        """Everything at once, so that all of it takes as long as one batch."""
        stage = self._stages[0]
        for name in self._stages:
            self._sent[name] = [self._request(f"{number}_{name}") for number in range(REQUESTS)]
        bad = self._request("bad_params") | {"params": {"messages": [{"role": "user", "content": "Hi."}], "top_p": 7}}
        self._sent["bad"] = [self._request("before"), bad, self._request("after")]
        hints = [pool["name"] for pool in self._pools] * REQUESTS
        self._sent["hints"] = [
            self._request(f"{number}_hinted") | {"metadata": {"model_hint": hint, "leadId": "x"}}
            for number, hint in enumerate(hints)
        ]
        for name, requests in self._sent.items():
            key = {"idempotency-key": f"smoke-{self._nonce}-{name}"}
            self._ids[name] = self._deployment.submit(name if name in self._stages else stage, requests, **key)
            require(re.fullmatch("batch_[0-9a-f]{12}", self._ids[name]), "batch_ and 12 hex digits", self._ids[name])
        return ", ".join(self._stages)

    def early(self) -> str:
        """A fast pool may have ended one before it is asked for; the last one made is the likeliest to run."""
        batch_id = self._ids["hints"]
        answer = self._deployment.http.get(f"{BATCHES}/{batch_id}/results")
        if answer.status_code == 200:
            status = self._deployment.get(f"{BATCHES}/{batch_id}")
            require(status["processing_status"] == "ended", "results only of what has ended", status)
            return "it had ended already"
        self._is_refusal(answer, 400, "Batch not yet complete")
        return ""

    def idempotency(self) -> str:
        name = self._stages[0]
        key = {"idempotency-key": f"smoke-{self._nonce}-{name}"}
        again = self._deployment.submit(name, self._sent[name], **key)
        require(again == self._ids[name], self._ids[name], again)
        other = {"stage": name, "requests": self._sent[name][:1]}
        answer = self._deployment.http.post(BATCHES, json=other, headers=key)
        require(answer.status_code == 422, "422 for another body", f"{answer.status_code} {answer.text}")
        return "another body is 422"

    def unknown(self) -> str:
        for path in (f"{BATCHES}/{NO_BATCH}", f"{BATCHES}/{NO_BATCH}/results"):
            self._is_refusal(self._deployment.http.get(path), 404, "Batch not found")
        return ""

    def refused(self) -> str:
        requests = [self._request("a"), self._request("b") | {"custom_id": ""}]
        answer = self._deployment.http.post(BATCHES, json={"stage": self._stages[0], "requests": requests})
        self._is_refusal(answer, 400, "requests[1].custom_id")
        answer = self._deployment.http.post(BATCHES, json={"stage": "no-such-stage", "requests": requests[:1]})
        self._is_refusal(answer, 400, "no-such-stage")
        return ""

    def order(self) -> str:
        seen: set[str] = set()
        for name, batch_id in self._ids.items():
            before: Json = {}
            for status in self._deployment.until_ended(batch_id):
                self._is_next(before, status, len(self._sent[name]))
                before = status
                seen.add(status["processing_status"])
        return "saw " + ", ".join(state for state in STATES if state in seen)

    def results(self) -> str:
        num_tokens = 0
        for name in self._stages:
            results = self._results(name)
            for result in results:
                require(result["status"] == "succeeded", "every request to succeed", result)
                tokens = result["usage"]["output_tokens"]  # null where an endpoint does not tell it
                require(tokens is None or tokens > 0, "tokens", result["usage"])
                num_tokens += tokens or 0
        return f"{len(self._stages) * REQUESTS} requests, {num_tokens} tokens written"

    def bad_params(self) -> str:
        before, bad, after = self._results("bad")
        require({before["status"], after["status"]} == {"succeeded"}, "the rest to succeed", (before, after))
        require(bad["status"] == "errored", "an errored result", bad)
        require("top_p" in bad["error"]["message"], "the place in its error", bad["error"])
        return str(bad["error"]["message"])[:80]

    def hints(self) -> str:
        self._results("hints")
        answer = self._deployment.http.get(f"/api/batches/{self._ids['hints']}/results")
        lines = [json.loads(line) for line in answer.content.splitlines()]
        models: dict[str, set[str]] = {}  # of the pools whose runners are still there to be asked
        for runner in self._deployment.live_runners():
            models.setdefault(runner["pool"], set()).add(runner["model"])
        for sent, line in zip(self._sent["hints"], lines, strict=True):
            require(line["custom_id"] == sent["custom_id"], sent["custom_id"], line["custom_id"])
            expected = models.get(sent["metadata"]["model_hint"])
            require(expected is None or line["model"] in expected, f"a model of {expected}", line)
        return f"{len(lines)} requests, {len(self._pools)} pools"

    def cancel(self) -> str:
        name = "canceled"
        self._sent[name] = [self._request(f"{number}_canceled") for number in range(REQUESTS_CANCELED)]
        batch_id = self._ids[name] = self._deployment.submit(self._stages[-1], self._sent[name])
        answer = self._deployment.http.post(f"/api/batches/{batch_id}/cancel")
        require(answer.status_code == 200, "200", f"{answer.status_code} {answer.text}")
        *_, last = self._deployment.until_ended(batch_id)
        require(last["counts"]["pending"] == 0, "nothing pending", last)
        results = self._results(name)
        for result in results:
            is_right = result["status"] == "succeeded" or result["error"]["type"] == "canceled"
            require(is_right, "succeeded or canceled", result)
        return f"{last['counts']['errored']} of {len(results)} were canceled"

    def listed(self) -> str:
        batches = self._deployment.get("/api/batches", limit=PAGE)["data"]
        missing = set(self._ids.values()) - {batch["id"] for batch in batches}
        require(not missing, "every batch of this test", f"none of {missing}")
        times = [batch["created_at"] for batch in batches]
        require(times == sorted(times, reverse=True), "the newest first", times)
        return f"{len(batches)} batches"

    def delete(self) -> str:
        for batch_id in self._ids.values():
            answer = self._deployment.http.delete(f"/api/batches/{batch_id}")
            require(answer.status_code == 200, "200", f"{answer.status_code} {answer.text}")
            self._is_refusal(self._deployment.http.get(f"{BATCHES}/{batch_id}"), 404, "Batch not found")
        return f"{len(self._ids)} batches"

    def _request(self, name: str) -> Json:
        params = {
            "system": "You answer in one short sentence.",
            "messages": [{"role": "user", "content": "Say something kind about the sea."}],
            "max_tokens": 16,
        }
        return {"custom_id": f"lead_{self._nonce}_{name}", "params": params}

    def _results(self, name: str) -> list[Json]:
        """Of an ended batch, found to be in the contract's form, in the order of its requests."""
        results = self._deployment.results(self._ids[name])
        ids = [result["custom_id"] for result in results]
        expected = [request["custom_id"] for request in self._sent[name]]
        require(ids == expected, f"the {len(expected)} custom_ids of {name} in order", ids)
        for result in results:
            require(list(result) == RESULT_KEYS, f"the keys {RESULT_KEYS}", list(result))
            if result["status"] == "succeeded":
                require(list(result["message"]) == ["content"], "content alone", result["message"])
                text_of(result["message"])
                require(list(result["usage"]) == ["input_tokens", "output_tokens"], "two counts", result["usage"])
                require(result["error"] is None, "no error", result["error"])
            else:
                require(result["status"] == "errored", "succeeded or errored", result["status"])
                require(result["message"] is None and result["usage"] is None, "neither message nor usage", result)
                require(list(result["error"]) == ["type", "message"], "type and message", result["error"])
        return results

    @staticmethod
    def _is_next(before: Json, status: Json, total: int) -> None:
        require(list(status) == STATUS_KEYS, f"the keys {STATUS_KEYS}", list(status))
        counts = status["counts"]
        require(list(counts) == COUNTS, f"the counts {COUNTS}", counts)
        require(counts["total"] == total == sum(counts.values()) - total, f"{total} requests", counts)
        state = STATES.index(status["processing_status"])
        datetime.strptime(status["updated_at"], "%Y-%m-%dT%H:%M:%S%z")
        if before:
            require(state >= STATES.index(before["processing_status"]), f"no step back from {before}", status)
            require(counts["pending"] <= before["counts"]["pending"], f"no step back from {before}", status)
            require(status["updated_at"] >= before["updated_at"], f"no step back from {before}", status)
            require(status["created_at"] == before["created_at"], "one created_at", status)

    @staticmethod
    def _is_refusal(answer: httpx.Response, status: int, words: str) -> None:
        found = f"{answer.status_code} {answer.text}"
        require(answer.status_code == status, f"{status} with {words!r}", found)
        detail: Any = answer.json()
        require(list(detail) == ["detail"] and words in detail["detail"], f"a detail with {words!r}", found)


def main() -> int:
    args = parser(__doc__).parse_args()
    smoke = Smoke(Deployment(args.url, args.api_key, args.timeout))
    num_failed = 0
    for name, check in smoke.checks():
        started = time.monotonic()
        try:
            note, is_well = check(), True
        except (Failed, httpx.HTTPError, LookupError, ValueError, TypeError) as error:
            note, is_well = f"{type(error).__name__}: {error}", False
        num_failed += not is_well
        seconds = time.monotonic() - started
        print(f"{'ok  ' if is_well else 'FAIL'}  {name}{': ' if note else ''}{note} ({seconds:.1f} s)", flush=True)
        if not is_well and check in {smoke.health, smoke.fleet}:
            print(f"Nothing more can be checked: is {args.url} the API, and the key one that it knows?")
            return 1
    print(f"{args.url}: {'every check is well' if not num_failed else f'{num_failed} checks failed'}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
