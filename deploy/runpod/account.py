"""What belongs to the account and not to a file: the quota of workers, secrets, and one deployment at a time."""

import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from resources import DeployError, Json, Resource, Step, is_secret, secret_name

from runners.runpod.api import Runpod, RunpodError, at
from runners.runpod.jobs_and_pods import FLASHBOOT_SUFFIX

DEFAULT_QUOTA = 5
SECRETS = "/account/secrets"
LOCK = "batchfile_deploy_lock"
LOCK_S = 1800  # a deployment takes minutes; its requests wait a minute at most after a 429
RESERVED = "runpod"


def read_quota(runpod: Runpod) -> tuple[int, str]:
    """The most workers of all endpoints together, and where the number is from."""
    of = "/account/limits"
    try:
        return at(runpod.manage("GET", of), "serverlessWorkers", "limit", kind=int, of=of), "the account's quota"
    except RunpodError as error:
        return DEFAULT_QUOTA, f"RunPod's default, because the quota cannot be read ({error}); --quota N states it"


def fitted(
    resources: list[Resource], listed: Iterable[Json], quota: tuple[int, str], *, is_fitting: bool
) -> tuple[list[Resource], list[str]]:
    """The resources within the quota, and what was changed for that. `listed`: all endpoints of the account.

    Raises: DeployError if they need more workers than are free and may not be changed, or cannot.
    """
    endpoints = {resource.name: resource.body["workers"] for resource in resources if resource.kind.name == "endpoint"}
    own, of_others = dict.fromkeys(endpoints, 0), 0
    for one in listed:
        name = str(one.get("name", "")).removesuffix(FLASHBOOT_SUFFIX)
        num = at(one, "workers", "max", kind=int, of="endpoint")
        if name in own:
            own[name] = num
        else:
            of_others += num
    free = quota[0] - of_others
    needed = sum(workers["max"] for workers in endpoints.values())
    if needed <= free or all(workers["max"] <= own[name] for name, workers in endpoints.items()):
        return resources, []
    wants = ", ".join(f"{name} {workers['max']}" for name, workers in endpoints.items())
    facts = f"{needed} workers ({wants}), {quota[0]} are allowed ({quota[1]}), other endpoints have {of_others}"
    shares = {name: max(1, workers["min"]) for name, workers in endpoints.items()}
    if not is_fitting or sum(shares.values()) > free:
        fit = "" if sum(shares.values()) > free else "--fit to lower workers.max to what is free, "
        raise DeployError(
            f"the endpoints need {facts}. Nothing was changed. Use {fit}a lower workers.max in the files, or a higher "
            "quota (RunPod documents 10 workers from a balance of $100 and 20 from $200)"
        )
    for _ in range(free - sum(shares.values())):  # each to the endpoint that has the smallest part of what it wants
        shares[min(shares, key=lambda name: (shares[name] / max(1, endpoints[name]["max"]), name))] += 1
    lines = [f"  fit    {name}: max = {num} instead of {endpoints[name]['max']}" for name, num in shares.items()]
    lines.append(f"         because the endpoints need {facts}")
    return [_with_max(one, shares[one.name]) if one.kind.name == "endpoint" else one for one in resources], lines


def _with_max(resource: Resource, num: int) -> Resource:
    return replace(resource, body={**resource.body, "workers": {**resource.body["workers"], "max": num}})


def missing_secrets(runpod: Runpod, steps: Iterable[Step]) -> list[str]:
    """Names of secrets that new or changed variables refer to and the account lacks. Raises: RunpodError."""
    values = [
        value
        for step in steps
        for name, value in step.resource.body.get("env", {}).items()
        if step.verb == "create" or name in step.env.changed
    ]
    needed = {secret_name(value) for value in values if is_secret(value)}
    existing = _readable(runpod) if needed else None
    return [] if existing is None else sorted(needed - existing.keys())


def _readable(runpod: Runpod) -> dict[str, Json] | None:
    """None if the key may not read secrets."""
    try:
        return _existing(runpod)
    except RunpodError as error:
        if error.status not in {403, 404}:
            raise
        return None


def _existing(runpod: Runpod) -> dict[str, Json]:
    found = at(runpod.manage("GET", SECRETS), "secrets", kind=list, of=SECRETS)
    return {at(one, "name", kind=str, of=SECRETS): one for one in found}


def create_secrets(runpod: Runpod, names: Iterable[str], environ: Mapping[str, str], *, is_real: bool) -> list[str]:
    """Create those that are missing from variables of the same name in capitals. Returns what was done to each.

    Raises: DeployError before anything is created if a variable is missing.
    """
    existing, names = _existing(runpod), sorted(names)
    new = [name for name in names if name not in existing]
    unset = [name.upper() for name in new if not environ.get(name.upper(), "").strip()]
    if unset:
        raise DeployError(f"set {', '.join(unset)} to the values of the secrets of these names; nothing was created")
    bad = [name for name in new if name.lower().startswith(RESERVED)]
    if bad:
        raise DeployError(f"secret {bad[0]}: RunPod reserves names that start with {RESERVED}; choose another")
    for name in new if is_real else []:
        runpod.manage("POST", SECRETS, {"name": name, "value": environ[name.upper()].strip()})
    return [f"  {'create' if name in new else 'keep  '} secret {name}" for name in names]


@contextmanager
def locked(runpod: Runpod) -> Iterator[str]:
    """Makes sure that one deployment changes the account at a time: a secret has a unique name.

    Yields a warning if the key may not create secrets. Raises: DeployError while another holds the lock; RunpodError.
    """
    existing = _readable(runpod)
    if existing is None:
        yield "  the key cannot use secrets, so make sure that no other deployment runs at the same time"
        return
    lock_id = _take(runpod, existing.get(LOCK))
    try:
        yield ""
    finally:
        _delete(runpod, lock_id)


def _take(runpod: Runpod, held: Json | None) -> str:
    if held is not None:
        since = datetime.fromisoformat(at(held, "createdAt", kind=str, of=SECRETS))
        free_at = (since if since.tzinfo else since.replace(tzinfo=UTC)) + timedelta(seconds=LOCK_S)
        if datetime.now(UTC) < free_at:
            raise DeployError(_taken(str(held.get("description")), free_at))
        _delete(runpod, str(held["id"]))
    owner = f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(4)}"
    try:
        made = runpod.manage("POST", SECRETS, {"name": LOCK, "value": "locked", "description": owner})
    except RunpodError as error:
        found = _existing(runpod).get(LOCK)
        if found is None:
            raise
        if found.get("description") != owner:  # otherwise only the response was lost
            free_at = datetime.now(UTC) + timedelta(seconds=LOCK_S)
            raise DeployError(_taken(str(found.get("description")), free_at)) from error
        made = found
    return at(made, "id", kind=str, of=SECRETS)


def _taken(by: str, free_at: datetime) -> str:
    return (
        f"another deployment is changing this account ({by}). When it has ended, run the same command again. If it was "
        f"killed, delete the secret {LOCK} in RunPod's console, or wait until {free_at:%H:%M} UTC"
    )


def _delete(runpod: Runpod, secret_id: str) -> None:
    try:
        runpod.manage("DELETE", f"{SECRETS}/{secret_id}")
    except RunpodError as error:
        if error.status != 404:
            raise
