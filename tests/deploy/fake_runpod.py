"""RunPod's v2 API as far as this project uses it, in memory, on loopback, as strict as its documents say.

It refuses fields and values with 422 and an RFC 9457 body (fake_runpod_rules.py); keeps an endpoint's copy of its
template; lets volumes grow only; pages its lists, newest first; has the quota of workers over all endpoints; and has
both hosts in one: management under /v2/serverless and the like, jobs under /v2/{endpoint id}. `fail_at` breaks one
request, before or after it took effect; `busy_every` refuses every nth request with 429.
"""

import itertools
import json
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_runpod_rules import (
    CONTAINER,
    KINDS,
    SECRET,
    SECRET_NAME,
    STARTS,
    Json,
    Kind,
    Problem,
    check_endpoint,
    check_fields,
    check_pod,
    commands,
    invalid,
)

KEY = "rpa_test"
LIMIT = "Max workers across all endpoints must not exceed your workers quota ({quota})."
ADA, A100 = {"pool": "ADA_24"}, {"pool": "AMPERE_80"}
GPUS: list[Json] = [
    {"id": "NVIDIA GeForce RTX 4090", **ADA, "price": {"serverless": 1.116, "secure": 0.69, "community": 0}},
    {"id": "NVIDIA A100-SXM4-80GB", **A100, "price": {"serverless": 2.736, "secure": 1.79, "community": 1.39}},
    {"id": "NVIDIA A100 80GB PCIe", **A100, "price": {"serverless": 2.736, "secure": 1.59, "community": 1.19}},
]
CPUS = [{"id": "cpu5c", "price": {"securePerVcpu": 0.03, "serverlessPerVcpu": 0.05}}]
FILES_SECRETS = ["batchfile_s3_key_id", "batchfile_s3_secret", "huggingface_token", "batchfile_api_keys"]
FILES_SECRETS += ["batchfile_api_key", "batchfile_scaler_key"]


