"""RunPod's v2 API as far as this project uses it, in memory, on loopback, as strict as the real one.

It refuses fields it does not know by name, with 422 and an RFC 9457 body; keeps an endpoint's copy of its template;
lets volumes grow only; and has both hosts in one: management under /v2/serverless and the like, jobs under
/v2/{endpoint id}. `fail_at` breaks one request, before or after it took effect.
"""

import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "rpa_test"
CONTAINER = {"image": str, "args": str, "disk": int, "env": dict, "ports": list, "registry": (str, type(None))}
GPU = {"pools": list, "excludedTypes": list, "count": int, "allowedCudaVersions": list, "minCudaVersion": str}
CPU = {"id": str, "vcpuCount": int}
WORKERS = {"min": int, "max": int, "idleTimeout": int}
STARTS = {"startSsh": bool, "startJupyter": bool}
POOLS = {"ADA_24": {"NVIDIA GeForce RTX 4090"}, "AMPERE_80": {"NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"}}

Json = dict[str, Any]


class Problem(Exception):
    def __init__(self, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.body = {"title": "Problem", "status": status, "detail": detail} | ({"errors": errors} if errors else {})


@dataclass(frozen=True, kw_only=True)
class Kind:
    key: str
    prefix: str
    create: dict[str, Any]
    required: tuple[str, ...]
    update: dict[str, Any]


ENDPOINT = {
    **CONTAINER,
    "name": str,
    "gpu": dict,
    "cpu": list,
    "workers": dict,
    "scaling": dict,
    "dataCenterIds": list,
    "flashboot": str,
    "networkVolumes": list,
    "templateId": str,
    "timeout": int,
}
TEMPLATE = {
    **CONTAINER,
    **STARTS,
    "name": str,
    "allowedCudaVersions": list,
    "category": str,
    "mounts": dict,
    "public": bool,
    "serverless": bool,
}
POD = {**CONTAINER, "name": str, "globalNetworking": bool, "mounts": dict, "templateId": str}
KINDS = {
    "network-volumes": Kind(
        key="networkVolumes",
        prefix="vol",
        create={"name": str, "size": int, "dataCenter": str, "type": str},
        required=("name", "size", "dataCenter"),
        update={"name": str, "size": int},
    ),
    "templates": Kind(key="templates", prefix="tpl", create=TEMPLATE, required=("name", "image"), update=TEMPLATE),
    "serverless": Kind(
        key="endpoints",
        prefix="ep",
        create={**ENDPOINT, "type": str},
        required=("name", "type", "scaling"),
        update=ENDPOINT,
    ),
    "pods": Kind(
        key="pods",
        prefix="pod",
        create={**POD, **STARTS, "gpu": dict, "cpu": dict, "cloud": str, "dataCenterIds": list},
        required=("name",),
        update={**POD, "locked": bool},
    ),
}


def check_fields(where: str, given: Any, known: dict[str, Any], required: tuple[str, ...] = ()) -> None:
    if not isinstance(given, dict):
        raise Problem(422, "validation failed", [f"{where}: got {type(given).__name__}, want object"])
    errors = [f"{where}: additional properties '{name}' not allowed" for name in given if name not in known]
    errors += [f"{where}: missing property '{name}'" for name in required if name not in given]
    for name, value in given.items():
        kind = known.get(name, object)
        is_bool = isinstance(value, bool) and kind is int
        if not isinstance(value, kind) or is_bool:
            errors.append(f"{where}.{name}: got {type(value).__name__}")
    if errors:
        raise Problem(422, "validation failed", errors)


@dataclass
class FakeRunpod:
    """`calls`: (method, path, body) of everything that changes something. `things`: by kind, by id.

    `odd`: by path, what is answered instead.
    """

    things: dict[str, dict[str, Json]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    jobs: dict[str, list[Json]] = field(default_factory=dict)
    calls: list[tuple[str, str, Json]] = field(default_factory=list)
    fail_at: tuple[str, str, str] | None = None  # method, path, "before" or "after"
    odd: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def named(self, kind: str, name: str) -> Json:
        (found,) = [thing for thing in self.things[kind].values() if thing["name"] == name]
        return found

    def answer(self, method: str, path: str, body: Json, key: str | None) -> tuple[int, Json | None]:
        with self._lock:
            if key != f"Bearer {KEY}":
                raise Problem(401, "the key is missing or wrong")
            if method != "GET":
                self.calls.append((method, path, body))
            is_failing = self.fail_at is not None and self.fail_at[:2] == (method, path)
            if is_failing and self.fail_at and self.fail_at[2] == "before":
                raise Problem(500, "something broke")
            if path in self.odd:
                return 200, self.odd[path]
            found = self._route(method, path.removeprefix("/v2/").split("/"), body)
            if is_failing:
                raise Problem(500, "something broke, afterwards")
            return found

    def _route(self, method: str, parts: list[str], body: Json) -> tuple[int, Json | None]:
        if parts[0] in self.things["serverless"] and len(parts) == 2:
            return self._job(method, parts[0], parts[1], body)
        kind = KINDS.get(parts[0])
        if kind is None or len(parts) > 2:
            raise Problem(404, "there is no such path")
        things = self.things[parts[0]]
        if len(parts) == 1:
            if method == "GET":
                return 200, {kind.key: list(things.values())}
            return 201, self._create(parts[0], kind, body)
        if parts[1] not in things:
            raise Problem(404, f"{parts[1]} not found")
        if method == "PATCH":
            return 200, self._update(parts[0], kind, things[parts[1]], body)
        if method == "DELETE":
            return self._delete(parts[0], things, parts[1])
        return 200, things[parts[1]]

    def _create(self, name: str, kind: Kind, body: Json) -> Json:
        check_fields("$", body, kind.create, kind.required)
        thing: Json = {"id": f"{kind.prefix}{next(self._numbers)}"}
        if name == "serverless":
            thing |= {"env": {}, "timeout": 300000, "flashboot": "OFF", "dataCenterIds": [], "networkVolumes": []}
            thing["workers"] = {"min": 0, "max": 3, **body.get("workers", {})}
            self._check_endpoint({**thing, **body})
            thing |= self._of_template(body)
            thing |= {key: value for key, value in body.items() if key not in {"templateId", "workers", "env"}}
            thing["env"] = {**thing["env"], **body.get("env", {})}
            self.jobs[thing["id"]] = []
        elif name == "pods":
            if ("gpu" in body) == ("cpu" in body):
                raise Problem(400, "exactly one of gpu and cpu must be set")
            if "image" not in body and "templateId" not in body:
                raise Problem(422, "validation failed", ["$: missing property 'image'"])
            shown = {key: value for key, value in body.items() if key not in STARTS and key != "dataCenterIds"}
            thing |= {"status": "RUNNING", "env": {}, "ports": [], "cost": 0.1, **shown}
        else:
            if name == "network-volumes" and not 10 <= body["size"] <= 4096:
                raise Problem(422, "validation failed", ["$.size: must be 10 to 4096"])
            thing |= (
                {"startSsh": True, "startJupyter": True, "env": {}} if name == "templates" else {"type": "STANDARD"}
            )
            thing |= body
        self.things[name][thing["id"]] = thing
        return thing

    def _update(self, name: str, kind: Kind, thing: Json, body: Json) -> Json:
        check_fields("$", body, kind.update)
        if not body:
            raise Problem(422, "validation failed", ["$: minProperties: got 0, want 1"])
        if name == "network-volumes" and body.get("size", thing["size"]) < thing["size"]:
            raise Problem(400, "a network volume can not be made smaller")
        if name == "serverless":
            changed = self._of_template(body) | {key: value for key, value in body.items() if key != "templateId"}
            changed["workers"] = {**thing["workers"], **body.get("workers", {})}
            self._check_endpoint({**thing, **changed})
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

    def _check_endpoint(self, thing: Json) -> None:
        if ("gpu" in thing) == ("cpu" in thing):
            raise Problem(400, "exactly one of gpu and cpu must be set")
        if "gpu" in thing:
            check_fields("$.gpu", thing["gpu"], GPU, ("pools",))
            for pool in thing["gpu"]["pools"]:
                if pool not in POOLS:
                    raise Problem(400, f"there is no GPU pool {pool}")
            types = set().union(*(POOLS[pool] for pool in thing["gpu"]["pools"]))
            for excluded in thing["gpu"].get("excludedTypes", []):
                if excluded not in types:
                    raise Problem(400, f"{excluded} is in none of the pools")
            if not re.fullmatch(r"\d+\.\d+", thing["gpu"].get("minCudaVersion", "1.0")):
                raise Problem(422, "validation failed", ["$.gpu.minCudaVersion: does not match"])
        check_fields("$.workers", thing["workers"], WORKERS)
        scaling = thing["scaling"]
        is_count = scaling.get("type") == "REQUEST_COUNT"
        known = {"type": str, "requestCount": int} if is_count else {"type": str, "queueDelay": (int, float)}
        check_fields("$.scaling", scaling, known, tuple(known))
        if thing["type"] not in {"QUEUE", "LOAD_BALANCER"}:
            raise Problem(422, "validation failed", ["$.type: must be QUEUE or LOAD_BALANCER"])
        if thing["type"] == "QUEUE" and is_count and "idleTimeout" in thing["workers"]:
            raise Problem(400, "idleTimeout does not apply to a queue endpoint that scales by request count")
        if thing["type"] == "LOAD_BALANCER" and not is_count:
            raise Problem(422, "validation failed", ["$.scaling: load balancers scale by REQUEST_COUNT"])
        if thing["flashboot"] not in {"OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"}:
            raise Problem(422, "validation failed", ["$.flashboot: unknown"])
        for volume in thing["networkVolumes"]:
            if volume not in self.things["network-volumes"]:
                raise Problem(400, f"network volume {volume} not found")

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
                try:
                    body = json.loads(text) if text else {}
                    status, found = fake.answer(self.command, self.path, body, self.headers.get("Authorization"))
                except Problem as problem:
                    status, found = problem.body["status"], problem.body
                data = b"" if found is None else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/problem+json" if status >= 400 else "application/json")
                self.send_header("Content-Length", str(len(data)))
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
