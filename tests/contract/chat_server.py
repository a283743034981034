"""An OpenAI-compatible server on loopback that echoes, and does as it is told first."""

import asyncio
import base64
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

BREAK = "break"
PROBES = ("Hi", ["Hi"], [{"role": "user", "content": "Hi"}])


@dataclass
class ChatServer:
    """`script`: what the next requests get, in order: a response's arguments, seconds to stay silent, or BREAK, an
    answer that breaks off. `always`: what all of them get instead, while it is set.

    `are_probes_scripted`: the engine's own small requests get of the script too, as where the endpoint itself is ill;
    else they are answered well. They are counted, and not among `seen`. `models`: what GET /v1/models answers.
    `by_prompt`: what a prompt gets each time.
    `poison`: a prompt's text, and what it gets each time; `num_poison`: how often.
    """

    port: int = 0
    always: dict[str, Any] | None = None
    script: deque[dict[str, Any] | float | str] = field(default_factory=deque)
    models: dict[str, Any] = field(default_factory=lambda: {"text": '{"object": "list", "data": []}'})
    seen: list[dict[str, Any]] = field(default_factory=list)
    are_probes_scripted: bool = False
    num_probes: int = 0
    poison: tuple[str, dict[str, Any]] | None = None
    num_poison: int = 0
    by_prompt: dict[str, dict[str, Any]] = field(default_factory=dict)
    most_at_once: int = 0
    num_now: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        is_probe = any(body.get(name) in PROBES for name in ("messages", "prompt", "input"))
        self.num_probes += is_probe
        if not is_probe:
            self.seen.append({"body": body, "headers": dict(request.headers), "path": request.path})
        self.num_now += 1
        self.most_at_once = max(self.most_at_once, self.num_now)
        try:
            prompt = str(body["messages"][-1]["content"]) if "messages" in body else None  # or a list of parts
            if prompt in self.by_prompt:
                return web.Response(**self.by_prompt[prompt])
            if self.poison is not None and body["messages"][-1]["content"] == self.poison[0]:
                self.num_poison += 1
                return web.Response(**self.poison[1])
            if self.always is not None:
                return web.Response(**self.always)
            if self.script and (self.are_probes_scripted or not is_probe):
                told = self.script.popleft()
                if isinstance(told, dict):
                    return web.Response(**told)
                if isinstance(told, str):
                    return await broken(request)
                await asyncio.sleep(told)
            await asyncio.sleep(0.001)
            return web.json_response(ANSWERS[request.path](body))
        finally:
            self.num_now -= 1

    async def tell_models(self, request: web.Request) -> web.Response:
        return web.Response(**self.models)


async def broken(request: web.Request) -> web.StreamResponse:
    """The first of 100 bytes, and then a reset."""
    response = web.StreamResponse(headers={"Content-Length": "100", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b"{")
    await asyncio.sleep(0.01)
    assert request.transport is not None
    request.transport.abort()
    return response


def complete(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body["prompt"]
    text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
    answer = echo(body | {"messages": [{"role": "user", "content": text}]})
    for choice in answer["choices"]:
        choice["text"] = choice.pop("message")["content"]
    return answer


def embed(body: dict[str, Any]) -> dict[str, Any]:
    """Vectors of the length of each input, the last one first."""
    found = [[float(len(given))] * body.get("dimensions", 3) for given in body["input"]]
    data = [
        {"index": index, "embedding": packed(vector) if body.get("encoding_format") == "base64" else vector}
        for index, vector in enumerate(found)
    ]
    return {"data": data[::-1], "usage": {"prompt_tokens": len(found), "total_tokens": len(found)}}


def packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def echo(body: dict[str, Any]) -> dict[str, Any]:
    text = next(turn["content"] for turn in reversed(body["messages"]) if turn["role"] == "user")
    words = text.split(" ")
    limit = body.get("max_tokens", 10_000)
    reason, stop_reason = ("length", None) if len(words) > limit else ("stop", None)
    text = " ".join(words[:limit])
    for stop in body.get("stop", []):
        if stop in text:
            text, reason, stop_reason = text[: text.index(stop)], "stop", stop
    choice = {
        "message": {"role": "assistant", "content": text},
        "finish_reason": reason,
        "stop_reason": stop_reason,
    }
    return {
        "choices": [{"index": index} | choice for index in reversed(range(body.get("n", 1)))],
        "usage": {
            "prompt_tokens": sum(len(turn["content"].split(" ")) for turn in body["messages"]),
            "completion_tokens": len(words[:limit]) * body.get("n", 1),
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


ANSWERS = {"/v1/chat/completions": echo, "/v1/completions": complete, "/v1/embeddings": embed}


@contextmanager
def running(port: int = 0) -> Iterator[ChatServer]:
    """In a thread of its own; `port` 0 takes a free one."""
    server = ChatServer()
    loop = asyncio.new_event_loop()
    ready, closing = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        for path in (
            *ANSWERS,
            "/v1/score",
            "/v1/rerank",
            "/classify",
            "/pooling",
        ):  # a test scripts the answers of these
            app.router.add_post(path, server.handle)
        app.router.add_get("/v1/models", server.tell_models)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        server.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        ready.set()
        await closing.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join()
        loop.close()
