"""What must hold after a run: read through every replica and from the file of executions, in calm."""

import json
from collections import Counter
from pathlib import Path

from tests.chaos.clients import BATCHES, Asker, Sent, digest
from tests.chaos.servers import BUCKET, PREFIX, Server

CALM_S_MAX = 60.0


def check_batch(asker: Asker, sent: Sent, outcomes: Counter[str], *, is_echo: bool = True) -> list[str]:
    """One result for each request, in order, the same bytes from everyone as at its end; the counts agree.

    With `is_echo` each answer is known by its request's text; a model's are not.
    """
    if not sent.digest:
        return sent.problems or [f"batch {sent.number}: its caller did not come to the end"]
    problems = list(sent.problems)
    status = asker.ask("GET", f"{BATCHES}/{sent.batch_id}", wait_s=CALM_S_MAX).json()
    answer = asker.ask("GET", f"/api/batches/{sent.batch_id}/results", wait_s=CALM_S_MAX)
    if digest(answer.content) != sent.digest:
        problems.append(f"batch {sent.number}: its results changed after its end")
    results = [json.loads(line) for line in answer.content.splitlines()]
    if [result["custom_id"] for result in results] != list(sent.texts):
        problems.append(f"batch {sent.number}: {len(results)} results for {len(sent.texts)} requests, or another order")
        return problems
    shown = asker.ask("GET", f"{BATCHES}/{sent.batch_id}/results", wait_s=CALM_S_MAX).json()["results"]
    if [result["custom_id"] for result in shown] != list(sent.texts):
        problems.append(f"batch {sent.number}: the stage contract shows other results")
    for result in results:
        outcome = result["status"] if result["error"] is None else result["error"]["type"]
        outcomes[outcome] += 1
        if (
            is_echo
            and outcome == "succeeded"
            and result["message"]["content"][0]["text"] != sent.texts[result["custom_id"]]
        ):
            problems.append(f"batch {sent.number}: {result['custom_id']} has another request's answer")
        elif outcome != "succeeded" and not (sent.is_cancelled and outcome == "canceled"):
            problems.append(f"batch {sent.number}: {result['custom_id']} is {outcome}: {result['error']}")
    num_ok = sum(result["status"] == "succeeded" for result in results)
    wanted = {"total": len(results), "succeeded": num_ok, "errored": len(results) - num_ok, "pending": 0}
    if status["counts"] != wanted:
        problems.append(f"batch {sent.number}: counts {status['counts']}, but its results say {wanted}")
    return problems


def check_all_known(asker: Asker, batches: list[Sent]) -> list[str]:
    """No batch is there that nobody asked for: a key made one, however often it was sent."""
    listed: list[str] = []
    page = {"has_more": True}
    while page["has_more"]:
        params = {"limit": "100"} | ({"after": listed[-1]} if listed else {})
        page = asker.ask("GET", "/api/batches", params=params, wait_s=CALM_S_MAX).json()
        listed += [batch["id"] for batch in page["data"]]
    known = {sent.batch_id for sent in batches}
    problems = [f"batch {batch_id} is there and nobody's" for batch_id in listed if batch_id not in known]
    problems += [f"batch {batch_id} is not listed" for batch_id in known - set(listed)]
    return problems


def left_to_sweep(server: Server, batches: list[Sent]) -> int:
    """Creates that died before their commit: objects of no batch. The janitor removes them after an hour."""
    client = server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{PREFIX}/batches/")
    found = {item["Key"].split("/")[2] for page in pages for item in page.get("Contents", ())}
    client.close()
    return len(found - {sent.batch_id for sent in batches})


def executions(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines()) if path.is_file() else Counter()


def severe(lines: list[str]) -> Counter[str]:
    """Events that the processes themselves call errors, and how whatever they wrote that is no event begins."""
    found: Counter[str] = Counter()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            found["text: " + line.partition(":")[0][:40]] += 1
            continue
        if event.get("level") in {"error", "critical"} or event.get("event") == "lease.lost":
            found[str(event["event"])] += 1
    return found
