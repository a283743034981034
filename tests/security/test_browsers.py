"""A service without keys is for its machine: no web page that a browser there shows can use it."""

import base64
import hashlib
import re
from typing import Any

import pytest


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "127.0.0.1:1",
        "[::1]:8000",
        "10.0.0.7",
        "pod",
        "host.docker.internal:80",
        "a.localhost",
    ],
)
def test_a_name_that_only_this_machine_or_its_network_has_is_served(api: Any, host: str) -> None:
    assert api.http.get("/api/batches", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.nip.io", "EVIL.EXAMPLE.", "localhost.evil.example"]
)
def test_a_public_name_that_leads_here_is_refused(api: Any, host: str) -> None:
    """As a page does whose owner points its name at 127.0.0.1 once it is loaded."""
    refused = api.http.get("/api/batches", headers={"host": host})
    assert refused.status_code == 403
    assert "keys new" in refused.json()["detail"]
    assert api.http.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:9999", "null", "http://127.0.0.1"])
def test_a_page_of_another_place_is_refused(api: Any, origin: str) -> None:
    """Also one whose request needs no leave of ours: a form, or a body without a type."""
    before = api.http.get("/v1/files").json()["data"]
    form = {"data": {"purpose": "batch"}, "files": {"file": b"{}"}}
    for path, more in (("/v1/files", form), ("/v1/messages/batches", {"content": b"{}"})):
        assert api.http.post(path, headers={"origin": origin}, **more).status_code == 403
    assert api.http.get("/v1/files").json()["data"] == before


def test_a_page_of_another_place_that_names_no_origin_is_refused(api: Any) -> None:
    """As where it shows what is here as an image or a script; a link to here may be followed."""
    embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert api.http.get("/api/batches", headers=embedded).status_code == 403
    assert api.http.get("/docs", headers=embedded | {"sec-fetch-mode": "navigate"}).status_code == 200


def test_a_page_of_this_service_is_served(api: Any) -> None:
    assert api.http.get("/api/batches", headers={"origin": f"http://127.0.0.1:{api.port}"}).status_code == 200


def test_whoever_opens_the_service_to_all_may_name_it_as_he_likes(start_api: Any) -> None:
    api = start_api(BATCHFILE_ALLOW_ANONYMOUS="1")
    assert api.http.get("/api/batches", headers={"host": "batches.example"}).status_code == 200
    assert api.http.get("/api/batches", headers={"origin": "https://evil.example"}).status_code == 403


def test_no_answer_lets_another_page_read_it(api: Any) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for method in ("GET", "OPTIONS", "POST"):
        answer = api.http.request(method, "/api/batches", headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path", ["/api/batches", "/v1/batches", "/healthz", "/docs", "/nothing", "/metrics", "/", "/dashboard/app.js"]
)
def test_a_browser_runs_and_embeds_nothing_that_is_served(api: Any, path: str) -> None:
    headers = api.http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy


def test_the_page_carries_the_one_style_that_its_policy_allows(api: Any) -> None:
    answer = api.http.get("/docs")
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in answer.headers["content-security-policy"]
