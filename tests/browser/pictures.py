"""Makes the pictures of docs/dashboard.md from a real service with echo runners:

.venv/bin/python -m tests.browser.pictures [FOLDER]
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from . import chromium

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1180, 720
PNG_BYTES_MAX = 80_000
COLORS = 256


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    with ExitStack() as stack, tempfile.TemporaryDirectory() as store:
        port = _start(stack, store)
        service = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        _until(lambda: service.get("/ready").status_code == 200)
        running = _fill(service)
        with chromium.opened() as browser:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            for name, place, ready in (
                ("batches", "#/", "tbody tr .badge.blue"),
                ("batch", f"#/batch/{running}", ".strip .leased"),
                ("pools", "#/pools", ".runners tbody .badge.blue"),
            ):
                page.goto(f"{service.base_url}/{place}".replace("//#", "/#"))
                page.locator(ready).first.wait_for()
                page.wait_for_timeout(9000)  # until rates are measured
                target = folder / f"dashboard-{name}.png"
                image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                image.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)
                assert target.stat().st_size < PNG_BYTES_MAX, f"{target.name} has {target.stat().st_size:,} bytes"


def _start(stack: ExitStack, store: str) -> int:
    """The API and two runners; returns the port."""
    port = 18_765
    slow = {"BATCHFILE_ECHO_LATENCY_S": "0.6", "BATCHFILE_ECHO_SLOTS": "32", "BATCHFILE_LIMITS__CHECKPOINT_S": "2"}
    environ = {**os.environ, **slow, "PYTHONPATH": str(ROOT), "BATCHFILE_STORE": store}
    runner = ["runners", "--pool", "mistral", "--engine", "echo", "--metrics-port", "0"]
    for program in (["api", "--port", str(port)], runner, runner):
        command = [sys.executable, "-m", *program]
        process = subprocess.Popen(
            command, cwd=store, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
    return port


def _fill(service: httpx.Client) -> str:
    """Batches in several states; returns one that runs for a while."""
    lines = [json.loads(line) for line in (ROOT / "examples" / "leads.jsonl").read_text().splitlines()]

    def submit(num: int, stage: str, file: str, *, num_bad: int = 0, **query: str) -> str:
        rows = []
        for n in range(num):
            params = lines[n % len(lines)]["params"] | ({"max_tokens": -1} if n % 37 < num_bad else {})
            rows.append(json.dumps({"custom_id": f"lead_{n:05d}", "params": params}))
        query = {"stage": stage, "metadata": f"file={file}", "strict": "false", **query}
        answer = service.post(
            "/api/batches", params=query, content="\n".join(rows), headers={"content-type": "application/x-ndjson"}
        )
        return str(answer.raise_for_status().json()["id"])

    def ended(batch_id: str) -> bool:
        return bool(service.get(f"/api/batches/{batch_id}").json()["state"] == "ended")

    done = [submit(120, "email", "leads-monday.jsonl"), submit(96, "subject", "subjects.jsonl", num_bad=3)]
    canceled = submit(60, "email", "leads-old.jsonl")
    service.post(f"/api/batches/{canceled}/cancel")
    _until(lambda: all(map(ended, done)))
    submit(240, "sales_intel", "accounts-q4.jsonl", priority="3")
    running = submit(9_000, "email", "leads-autumn.jsonl", num_bad=1)
    submit(1_500, "email", "leads-newsletter.jsonl", priority="7")
    return running


def _until(is_so: Any) -> None:
    for _ in range(600):
        try:
            if is_so():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the service did not get there within 2 minutes")


if __name__ == "__main__":
    main()
