"""A loopback endpoint that answers every prompt well but one, and the file for it.

python http-one-poison.py PORT KIND FILE    KIND: p502, p500 or p429
Then: batchfile run FILE -o OUT --engine http --base-url http://127.0.0.1:PORT --model served --max-num-seqs 4
With p502 and p500 it ends within a minute with 40 successes and 1 error; with p429 after ten minutes.
"""

import json
import sys

from aiohttp import web

TEXTS = {
    "p502": (502, "text/html", "<html>502 Bad Gateway</html>"),
    "p500": (500, "text/plain", "boom"),
    "p429": (429, "application/json", '{"error": {"message": "slow down"}}'),
}
port, kind, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def write_file() -> None:
    rows = [(f"g{n}", f"g {n}") for n in range(40)]
    rows.insert(5, ("poison", "poison"))
    with open(path, "w") as out:
        for custom_id, text in rows:
            body = {"model": "served", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")


async def chat(request: web.Request) -> web.Response:
    if (await request.json())["messages"][-1]["content"] == "poison":
        status, content_type, text = TEXTS[kind]
        return web.Response(status=status, content_type=content_type, text=text)
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "served"}]})


write_file()
app = web.Application(client_max_size=2**30)
app.router.add_post("/v1/chat/completions", chat)
app.router.add_get("/v1/models", models)
web.run_app(app, host="127.0.0.1", port=port, print=None)
