"""What images by URL cost: memory above that of text, an engine that stays full, and servers that misbehave.

A local server answers after 200 ms with images of 200 kB; `batchfile run --engine echo` decodes them in its own
process. Run: `python tests/bench/media.py` (10,000 images; `--images` for fewer).
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.media_kit import MediaServer, media_server

DELAY_S = 0.2
SLOTS, LATENCY_S = 16, 0.25
SAME = 1_000
FAULTS = ("hang", "short", "inside", "bomb")
ABOVE_TEXT_MIB_MAX = 64.0
FULL_MIN = 0.99


@dataclass(frozen=True)
class Run:
    """One process: seconds of the wall and of CPU, MiB at the peak, the share of full steps, its results."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    full: float
    results: list[dict[str, object]]


def picture() -> bytes:
    """A JPEG of about 200 kB."""
    made = io.BytesIO()
    Image.effect_noise((680, 510), 60).convert("RGB").save(made, "JPEG", quality=88)
    return made.getvalue()


def line(number: int, url: str | None) -> str:
    parts: list[dict[str, object]] = [{"type": "text", "text": "What is it?"}]
    if url is not None:
        parts.append({"type": "image_url", "image_url": {"url": url}})
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 16}
    return json.dumps({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def measure(folder: Path, name: str, urls: list[str | None]) -> Run:
    source, output, log = (folder / f"{name}.{end}" for end in ("jsonl", "out.jsonl", "log"))
    source.write_text("\n".join(line(number, url) for number, url in enumerate(urls)) + "\n")
    command = [sys.executable, "-m", "batchfile", "run", str(source), "-o", str(output), "--engine", "echo", "-v"]
    echo = {"BATCHFILE_ECHO_SLOTS": str(SLOTS), "BATCHFILE_ECHO_LATENCY_S": str(LATENCY_S)}
    started_at = time.monotonic()
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=os.environ | echo)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    steps = re.search(r"runner\.ended.*full_steps=(\d+).* steps=(\d+)", log.read_text())
    assert steps is not None, log.read_text()[-2000:]
    return Run(
        wall_s=time.monotonic() - started_at,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
        full=int(steps[1]) / max(1, int(steps[2])),
        results=[json.loads(row) for row in output.read_text().splitlines()],
    )


def num_succeeded(run: Run) -> int:
    return sum(result["error"] is None and result["response"]["status_code"] == 200 for result in run.results)  # type: ignore[index]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    num = parser.parse_args().images
    data = picture()
    objects = {f"/{number}.jpg": data for number in range(num)}
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as place, media_server(objects, DELAY_S) as server:
        folder = Path(place)
        text = measure(folder, "text", [None] * num)
        images = measure(folder, "images", [f"{server.url}/{number}.jpg" for number in range(num)])
        assert num_succeeded(images) == num, images.results[:3]
        assert server.asked.total() == num
        same = measure(folder, "same", [f"{server.url}/0.jpg"] * SAME)
        num_same = server.asked["/0.jpg"] - 1
        faulty = measure_faults(folder, server)
    print(f"{'':>8} {'wall s':>7} {'CPU s':>6} {'peak MiB':>8} {'full steps':>10}")
    for name, run in (("text", text), ("images", images), ("same", same)):
        print(f"{name:>8} {run.wall_s:>7.1f} {run.cpu_s:>6.1f} {run.peak_mib:>8.1f} {run.full:>10.2%}")
    above = images.peak_mib - text.peak_mib
    print(f"{SAME:,} requests with one image fetched it {num_same} times; {len(FAULTS)} faults: {faulty} failed lines")
    row = {
        "bench": "media",
        "images": num,
        "image_bytes": len(data),
        "above_text_mib": round(above, 1),
        "full_steps": round(images.full, 4),
        "images_per_s": round(num / images.wall_s, 1),
        "cpu_ms_each": round((images.cpu_s - text.cpu_s) / num * 1000, 2),
        "fetches_of_same": num_same,
        "faulty_failed": faulty,
    }
    print(json.dumps(row))
    is_right = above <= ABOVE_TEXT_MIB_MAX and num_same == 1 and faulty == len(FAULTS)
    # The start and the end are most of a small run: only the full size is judged by its steps.
    return 0 if is_right and (images.full >= FULL_MIN or num < 5_000) else 1


def measure_faults(folder: Path, server: MediaServer) -> int:
    """How many lines fail, of those with the faults among as many good ones."""
    urls: list[str | None] = []
    for fault in FAULTS:
        urls += [f"{server.url}/fault/{fault}", f"{server.url}/1.jpg"]
    run = measure(folder, "faults", urls)
    for result in run.results[::2]:
        print(f"  {result['response']['body']['error']['message']}")  # type: ignore[index]
    assert num_succeeded(run) == len(FAULTS), "a good line failed"
    return len(run.results) - num_succeeded(run)


if __name__ == "__main__":
    sys.exit(main())
