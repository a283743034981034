"""What the tests of HTTP pools share: a small endpoint, an engine over it, and requests."""

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchfile.types import Message, Outcome, Raw, Request, Sampling
from tests.helpers.endpoint import HttpEngine, HttpOptions

_path = Path(__file__).with_name("chat_server.py")
_spec = importlib.util.spec_from_file_location("chat_server", _path)
assert _spec is not None
assert _spec.loader is not None
chat_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chat_server)


@pytest.fixture
def server() -> Iterator[Any]:
    with chat_server.running() as found:
        yield found


def options(url: str, **more: Any) -> HttpOptions:
    return HttpOptions(**({"base_url": url, "model": "served", "backoff_s": 0.01} | more))


@pytest.fixture
def engine(server: Any) -> Iterator[HttpEngine]:
    built = HttpEngine(options(server.url), random.Random(1))
    yield built
    built.close()


def request(text: str = "hello there", max_tokens: int = 8, is_given: bool = True, **sampling: Any) -> Request:
    return Request(
        custom_id="r",
        messages=(Message("system", "be kind"), Message("user", text)),
        sampling=Sampling(max_tokens=max_tokens, is_max_tokens_given=is_given, **sampling),
    )


def run(engine: HttpEngine, *requests: Request) -> list[Outcome]:
    for key, one in enumerate(requests):
        engine.add(key, engine.prepare(one))
    done: dict[int, Outcome] = {}
    while len(done) < len(requests):
        done |= {finished.key: finished.outcome for finished in engine.step()}
    return [done[key] for key in range(len(requests))]


def raw_request(kind: Any, *inputs: Any, sampling: Sampling | None = None, **more: Any) -> Request:
    given = Raw(kind=kind, inputs=inputs, **more)
    return Request(custom_id="r", messages=(), raw=given, sampling=sampling or Sampling(max_tokens=4))
