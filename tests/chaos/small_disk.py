"""A service over a directory whose disk fills up while it works, and is emptied later. The last line is JSON.

Run by its test in a mount namespace of its own, with FOLDER on a file system of a few MiB: `python -m
tests.chaos.small_disk FOLDER LOGS`. A full disk stops everything and fails nothing.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.chaos.clients import BATCHES, Asker
from tests.chaos.fleet import Fleet

NUM_REQUESTS = 600
FULL_S = 4.0
VARIABLES = {
    "BATCHFILE_ECHO_SLOTS": "8",
    "BATCHFILE_ECHO_LATENCY_S": "0.1",
    "BATCHFILE_LIMITS__LEASE_TTL_S": "6",
}


def fill(folder: Path) -> None:
    """Until there is no room for a byte."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 2**16)
        except OSError:
            return


def main() -> int:
    folder, logs = Path(sys.argv[1]), Path(sys.argv[2])
    fleet = Fleet(logs, dict.fromkeys(("api-a", "runner-a"), str(folder / "store")), VARIABLES)
    asker = Asker(list(fleet.ports.values()))

    def create(key: str) -> str:
        batch_id: str = asker.ask("POST", BATCHES, **order(key)).json()["id"]
        return batch_id

    try:
        for name in fleet.names:
            fleet.start(name)
        batch_id = create("one")
        while pending(asker, batch_id) == NUM_REQUESTS:
            time.sleep(0.1)
        fill(folder)
        refused = asker.once("POST", BATCHES, **order("two"))
        time.sleep(FULL_S)
        while_full = pending(asker, batch_id)
        codes = [fleet.code(name) for name in fleet.names]
        (folder / "filler").unlink()
        again = create("two")
        statuses = []
        for one in (batch_id, again):
            while pending(asker, one):
                time.sleep(0.2)
            results = asker.ask("GET", f"{BATCHES}/{one}/results").json()["results"]
            statuses.append(sorted({row["status"] for row in results} | {str(len(results))}))
    finally:
        fleet.close()
    print(json.dumps({"refused": refused, "while_full": while_full, "ended": codes, "results": statuses}))
    return 0


def order(key: str) -> dict[str, Any]:
    params = {"messages": [{"role": "user", "content": "Lead"}], "max_tokens": 8}
    rows = [json.dumps({"custom_id": f"r{number}", "params": params}) for number in range(NUM_REQUESTS)]
    headers = {"content-type": "application/x-ndjson", "idempotency-key": key}
    return {"params": {"stage": "email"}, "content": "\n".join(rows).encode(), "headers": headers}


def pending(asker: Asker, batch_id: str) -> int:
    """What is not there yet, the end of the batch included."""
    status = asker.ask("GET", f"{BATCHES}/{batch_id}").json()
    return int(status["counts"]["pending"]) or int(status["processing_status"] != "ended")


if __name__ == "__main__":
    sys.exit(main())
