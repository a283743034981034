"""The dashboard in a browser, in a short form; test_dashboard_long.py has the rest."""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from .chromium import AXE
from .conftest import HANG_MS

pytestmark = pytest.mark.slow

STATIC = Path(__file__).parents[2] / "api" / "dashboard" / "static"
PAGE_BYTES_MAX = 150_000
LINES_MAX = 1_600  # of JavaScript and CSS
KEYS = {"acme": "acme-key-1", "zeta": "zeta-key-1"}
PAIRS = ",".join(f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in KEYS.items())
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
BIDI = "\u202eright to left\u202c \u2067mixed"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

expect.set_options(timeout=HANG_MS)


def violations(page: Page) -> list[Any]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)["violations"]
    return [(one["id"], [node["target"] for node in one["nodes"]][:5]) for one in found]


def lines_of(*requests: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in requests)


def test_the_page_is_small() -> None:
    files = [path for path in STATIC.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < PAGE_BYTES_MAX
    assert sum(len(path.read_text().splitlines()) for path in files if path.suffix in {".js", ".css"}) <= LINES_MAX


def test_from_a_dropped_file_to_its_results(api: Any, open_page: Callable[..., Page], make_request: Any) -> None:
    """And what its author wrote is shown as text, wherever it is shown."""
    page = open_page(api.url)
    expect(page.get_by_role("heading", name="No batches yet")).to_be_visible()
    page.get_by_role("link", name="New batch").click()
    expect(page.get_by_role("heading", name="Try it")).to_be_focused()
    long = "long " * 20_000
    requests = [
        make_request("plain", "Say hello."),
        make_request(HOSTILE, HOSTILE),
        make_request(BIDI, BIDI),
        make_request("long", long),
        make_request("bad", "x") | {"params": {"max_tokens": -1, "messages": [{"role": "user", "content": HOSTILE}]}},
    ]
    page.set_input_files(
        "#file", {"name": f"{HOSTILE.replace('/', '_')}.jsonl", "mimeType": "", "buffer": lines_of(*requests)}
    )
    page.get_by_label("Stage").select_option("email")
    expect(page.get_by_role("heading", name="1 problem")).to_be_visible()
    expect(page.get_by_text("must be at least 1, got -1")).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1, name="batch_")).to_be_visible()
    batch_id = page.url.rpartition("/")[2]
    expect(page.get_by_text("0 of 5 requests").or_(page.get_by_text("1 of 5 requests")).first).to_be_visible()
    work = threading.Thread(target=api.work, args=(batch_id,))
    work.start()
    expect(page.locator("h1 + .state")).to_have_text("Completed")
    work.join()
    expect(page.get_by_role("heading", name="First 5 results")).to_be_visible()
    expect(page.locator(".result").filter(has_text=HOSTILE).locator(".prose").first).to_contain_text(
        "You write to leads"
    )
    assert page.locator(".result img, .result script").count() == 0
    assert "owned" not in page.title()
    folded = page.locator(".result").filter(has_text="more characters are in the results file")
    expect(folded).to_have_count(1)
    folded.get_by_role("button", name="Show all of the user turn").click()
    assert len(folded.locator(".turn .prose").last.inner_text()) >= 9_000
    with page.expect_download() as download:
        page.get_by_role("button", name="Results: batchfile").click()
    assert Path(download.value.path()).read_bytes() == api.http.get(f"/api/batches/{batch_id}/results").content
    with page.expect_download() as download:
        page.get_by_role("button", name="Results: OpenAI output file").click()
    assert download.value.suggested_filename == f"{batch_id}.openai-output.jsonl"
    assert violations(page) == []
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the batch").click()
    expect(page.get_by_role("heading", name="Batches", exact=True)).to_be_visible()
    assert api.http.get(f"/api/batches/{batch_id}").status_code == 404