@dataclass
class FakeRunpod:
    """`calls`: (method, path, body) of everything that changes something. `things`: by kind, by id.

    `odd`: by path, what is answered instead. `forbidden`: beginnings of paths that the key may not use. `taking`:
    called with each request, outside the lock.
    """

    things: dict[str, dict[str, Json]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    jobs: dict[str, list[Json]] = field(default_factory=dict)
    calls: list[tuple[str, str, Json]] = field(default_factory=list)
    fail_at: tuple[str, str, str] | None = None  # method, path, "before" or "after"
    odd: dict[str, Any] = field(default_factory=dict)
    quota: int = 20
    page_num: int = 1000
    busy_every: int = 0
    num_busy: int = 0
    forbidden: tuple[str, ...] = ()
    data_centers: list[str] = field(default_factory=lambda: ["US-KS-2", "EU-RO-1"])
    secrets: list[Json] = field(default_factory=list)
    taking: Callable[[str, str], None] = lambda method, path: None

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self._lock = threading.Lock()
        for name in FILES_SECRETS:
            self._secret("POST", [], {"name": name, "value": "x"})

    def named(self, kind: str, name: str) -> Json:
        (found,) = [thing for thing in self.things[kind].values() if thing["name"] == name]
        return found

    def answer(self, method: str, path: str, body: Json, key: str | None) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        self.taking(method, path)
        with self._lock:
            if key != f"Bearer {KEY}":
                raise Problem(401, "the key is missing or wrong")
            if self.busy_every and next(self._requests) % self.busy_every == 0:
                self.num_busy += 1
                raise Problem(429, "rate limit exceeded for the minute window", headers={"Retry-After": "0"})
            if method != "GET" and not path.startswith("/v2/account/"):
                self.calls.append((method, path, body))
            is_failing = self.fail_at is not None and self.fail_at[:2] == (method, path)
            if is_failing and self.fail_at and self.fail_at[2] == "before":
                raise Problem(500, "something broke")
            if path.startswith(self.forbidden):
                raise Problem(403, "access denied")
            if path in self.odd:
                return 200, self.odd[path]
            found = self._route(method, path.removeprefix("/v2/").split("/"), body, dict(urllib.parse.parse_qsl(query)))
            if is_failing:
                raise Problem(500, "something broke, afterwards")
            return found

    def _route(self, method: str, parts: list[str], body: Json, query: dict[str, str]) -> tuple[int, Any]:
        if parts[0] in self.things["serverless"] and len(parts) == 2:
            return self._job(method, parts[0], parts[1], body)
        if parts[:2] == ["account", "secrets"]:
            return self._secret(method, parts[2:], body)
        if (method, parts) == ("GET", ["account", "limits"]):
            return 200, {"serverlessWorkers": {"limit": self.quota}, "spendRate": {"limit": 80}}
        if (method, parts[0]) == ("GET", "catalog"):
            return self._catalog(parts[1:])
        return self._resource(method, parts, body, query)

    def _resource(self, method: str, parts: list[str], body: Json, query: dict[str, str]) -> tuple[int, Any]:
        kind = KINDS.get(parts[0])
        if kind is None or len(parts) > 2:
            raise Problem(404, "there is no such path")
        things = self.things[parts[0]]
        if len(parts) == 1:
            if method == "GET":
                return self._page(kind, things, query)
            return 201, self._create(parts[0], kind, body)
        if parts[1] not in things:
            raise Problem(404, f"{parts[1]} not found")
        if method == "PATCH":
            return 200, self._update(parts[0], kind, things[parts[1]], body)
        if method == "DELETE":
            return self._delete(parts[0], things, parts[1])
        return 200, things[parts[1]]

    def _page(self, kind: Kind, things: dict[str, Json], query: dict[str, str]) -> tuple[int, Json]:
        limit = query.get("limit", "1000")
        if not (limit.isdecimal() and 1 <= int(limit) <= 1000):
            raise invalid("limit: must be 1 to 1000")
        newest_first = list(reversed(things.values()))
        ids = [thing["id"] for thing in newest_first]
        start = ids.index(query["cursor"]) + 1 if query.get("cursor") in ids else 0
        page = newest_first[start : start + min(int(limit), self.page_num)]
        has_next = start + len(page) < len(ids)
        pagination = {"hasNextPage": has_next, "nextCursor": page[-1]["id"] if has_next else None}
        return 200, {kind.key: page, "pagination": pagination}

    def _catalog(self, parts: list[str]) -> tuple[int, Json]:
        if parts == ["cpus"]:
            return 200, {"cpus": CPUS}
        centers = [{"id": one, "name": one, "availability": "HIGH"} for one in self.data_centers]
        there = {"availability": "HIGH", "dataCenters": centers} if centers else {"availability": "NONE"}
        return 200, {"gpus": [{**gpu, **there} for gpu in GPUS]}

    def _secret(self, method: str, parts: list[str], body: Json) -> tuple[int, Any]:
        if method == "GET":
            return 200, {"secrets": [{**one, "value": None} for one in self.secrets]}
        if method == "DELETE":
            left = [one for one in self.secrets if one["id"] != parts[0]]
            if left == self.secrets:
                raise Problem(404, f"{parts[0]} not found")
            self.secrets = left
            return 204, None
        check_fields("$", body, SECRET, ("name", "value"))
        if not SECRET_NAME.fullmatch(body["name"]) or not body["value"]:
            raise invalid("$.name: does not match")
        if any(one["name"].lower() == body["name"].lower() for one in self.secrets):
            raise Problem(409, "a secret of this name exists")
        made = {"id": f"sec{len(self.secrets)}-{body['name']}", "createdAt": datetime.now(UTC).isoformat(), **body}
        self.secrets.append(made)
        return 201, {**made, "value": None}

    def _check_quota(self, thing: Json) -> None:
        others = [one for one in self.things["serverless"].values() if one["id"] != thing["id"]]
        if sum(one["workers"]["max"] for one in [*others, thing]) > self.quota:
            raise Problem(400, LIMIT.format(quota=self.quota))

    def _create(self, name: str, kind: Kind, body: Json) -> Json:
        check_fields("$", body, kind.create, kind.required)
        body = commands(body)
        thing: Json = {"id": f"{kind.prefix}{next(self._numbers)}"}
        if name == "serverless":
            thing |= {"env": {}, "timeout": 300000, "flashboot": "OFF", "dataCenterIds": [], "networkVolumes": []}
            thing["workers"] = {"min": 0, "max": 3, **body.get("workers", {})}
            check_endpoint({**thing, **body}, self.things["network-volumes"])
            self._check_quota(thing)
            if "image" not in body and "templateId" not in body:
                raise invalid("$: missing property 'image'")
            thing |= self._of_template(body)
            thing |= {key: value for key, value in body.items() if key not in {"templateId", "workers", "env"}}
            thing["env"] = {**thing["env"], **body.get("env", {})}
            self.jobs[thing["id"]] = []
        elif name == "pods":
            check_pod(body, self.things["network-volumes"], self.things["templates"])
            shown = {key: value for key, value in body.items() if key not in STARTS and key != "dataCenterIds"}
            thing |= {"status": "RUNNING", "env": {}, "ports": [], "cost": 0.1, **shown}
        else:
            if name == "network-volumes" and not 10 <= body["size"] <= 4096:
                raise invalid("$.size: must be 10 to 4096")
            thing |= (
                {"startSsh": True, "startJupyter": True, "env": {}} if name == "templates" else {"type": "STANDARD"}
            )
            thing |= body
        self.things[name][thing["id"]] = thing
        return thing

    def _update(self, name: str, kind: Kind, thing: Json, body: Json) -> Json:
        check_fields("$", body, kind.update)
        if not body:
            raise invalid("$: minProperties: got 0, want 1")
        body = commands(body)
        if name == "network-volumes" and body.get("size", thing["size"]) < thing["size"]:
            raise Problem(400, "a network volume can not be made smaller")
        if name == "serverless":
            changed = self._of_template(body) | {key: value for key, value in body.items() if key != "templateId"}
            changed["workers"] = {**thing["workers"], **body.get("workers", {})}
            check_endpoint({**thing, **changed}, self.things["network-volumes"])
            self._check_quota({**thing, **changed})
            body = changed
        thing |= body
        return thing

    def _delete(self, name: str, things: dict[str, Json], thing_id: str) -> tuple[int, None]:
        thing = things.pop(thing_id)
        if name == "serverless":
            self.jobs.pop(thing_id)
            bound = thing.get("boundTemplate")
            self.things["templates"].pop(bound, None)
        if name == "network-volumes":
            users = [one["name"] for one in self.things["serverless"].values() if thing_id in one["networkVolumes"]]
            if users:
                things[thing_id] = thing
                raise Problem(400, f"the volume is in use by {users[0]}")
        return 204, None

    def _of_template(self, body: Json) -> Json:
        if "templateId" not in body:
            return {}
        template = self.things["templates"].get(body["templateId"])
        if template is None:
            raise Problem(404, f"template {body['templateId']} not found")
        if not template.get("serverless"):
            raise Problem(422, "the template is not a serverless template")
        return {key: template[key] for key in CONTAINER if key in template} | {"boundTemplate": template["id"]}

    def _job(self, method: str, endpoint_id: str, verb: str, body: Json) -> tuple[int, Json]:
        jobs = self.jobs[endpoint_id]
        if (method, verb) == ("GET", "health"):
            states = {"inQueue": "IN_QUEUE", "inProgress": "IN_PROGRESS", "completed": "COMPLETED", "failed": "FAILED"}
            counts = {key: sum(job["status"] == state for job in jobs) for key, state in states.items()}
            running = min(counts["inProgress"], self.things["serverless"][endpoint_id]["workers"]["max"])
            return 200, {"jobs": {**counts, "retried": 0}, "workers": {"idle": 0, "running": running}}
        if (method, verb) == ("POST", "run"):
            check_fields("$", body, {"input": dict, "policy": dict, "webhook": str}, ("input",))
            policy = {"executionTimeout": (int, float), "ttl": (int, float), "lowPriority": bool}
            check_fields("$.policy", body.get("policy", {}), policy)
            job = {"id": f"job{next(self._numbers)}", "status": "IN_QUEUE", **body}
            jobs.append(job)
            return 200, {"id": job["id"], "status": job["status"]}
        raise Problem(404, "there is no such path")


class Server:
    """`with Server() as server`: `server.url` is both hosts of `server.fake`."""

    def __init__(self) -> None:
        fake = self.fake = FakeRunpod()

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers: dict[str, str] = {}
                try:
                    if len(text) > 102400:
                        raise Problem(413, "the request is larger than 102400 bytes")
                    body = json.loads(text) if text else {}
                    status, found = fake.answer(self.command, self.path, body, self.headers.get("Authorization"))
                except Problem as problem:
                    status, found, headers = problem.body["status"], problem.body, problem.headers
                data = b"" if found is None else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/problem+json" if status >= 400 else "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = do

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
