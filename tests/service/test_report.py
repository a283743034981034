"""`batchfile report`: one file that loads nothing, shows hostile text as text, and agrees with the status."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import batchfile
from batchfile.errors import NotEnded, SettingsError
from batchfile.testing import EchoEngine
from tests import warm

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202eevil\u202c </script>&amp; " + "A" * 100_000


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: dict[str, list[str]] = {}
        self.inside: list[tuple[str, str]] = []  # script and style elements
        self.text = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._open = tag
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in {"script", "style"}:
            self.inside.append((self._open, data))
        else:
            self.text += data


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    return warm.run("batchfile", arguments, cwd=folder, env=kept)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a run of 40 requests, two of which are rejected and one of which has hostile texts."""
    with (tmp_path / "in.jsonl").open("w") as file:
        for n in range(40):
            messages = [{"role": "user", "content": HOSTILE if n == 7 else f"Question {n}"}] if n % 20 else []
            custom_id = "<b>\u202eid</b>" if n == 7 else f"r{n}"
            params = {"messages": messages, "max_tokens": 100_000}
            file.write(json.dumps({"custom_id": custom_id, "params": params}) + "\n")
    done = run(tmp_path, "run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo", "--max-model-len", "400000")
    assert done.returncode == 3
    return tmp_path


def page_of(folder: Path, *arguments: str) -> Page:
    done = run(folder, "report", "out.jsonl", "--force", *arguments)
    assert done.returncode == 3, done.stderr
    return Page((folder / "report.html").read_text())


def rows_of(page: Page) -> list[Any]:
    (rows,) = (text for tag, text in page.inside if tag == "script" and text.startswith("["))
    found: list[Any] = json.loads(rows)
    return found


def test_the_report_has_what_the_status_has(folder: Path) -> None:
    page = page_of(folder)
    for text in ("38 of 40 requests", "2 did not succeed", "38 succeeded", "2 rejected", "params.messages: must"):
        assert text in page.text
    assert "Fix the request as the message says" in page.text
    assert page.tags["figure"] == 5, "requests and tokens over time, input and output tokens, and times"
    rows = rows_of(page)
    assert [row[0] for row in rows] == list(range(1, 41))
    assert [row[2] for row in rows].count("rejected") == 2
    assert page.attributes["value"] == ["", "succeeded", "rejected"], "what the rows can be filtered by"


def test_the_throughput_leaves_out_what_never_ran(folder: Path) -> None:
    with batchfile.connect(folder / ".batchfile") as client:
        (batch,) = client.batches()
        profile = client.batch(batch.id).status().profile
    assert profile is not None
    assert (sum(profile.requests), sum(profile.request_s)) == (38, 38)


def test_hostile_text_stays_text(folder: Path) -> None:
    page = page_of(folder)
    assert page.tags["script"] == 2
    assert not page.tags.keys() & {"img", "b", "link", "iframe", "object", "base"}
    (row,) = (row for row in rows_of(page) if row[0] == 8)
    assert row[1] == "<b>\u202eid</b>"
    assert (row[7], row[8]) == (HOSTILE[:2_000], len(HOSTILE) - 2_000)


def test_the_page_allows_its_own_script_and_style_alone_and_loads_nothing(folder: Path) -> None:
    page = page_of(folder)
    (policy,) = (text for text in page.attributes["content"] if "default-src" in text)
    assert policy.startswith("default-src 'none'; ")
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for tag, text in page.inside
        if not text.startswith("[")
    }
    assert set(re.findall(r"'sha256-[^']+'", policy)) == hashes
    assert "unsafe" not in policy
    assert not page.attributes.keys() & {"style", "src", "href", "onclick", "onload"}


def test_a_price_gives_the_cost_only_where_gpu_time_is_known(folder: Path) -> None:
    assert "Cost" not in page_of(folder, "--gpu-hour", "2").text


def test_a_report_that_exists_is_kept_and_only_html_is_written(folder: Path) -> None:
    (folder / "report.html").write_text("mine")
    assert run(folder, "report", "out.jsonl").returncode == 7
    assert (folder / "report.html").read_text() == "mine"
    before = (folder / "out.jsonl").read_bytes()
    done = run(folder, "report", "out.jsonl", "-o", "out.jsonl", "--force")
    assert (done.returncode, (folder / "out.jsonl").read_bytes()) == (2, before)
    assert b"a report is HTML; use a name ending in .html" in done.stderr


def test_a_batch_that_has_not_ended_has_no_report(tmp_path: Path) -> None:
    params = {"messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps({"custom_id": "a", "params": params}))
    with batchfile.connect(tmp_path / "store") as client:
        batch = client.submit(tmp_path / "in.jsonl", stage="email")
        with pytest.raises(NotEnded):
            batch.report(tmp_path / "report.html")
        batch.cancel()
        batch.report(tmp_path / "report.html")
        with pytest.raises(SettingsError, match=r"ending in \.html"):
            batch.report(tmp_path / "report.txt")
    page = Page((tmp_path / "report.html").read_text())
    assert "Ended early: canceled" in page.text
    assert "Nothing ran" in page.text
    assert "charts" not in page.attributes["class"]


def test_a_service_gives_the_profile_of_one_batch_and_leaves_it_out_of_lists(api: Any, tmp_path: Path) -> None:
    params = {"messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "in.jsonl").write_text(
        "\n".join(json.dumps({"custom_id": f"r{n}", "params": params}) for n in range(80))
    )
    with batchfile.connect(api.url) as client:
        batch = client.submit(tmp_path / "in.jsonl", pool="mistral")
        options = batchfile.RunnerOptions(runner_id="r", pool="mistral", only=batch.id)
        batchfile.Runner(batchfile.Ledger(store=batchfile.open_store(api.store)), EchoEngine, options).run()
        profile = batch.wait().profile
        assert profile is not None
        assert (sum(profile.requests), sum(profile.request_s)) == (80, 80)
        assert sum(profile.output_tokens) == batch.last_status.output_tokens > 0
        assert [one.last_status.profile for one in client.batches()] == [None]
        batch.report(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "All succeeded" in page.text
    assert page.tags["figure"] == 5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_the_rows(folder: Path) -> None:
    page_of(folder)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    place = f"--user-data-dir={folder / 'browser'}"
    command = ["chromium", *options, place, "--virtual-time-budget=2000", "--dump-dom", f"file://{folder}/report.html"]
    shown = Page(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert shown.tags["tr"] == 41
    assert shown.tags["img"] == shown.tags["b"] == 0
    assert "1–40 of 40" in shown.text
    assert "<script>alert(1)</script>" in shown.text