def test_each_view_is_accessible_in_both_colors_and_fits_a_phone(
    serve_api: Any, open_page: Callable[..., Page], make_request: Any
) -> None:
    api = serve_api()
    api.http.post(f"/api/batches/{api.submit('email', [make_request('x')])}/cancel")  # it has two buttons
    batch_id = api.submit("email", [make_request(f"r{n}") for n in range(40)])
    for colors, width in (("light", 1280), ("dark", 390)):
        page = open_page(api.url, color_scheme=colors, viewport={"width": width, "height": 800})
        for hash, heading in (("#/", "Batches"), (f"#/batch/{batch_id}", batch_id), ("#/pools", "Pools and runners")):
            page.goto(f"{api.url}/{hash}")
            expect(page.get_by_role("heading", level=1, name=heading)).to_be_visible()
            expect(
                page.get_by_text("No live runner for pool mistral").or_(page.get_by_text("No runner")).first
            ).to_be_visible()
            assert violations(page) == [], (hash, colors)
            for narrower in (800, width):  # a tablet, or half a window
                page.set_viewport_size({"width": narrower, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (hash, narrower)
        page.goto(f"{api.url}/#/submit")
        page.set_input_files("#file", {"name": "a.csv", "mimeType": "", "buffer": b"review,stars\nGood,5\nBad,1\n"})
        page.get_by_role("button", name="review").click()
        page.get_by_label("Pool").select_option("mistral")
        expect(page.get_by_role("heading", name="First prompt")).to_be_visible()
        assert violations(page) == []


def test_a_key_opens_the_batches_of_its_tenant_and_stays_in_its_tab(
    serve_api: Any, open_page: Callable[..., Page], make_request: Any
) -> None:
    api = serve_api(BATCHFILE_API_KEYS=PAIRS)
    own = {name: api.submit("email", [make_request("a")], **{"x-api-key": key}) for name, key in KEYS.items()}
    page = open_page(api.url)
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key").fill("ключ")
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog.get_by_text("only letters, digits and signs of ASCII")).to_be_visible()
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog.get_by_text("does not accept this key")).to_be_visible()
    dialog.get_by_label("Key").fill(KEYS["acme"])
    dialog.get_by_label("Key").press("Enter")
    expect(page.get_by_role("link", name=own["acme"])).to_be_visible()
    assert page.get_by_text(own["zeta"]).count() == 0
    page.goto(f"{api.url}/#/batch/{own['zeta']}")
    expect(page.get_by_role("heading", name="No such batch")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="No such batch")).to_be_visible()
    assert KEYS["acme"] not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    other = page.context.new_page()
    other.goto(api.url)
    expect(other.get_by_role("dialog", name="API key")).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    expect(dialog).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_what_a_reader_opened_stays_open_while_a_batch_runs(
    api: Any, open_page: Callable[..., Page], make_request: Any
) -> None:
    """And the focus stays where it is. What the service says is replaced by a batch that moves at each look."""
    batch_id = api.submit("email", [make_request("a")])
    status = api.http.get(f"/api/batches/{batch_id}").json()
    failure = {"type": "api_error", "message": "no", "http_status": 500, "advice": "Wait.", "example": "no, not now"}
    looks = {"batch": 0, "shards": 0}

    def batch(route: Route) -> None:
        looks["batch"] += 1
        failed = {**failure, "requests": looks["batch"], "line": 1, "custom_id": "a"}
        more = {"total": 99, "errored": looks["batch"], "gpu_s": 3600.0 * looks["batch"], "failures": [failed]}
        route.fulfill(json={**status, **more})

    def shards(route: Route) -> None:
        looks["shards"] += 1
        run = {"first": 0, "shards": 1, "state": "leased", "requests": 9, "requests_finished": looks["shards"]}
        run |= {"runner": "mistral-1", "age_s": 1.0 * looks["shards"]}
        throughput = {"start": status["created_at"], "step_s": 1, "finished": []}
        route.fulfill(json={"pools": {"mistral": [run]}, "throughput": throughput})

    page = open_page("about:blank")
    page.route(f"**/api/batches/{batch_id}", batch)
    page.route(f"**/api/batches/{batch_id}/shards", shards)
    page.goto(f"{api.url}/#/batch/{batch_id}")
    page.get_by_text("Example").click()
    page.get_by_text("Who works on it").click()
    price = page.get_by_label("US dollars for one GPU hour")
    price.fill("2")
    seen = dict(looks)
    done = page.locator(".strips tbody td").nth(2)
    expect(done).not_to_have_text(f"{seen['shards']} / 9")
    expect(page.locator(".failures strong")).not_to_have_text(f"{seen['batch']} requests")
    expect(price).to_be_focused()
    expect(page.get_by_text("no, not now")).to_be_visible()
    expect(done).to_be_visible()
    expect(page.locator(".cost")).not_to_contain_text("$2.00")


def test_a_page_of_an_older_version_says_so(api: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(api.url)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.route("**/dashboard/app.js", lambda route: route.fulfill(status=200, headers={"etag": '"new"'}))
    page.evaluate("dispatchEvent(new Event('online'))")
    banner = page.get_by_text("The service was updated. Reload this page")
    with page.expect_response(lambda one: "/api/batches" in one.url):
        expect(banner).to_be_visible()
    expect(banner).to_be_visible()
