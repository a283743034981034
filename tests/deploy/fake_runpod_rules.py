"""What RunPod's v2 API refuses, as its document says: 422 for fields and values, 400 for rules across fields."""

import json
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

CONTAINER = {
    "image": str,
    "args": str,
    "cmd": list,
    "entrypoint": list,
    "disk": int,
    "env": dict,
    "ports": list,
    "registry": (str, type(None)),
}
CUDA = {"allowedCudaVersions": list, "minCudaVersion": str}
GPU = {"pools": list, "excludedTypes": list, "count": int, **CUDA}
POD_GPU = {"id": str, "count": int, "minRamPerGpu": int, "minVcpuCountPerGpu": int, **CUDA}
CPU = {"id": str, "vcpuCount": int}
WORKERS = {"min": int, "max": int, "idleTimeout": int}
STARTS = {"startSsh": bool, "startJupyter": bool}
SECRET = {"name": str, "value": str, "description": str}
SECRET_NAME = re.compile(r"(?i:(?!runpod))[a-zA-Z_][a-zA-Z0-9_.\-/]{0,190}")
POOLS = {"ADA_24": {"NVIDIA GeForce RTX 4090"}, "AMPERE_80": {"NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"}}


class Problem(Exception):
    def __init__(
        self, status: int, detail: str, errors: list[str] | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.headers = headers or {}
        self.body: Json = {"title": "Problem", "status": status, "detail": detail}
        if errors:
            self.body["errors"] = errors


def invalid(*errors: str) -> Problem:
    return Problem(422, "validation failed", list(errors))


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


def _at_least(least: float, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: least <= value <= most


def _texts(value: Any) -> bool:
    return all(isinstance(one, str) for one in (value.values() if isinstance(value, dict) else value))


VERSION = re.compile(r"\d+\.\d+")
VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("name", "id", "templateId", "dataCenter", "pools", "path"), len),
    **dict.fromkeys(("disk", "count", "requestCount", "minRamPerGpu", "minVcpuCountPerGpu"), _at_least(1)),
    **dict.fromkeys(("min", "max"), _at_least(0)),
    **dict.fromkeys(("env", "ports", "cmd", "entrypoint", "dataCenterIds", "networkVolumes"), _texts),
    "vcpuCount": lambda value: value >= 2 and value & (value - 1) == 0,
    "idleTimeout": _at_least(1, 3600),
    "queueDelay": _at_least(0.5),
    "cloud": {"SECURE", "COMMUNITY"}.__contains__,
    "flashboot": {"OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"}.__contains__,
    "minCudaVersion": VERSION.fullmatch,
    "allowedCudaVersions": lambda value: all(VERSION.fullmatch(one) for one in value),
    "excludedTypes": lambda value: len(set(value)) == len(value),
}


def check_fields(where: str, given: Any, known: dict[str, Any], required: tuple[str, ...] = ()) -> None:
    if not isinstance(given, dict):
        raise invalid(f"{where}: got {type(given).__name__}, want object")
    errors = [f"{where}: additional properties '{name}' not allowed" for name in given if name not in known]
    errors += [f"{where}: missing property '{name}'" for name in required if name not in given]
    for name, value in given.items():
        kind = known.get(name, object)
        is_bool = isinstance(value, bool) and kind is int
        if not isinstance(value, kind) or is_bool:
            errors.append(f"{where}.{name}: got {type(value).__name__}")
        elif name in VALUES and name in known and not VALUES[name](value):
            errors.append(f"{where}.{name}: {value!r} is not allowed")
    if errors:
        raise invalid(*errors)


def commands(body: Json) -> Json:
    """With `args` for `cmd`, and `cmd` for `args` that are no JSON, as responses have both."""
    if "cmd" in body:
        args = json.dumps({"cmd": body["cmd"]})
        if body.get("args", args) != args:
            raise Problem(400, "args and cmd describe different commands")
        return {**body, "args": args}
    return {**body, "cmd": body["args"].split()} if "args" in body else body


def _check_cuda(gpu: Json) -> None:
    if gpu.get("allowedCudaVersions") and "minCudaVersion" in gpu:
        raise Problem(400, "allowedCudaVersions and minCudaVersion are mutually exclusive")


def _check_one_of(body: Json) -> None:
    if ("gpu" in body) == ("cpu" in body):
        raise Problem(400, "exactly one of gpu and cpu must be set")


def check_pod(body: Json, volumes: Container[str], templates: dict[str, Json]) -> None:
    _check_one_of(body)
    if "gpu" in body:
        check_fields("$.gpu", body["gpu"], POD_GPU, ("id",))
        _check_cuda(body["gpu"])
    else:
        check_fields("$.cpu", body["cpu"], CPU, tuple(CPU))
    if "templateId" not in body and "image" not in body:
        raise invalid("$: missing property 'image'")
    if "templateId" in body:
        template = templates.get(body["templateId"])
        if template is None:
            raise Problem(404, f"template {body['templateId']} not found")
        if template.get("serverless"):
            raise invalid("$.templateId: a serverless template")
    mounts = body.get("mounts", {})
    check_fields("$.mounts", mounts, {"persistent": dict, "network": list})
    if len(mounts.get("network", [])) > 1:
        raise invalid("$.mounts.network: maxItems: got 2, want 1")
    if len(mounts) > 1 or ("persistent" in mounts and "cpu" in body):
        raise Problem(400, "persistent mounts are for pods with a GPU and without a network volume")
    for mount in mounts.get("network", []):
        check_fields("$.mounts.network", mount, {"volumeId": str, "path": str}, ("volumeId", "path"))
        if mount["volumeId"] not in volumes:
            raise Problem(400, f"network volume {mount['volumeId']} not found")
        if body.get("cloud", "SECURE") != "SECURE":
            raise Problem(400, "network volumes are in the secure cloud only")


def check_endpoint(thing: Json, volumes: Container[str]) -> None:
    _check_one_of(thing)
    if "gpu" in thing:
        check_fields("$.gpu", thing["gpu"], GPU, ("pools",))
        _check_cuda(thing["gpu"])
        for pool in thing["gpu"]["pools"]:
            if pool not in POOLS:
                raise Problem(400, f"there is no GPU pool {pool}")
        types = set().union(*(POOLS[pool] for pool in thing["gpu"]["pools"]))
        for excluded in thing["gpu"].get("excludedTypes", []):
            if excluded not in types:
                raise Problem(400, f"{excluded} is in none of the pools")
        if types == set(thing["gpu"].get("excludedTypes", [])):
            raise Problem(400, "no GPU type is left")
    for cpu in thing.get("cpu", []):
        check_fields("$.cpu", cpu, CPU, tuple(CPU))
    check_fields("$.workers", thing["workers"], WORKERS)
    scaling = thing["scaling"]
    is_count = scaling.get("type") == "REQUEST_COUNT"
    known = {"type": str, "requestCount": int} if is_count else {"type": str, "queueDelay": (int, float)}
    check_fields("$.scaling", scaling, known, tuple(known))
    if thing["type"] not in {"QUEUE", "LOAD_BALANCER"}:
        raise invalid("$.type: must be QUEUE or LOAD_BALANCER")
    if thing["type"] == "QUEUE" and is_count and "idleTimeout" in thing["workers"]:
        raise Problem(400, "idleTimeout does not apply to a queue endpoint that scales by request count")
    if thing["type"] == "LOAD_BALANCER" and not is_count:
        raise invalid("$.scaling: load balancers scale by REQUEST_COUNT")
    for volume in thing["networkVolumes"]:
        if volume not in volumes:
            raise Problem(400, f"network volume {volume} not found")
