"""Reads the resource files, compares them with what exists on RunPod, and orders the changes. Sends no requests.

A file `runpod-LABEL-KIND.json` is the body of a v2 create request. In it `${NAME}` is replaced by an environment
variable, and the names in `templateId` and `networkVolumes` by ids when they are known. Resources are identified by
name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from runners.runpod.api import at
from runners.runpod.jobs_and_pods import FLASHBOOT_SUFFIX

Json = dict[str, Any]

SECRET = re.compile(r"\{\{\s*RUNPOD_SECRET_([\w.\-/]+)\s*\}\}")
VOLUME_PATH = "/runpod-volume"  # of network volumes in serverless workers


class DeployError(Exception):
    """The deployment is invalid. The message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """`values`: wanted. Names: `changed`; `kept` although the file differs; `extra`: not in a file."""

    values: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceKind:
    """`path` and `key`: of the list request and in its response. `fixed`: fields that cannot be changed later."""

    name: str
    path: str
    key: str
    fixed: tuple[str, ...] = ()


# In the order of creation: each after what it needs, and what costs most last.
KINDS = (
    ResourceKind(name="template", path="/templates", key="templates"),
    ResourceKind(name="volume", path="/network-volumes", key="networkVolumes", fixed=("dataCenter", "type")),
    ResourceKind(
        name="pod", path="/pods", key="pods", fixed=("cpu", "gpu", "cloud", "dataCenterIds", "templateId", "mounts")
    ),
    ResourceKind(name="endpoint", path="/serverless", key="endpoints", fixed=("type",)),
)
KIND = {kind.name: kind for kind in KINDS}
CONTAINER = ("image", "args", "cmd", "disk", "env", "ports", "registry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    kind: ResourceKind
    label: str
    body: Json

    @property
    def name(self) -> str:
        return str(self.body["name"])

    def __str__(self) -> str:
        return f"{self.kind.name} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`verb`: create, change, keep or remove. `fields`: wanted values of a change; `env`: changes of variables."""

    verb: str
    resource: Resource
    found_id: str | None = None
    fields: Json = field(default_factory=dict)
    env: Env = field(default_factory=Env)


def read_files(folder: Path, labels: list[str], environ: Mapping[str, str]) -> list[Resource]:
    """The resources in creation order. Raises: DeployError for an invalid file, label or variable."""
    found = []
    for kind in KINDS:
        for path in sorted(folder.glob(f"runpod-*-{kind.name}.json")):
            label = path.name.removeprefix("runpod-").removesuffix(f"-{kind.name}.json")
            if not labels or label in labels:
                found.append(Resource(kind=kind, label=label, body=_read(path, environ)))
    unknown = set(labels) - {resource.label for resource in found}
    if unknown:
        raise DeployError(f"no file runpod-{min(unknown)}-*.json in {folder}; check --only and --folder")
    return found


def _read(path: Path, environ: Mapping[str, str]) -> Json:
    try:
        body = json.loads(path.read_text())
        filled: Json = _filled(body, environ)
    except KeyError as error:
        raise DeployError(f"{path.name} needs the variable {error.args[0]}; see deploy/README.md") from error
    except (OSError, ValueError) as error:
        raise DeployError(f"{path}: cannot read the file: {error}") from error
    return filled


def _filled(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return Template(value).substitute(environ)
    if isinstance(value, list):
        return [_filled(one, environ) for one in value]
    if isinstance(value, dict):
        return {name: _filled(one, environ) for name, one in value.items()}
    return value


def standing_pods(endpoint: Resource, template: Json, gpu_type: str) -> list[Resource]:
    """Pods instead of the always-on workers of an endpoint, with the same image, variables and volume."""
    body, pools = endpoint.body, ("pools", "excludedTypes")
    common: Json = {
        **{key: template[key] for key in ("image", "disk", "registry") if key in template},
        "cmd": ["runners", "--pool", template["env"]["POOL"]],
        "env": {**template["env"], **body.get("env", {})},
        "gpu": {"id": gpu_type, **{key: value for key, value in body["gpu"].items() if key not in pools}},
        "cloud": "SECURE",
        "dataCenterIds": body.get("dataCenterIds", []),
    }
    if body.get("networkVolumes"):  # a pod can have one
        common["mounts"] = {"network": [{"volumeId": body["networkVolumes"][0], "path": VOLUME_PATH}]}
    names = [f"{endpoint.name}-pod{number}" for number in range(1, body["workers"]["min"] + 1)]
    return [Resource(kind=KIND["pod"], label=endpoint.label, body={"name": name, **common}) for name in names]


def pick(listed: list[Json], resource: Resource) -> Json | None:
    """The resource of this name. Raises: DeployError if there are several, perhaps after a lost create response."""
    found = [one for one in listed if str(one.get("name", "")).removesuffix(FLASHBOOT_SUFFIX) == resource.name]
    found = [one for one in found if one.get("status") != "TERMINATED"]
    if len(found) > 1:
        ids = ", ".join(str(one["id"]) for one in found)
        raise DeployError(f"{len(found)} resources are named {resource} ({ids}); delete all but one in the console")
    return found[0] if found else None


def compare(resource: Resource, found: Json | None, container: Json, ids: Mapping[str, str]) -> Step:
    """`container`: the template of an endpoint, because an endpoint keeps its own copy.

    `ids`: known ids by `kind name`. Only fields in the files are compared. Raises: DeployError for a change that is
    not possible.
    """
    if found is None:
        return Step(verb="create", resource=resource)
    wanted = {key: value for key, value in container.items() if key in CONTAINER} | with_ids(resource.body, ids)
    env = compare_env({**container.get("env", {}), **resource.body.get("env", {})}, found.get("env") or {})
    wanted = {key: value for key, value in wanted.items() if key not in {"name", "templateId", "env"}}
    differing = {key: value for key, value in wanted.items() if not is_within(value, found.get(key))}
    if env.changed:
        differing["env"] = dict(env.values)
    fixed = [key for key in differing if key in resource.kind.fixed and key in found]
    if fixed:
        raise DeployError(f"{fixed[0]} of {resource} cannot be changed: destroy --only {resource.label}, then apply")
    if resource.kind.name == "volume" and "size" in differing:
        num_gb = at(found, "size", kind=int, of=str(resource))
        if differing["size"] < num_gb:
            raise DeployError(f"{resource} has {num_gb} GB and cannot shrink; raise size in its file")
    differing = {key: value for key, value in differing.items() if key not in resource.kind.fixed}
    verb = "change" if differing else "keep"
    return Step(verb=verb, resource=resource, found_id=str(found["id"]), fields=differing, env=env)


def compare_env(wanted: Mapping[str, str], found: Mapping[str, str]) -> Env:
    """The variables of a container. An update replaces all of them, so `values` includes those that no file names.

    If a file names a RunPod secret but the variable has another value, that was set by hand and is kept.
    """
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    kept = [name for name in differing if name in found and is_secret(wanted[name]) and not is_secret(found[name])]
    changed = [name for name in differing if name not in kept]
    return Env(
        values={**found, **{name: wanted[name] for name in changed}},
        changed=tuple(changed),
        kept=tuple(kept),
        extra=tuple(name for name in found if name not in wanted),
    )


def is_secret(value: str) -> bool:
    return SECRET.fullmatch(value) is not None


def secret_name(value: str) -> str:
    found = SECRET.fullmatch(value)
    return found[1] if found else ""


def is_within(wanted: Any, found: Any) -> bool:
    """Does `found` contain everything in `wanted`? Additional fields are ignored."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(is_within(value, found.get(key)) for key, value in wanted.items())
    return bool(wanted == found)


def with_ids(body: Json, ids: Mapping[str, str]) -> Json:
    """Replaces names by ids. Unknown names stay, because their resources are created first."""
    filled = dict(body)
    if "templateId" in body:
        filled["templateId"] = ids.get(f"template {body['templateId']}", body["templateId"])
    if "networkVolumes" in body:
        filled["networkVolumes"] = [ids.get(f"volume {name}", name) for name in body["networkVolumes"]]
    mounts = body.get("mounts", {}).get("network", [])
    if mounts:
        mounts = [{**one, "volumeId": ids.get(f"volume {one['volumeId']}", one["volumeId"])} for one in mounts]
        filled["mounts"] = {**body["mounts"], "network": mounts}
    return filled
