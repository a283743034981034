"""Two API replicas and three runners over an S3 server, each killed in turn while a batch of 5,000 requests runs."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.clients import BATCHES, Asker
from tests.chaos.fleet import Fleet
from tests.chaos.servers import BUCKET, PREFIX, Server

NUM_REQUESTS = 5_000
WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
NAMES = ("api-a", "api-b", "runner-a", "runner-b", "runner-c")
# A runner has 16 slots and a request takes up to 0.6 s: half a minute and more for three runners.
ECHO = {"BATCHFILE_ECHO_SLOTS": "16", "BATCHFILE_ECHO_SECONDS_PER_TOKEN": "0.02"}
TIMES = {"BATCHFILE_LIMITS__LEASE_TTL_S": "6", "BATCHFILE_LIMITS__CHECKPOINT_S": "1"}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    server = Server("ministack", tmp_path)
    store = f"s3://{BUCKET}/{PREFIX}?endpoint={server.url}&region=us-east-1"
    found = Fleet(tmp_path, dict.fromkeys(NAMES, store), {**ECHO, **TIMES})
    try:
        server.start()
        server.wait()
        server.make_bucket()
        yield found
    finally:
        found.close()
        server.kill()


def requests() -> Iterator[bytes]:
    for number in range(NUM_REQUESTS):
        params = {"messages": [{"role": "user", "content": f"Lead {number}"}], "max_tokens": 30}
        yield json.dumps({"custom_id": f"lead_{number}_email", "params": params}).encode() + b"\n"


@pytest.mark.long
def test_every_process_may_be_killed_and_the_batch_ends_with_one_result_each(fleet: Fleet) -> None:
    for name in NAMES:
        fleet.start(name)
    with closing(Asker(list(fleet.ports.values()))) as client:
        submit_kill_and_check(fleet, client)


def submit_kill_and_check(fleet: Fleet, client: Asker) -> None:
    created = client.ask(
        "POST",
        BATCHES,
        params={"stage": "email"},
        content=b"".join(requests()),
        headers={"content-type": "application/x-ndjson", "idempotency-key": "once"},
    )
    assert created.status_code == 200, created.text
    batch_id = created.json()["id"]
    killed_at: list[float] = []
    killer = threading.Thread(target=kill_in_turn, args=(fleet, killed_at))
    counts = [client.ask("GET", f"{BATCHES}/{batch_id}").json()]
    while counts[-1]["counts"]["pending"] == NUM_REQUESTS:
        time.sleep(0.2)
        counts.append(client.ask("GET", f"{BATCHES}/{batch_id}").json())
    killer.start()
    deadline = time.monotonic() + WAIT_S
    while counts[-1]["processing_status"] != "ended":
        assert time.monotonic() < deadline, counts[-1]
        time.sleep(0.2)
        counts.append(client.ask("GET", f"{BATCHES}/{batch_id}").json())
    killer.join()
    assert client.ask("GET", f"/api/batches/{batch_id}").json()["ended_at"] > killed_at[-1], "it ended too early"

    results = client.ask("GET", f"{BATCHES}/{batch_id}/results").json()["results"]
    assert [result["custom_id"] for result in results] == [f"lead_{number}_email" for number in range(NUM_REQUESTS)]
    assert {result["status"] for result in results} == {"succeeded"}
    assert counts[-1]["counts"] == {"total": NUM_REQUESTS, "succeeded": NUM_REQUESTS, "errored": 0, "pending": 0}
    assert not [status for status in client.statuses if status >= 500]
    order = ["collected", "submitted", "processing", "ended"]
    stages = [order.index(item["processing_status"]) for item in counts]
    assert stages == sorted(stages)


def kill_in_turn(fleet: Fleet, killed_at: list[float]) -> None:
    """Each once, two seconds apart; each comes back before the next one goes."""
    for name in ("runner-a", "api-a", "runner-b", "api-b", "runner-c"):
        fleet.kill(name)
        killed_at.append(time.time())
        time.sleep(2)
        fleet.start(name)
