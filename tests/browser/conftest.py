"""A real browser on the dashboard of a real service; runners have the echo engine inside the test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.service.conftest import api, make_request, serve_api, start_api

from . import chromium

__all__ = ["api", "make_request", "serve_api", "start_api"]

HANG_MS = 300_000  # only against a hang: no test depends on a machine's speed
# What a page of a service that is stopped or rejects a key says in its console.
EXPECTED = ("Failed to load resource",)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.opened() as one:
        yield one


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in a context of its own. Whatever a page reports as an error fails the test."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def note(message: Any) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(EXPECTED):
            errors.append(message.text)

    def one(url: str, **options: Any) -> Page:
        context = browser.new_context(accept_downloads=True, **options)
        context.set_default_timeout(HANG_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"a dialog: {dialog.message}"))
        page.goto(url)
        return page

    yield one
    for context in contexts:
        context.close()
    assert errors == []
