"""Deploys the JSON files of this folder through RunPod's v2 API. Run it as deploy.sh.

plan      show what apply would do, and what it costs; exits with 2 if apply would refuse
secrets   create the secrets that the files refer to, from variables of the same names in capitals
apply     create and change resources; run it again after a failure, or when a file has changed
status    show the resources, with workers and jobs of each endpoint
prefetch  start a job for each endpoint that downloads its model to its volume
destroy   remove everything in the files, including volumes and weights unless --keep-volumes; secrets stay

Nothing is changed without --yes. Set RUNPOD_API_KEY; the other variables are in deploy/README.md.

examples:
  deploy.sh plan --fit                 what fits into the account's quota of workers
  deploy.sh apply --fit --yes
  deploy.sh apply --pods llama --yes   a pod instead of Llama's always-on worker, at two thirds of the price
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from account import create_secrets, fitted, locked, missing_secrets, read_quota
from prices import Prices, cost_lines, read_prices
from resources import (
    KIND,
    KINDS,
    DeployError,
    Json,
    Resource,
    Step,
    compare,
    is_secret,
    pick,
    read_files,
    secret_name,
    standing_pods,
    with_ids,
)

from runners.runpod.api import Runpod, RunpodError, at
from runners.runpod.jobs_and_pods import standing_for

FOLDER = Path(__file__).resolve().parent
OK, FAILED, REFUSED = 0, 1, 2
PREFETCH_S = 3600
PATIENCE_S = 65.0  # RunPod allows 60 requests a minute


class Deployment:
    """The files, applied to one account."""

    def __init__(self, runpod: Runpod, resources: list[Resource]) -> None:
        self.runpod = runpod
        self.resources = resources
        self.ids: dict[str, str] = {}
        self._found: dict[str, Json] = {}
        self.listed: dict[str, list[Json]] = {}

    def look(self) -> None:
        """Find the existing resources. Raises: RunpodError, DeployError."""
        kinds = {resource.kind.name for resource in self.resources}
        for kind in KINDS:
            is_needed = kind.name in kinds or (kind.name == "pod" and "endpoint" in kinds)
            self.listed[kind.name] = self.runpod.listed(kind.path, kind.key) if is_needed else []
        self._match()

    def _match(self) -> None:
        found = {str(one): pick(self.listed[one.kind.name], one) for one in self.resources}
        self._found = {name: thing for name, thing in found.items() if thing is not None}
        self.ids = {name: str(thing["id"]) for name, thing in self._found.items()}

    def prepare(self, args: argparse.Namespace, prices: Prices) -> list[str]:
        """Apply the options, and put the resources in the order of creation. Call it after `look`.

        Returns what was changed. Raises: DeployError for what RunPod would reject; RunpodError.
        """
        self.resources = moved_to_pods(self.resources, args.pods, prices)
        notes: list[str] = []
        if any(resource.kind.name == "endpoint" for resource in self.resources):
            quota = (args.quota, "--quota") if args.quota is not None else read_quota(self.runpod)
            self.resources, notes = fitted(self.resources, self.listed["endpoint"], quota, is_fitting=args.fit)
        self.resources.sort(key=lambda resource: (_rank(resource), (prices.month(resource) or (0.0, 0.0))[0]))
        self._match()  # also pods that the options have added
        return notes

    def check(self, prices: Prices) -> None:
        """Raises: DeployError for what is missing before anything is created."""
        steps = self.steps()
        for step in steps:
            if step.verb == "create" and step.resource.kind.name == "endpoint":
                prices.check_data_centers(step.resource)
        missing = missing_secrets(self.runpod, steps)
        if missing:
            raise DeployError(
                f"RunPod has no secret {', '.join(missing)}. Nothing was changed. Create them in RunPod's console, or "
                f"set {', '.join(missing).upper()} and run secrets --yes"
            )

    def steps(self) -> list[Step]:
        """In the order of creation; endpoints that give workers back come before those that need them."""
        templates = {resource.name: resource.body for resource in self.resources if resource.kind.name == "template"}
        steps = [
            compare(
                resource,
                self._found.get(str(resource)),
                templates.get(resource.body.get("templateId", ""), {}),
                self.ids,
            )
            for resource in self.resources
        ]
        steps.sort(key=lambda step: (_rank(step.resource), self._added_workers(step.resource)))
        return steps + [Step(verb="remove", resource=pod, found_id=pod.body["id"]) for pod in self.unwanted_pods()]

    def _added_workers(self, resource: Resource) -> int:
        found = self._found.get(str(resource)) if resource.kind.name == "endpoint" else None
        return int(resource.body["workers"]["max"] - found["workers"]["max"]) if found else 0

    def unwanted_pods(self) -> list[Resource]:
        """Pods of an earlier `--pods` that are not wanted now."""
        labels = {resource.name: resource.label for resource in self.resources if resource.kind.name == "endpoint"}
        return [
            Resource(kind=KIND["pod"], label=labels[name], body=pod)
            for pod in self.listed["pod"]
            if (name := standing_for(pod)) in labels
            and pod["id"] not in self.ids.values()
            and pod.get("status") != "TERMINATED"
        ]

    def apply(self, step: Step) -> None:
        path = step.resource.kind.path
        if step.verb == "create":
            body = with_ids(step.resource.body, self.ids)
            made = self.runpod.manage("POST", path, body)
            self.ids[str(step.resource)] = at(made, "id", kind=str, of=f"POST {path}")
        elif step.verb == "change":
            self.runpod.manage("PATCH", f"{path}/{step.found_id}", with_ids(step.fields, self.ids))
        elif step.verb == "remove":
            self.destroy(step.resource)

    def destroy(self, resource: Resource) -> bool:
        """Returns whether it existed. Deleting an endpoint also deletes its template, so that may be gone already."""
        found_id = self.ids.get(str(resource), resource.body.get("id"))
        if found_id is None:
            return False
        try:
            self.runpod.manage("DELETE", f"{resource.kind.path}/{found_id}")
        except RunpodError as error:
            if error.status != 404:
                raise
        return True

    def prefetch(self, resource: Resource) -> None:
        """Start the job. RunPod drops a job that waits longer than a day (its default)."""
        body = {"input": {"prefetch": True, "timeout_s": PREFETCH_S}, "policy": {"executionTimeout": PREFETCH_S * 1000}}
        self.runpod.jobs("POST", self.ids[str(resource)], "run", body)

    def is_untouched(self, resource: Resource) -> bool:
        """Whether the endpoint has had no job yet, as far as RunPod knows."""
        health = self.runpod.health(self.ids[str(resource)])
        return not (health.num_waiting or health.num_at_work or health.num_completed or health.num_failed)

    def describe(self, resource: Resource) -> str:
        found = self._found.get(str(resource), resource.body if "id" in resource.body else None)
        if found is None:
            return "does not exist"
        if resource.kind.name == "endpoint":
            health = self.runpod.health(found["id"])
            least, most = (at(found, "workers", bound, kind=int, of=str(resource)) for bound in ("min", "max"))
            running = ", ".join(f"{num} {state}" for state, num in sorted(health.workers.items()) if num) or "none"
            return (
                f"{found['id']}: {least} to {most} workers ({running}), {health.num_at_work} jobs running, "
                f"{health.num_waiting} waiting, {health.num_failed} failed"
            )
        if resource.kind.name == "pod":
            ports = [str(port).partition("/")[0] for port in found.get("ports") or [] if str(port).endswith("/http")]
            urls = "".join(f", https://{found['id']}-{port}.proxy.runpod.net" for port in ports)
            return f"{found['id']}: {found.get('status')}{urls}"
        return str(found["id"])


def _rank(resource: Resource) -> int:
    """Order of creation: pods with GPUs last, because they cost most."""
    is_gpu_pod = resource.kind.name == "pod" and "gpu" in resource.body
    return len(KINDS) if is_gpu_pod else KINDS.index(resource.kind)


def moved_to_pods(resources: list[Resource], labels: list[str], prices: Prices) -> list[Resource]:
    """With pods instead of the always-on workers of these endpoints. Raises: DeployError."""
    templates = {resource.name: resource.body for resource in resources if resource.kind.name == "template"}
    moved, done = list(resources), set()
    for index, one in enumerate(resources):
        if one.kind.name != "endpoint" or one.label not in labels or not one.body["workers"]["min"]:
            continue
        template = templates[one.body["templateId"]]
        moved[index] = replace(one, body={**one.body, "workers": {**one.body["workers"], "min": 0}})
        moved += standing_pods(one, template, prices.pod_type(one.body["gpu"]))
        done.add(one.label)
    if set(labels) - done:
        raise DeployError(f"--pods {min(set(labels) - done)}: its files have no endpoint with always-on workers")
    return moved


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def shown(step: Step) -> str:
    """The line of a step. Shows only the names of variables, because values may be secrets."""
    parts = [f"{key} = {value}" for key, value in step.fields.items() if key != "env"]
    for what, names in (
        ("env", step.env.changed),
        ("as set there", step.env.kept),
        ("in no file and left", step.env.extra),
    ):
        parts += [f"{what} ({', '.join(names)})"] if names else []
    return f"  {step.verb:<7}{step.resource}" + (f": {'; '.join(parts)}" if parts else "")


def plan(deployment: Deployment, args: argparse.Namespace) -> None:
    prices = read_prices(deployment.runpod, deployment.resources)
    try:
        notes = deployment.prepare(args, prices)
        for line in [*map(shown, deployment.steps()), *notes]:
            say(line)
    finally:  # also if the quota does not suffice
        say("Cost:")
        for line in cost_lines(deployment.resources, prices):
            say(line)
    deployment.check(prices)
    num = len(_changes(deployment))
    say(f"{num} changes. Run apply --yes to make them." if num else "Nothing to do.")


def apply(deployment: Deployment, args: argparse.Namespace) -> None:
    if not args.yes:
        return plan(deployment, args)
    prices = read_prices(deployment.runpod, deployment.resources)
    for line in deployment.prepare(args, prices):
        say(line)
    deployment.check(prices)
    if not _changes(deployment) and not _without_model(deployment, args):
        return say("Nothing to do.")
    with locked(deployment.runpod) as warning:
        if warning:
            say(warning)
        deployment.look()  # another deployment may have ended since
        steps = _changes(deployment)
        for step in steps:
            deployment.apply(step)
            say(f"{shown(step)}  done")
        untouched = _without_model(deployment, args)
        for resource in untouched:
            deployment.prefetch(resource)
            say(f"  fetch  the model of {resource}: job started")
        say(f"{len(steps) + len(untouched)} done.")


def _changes(deployment: Deployment) -> list[Step]:
    return [step for step in deployment.steps() if step.verb != "keep"]


def _without_model(deployment: Deployment, args: argparse.Namespace) -> list[Resource]:
    """Existing endpoints without a download yet: an earlier run may have been interrupted. Pods download themselves."""
    endpoints = [one for one in deployment.resources if one.kind.name == "endpoint" and one.label not in args.pods]
    return [one for one in endpoints if str(one) in deployment.ids and deployment.is_untouched(one)]


def secrets(deployment: Deployment, args: argparse.Namespace) -> None:
    values = [value for one in deployment.resources for value in one.body.get("env", {}).values()]
    names = {secret_name(value) for value in values if is_secret(value)}
    for line in create_secrets(deployment.runpod, names, os.environ, is_real=args.yes):
        say(f"{line}  done" if args.yes else line)
    if not args.yes:
        say("Run secrets --yes to create them. Existing values are kept; change them in RunPod's console.")


def prefetch(deployment: Deployment, args: argparse.Namespace) -> None:
    for resource in deployment.resources:
        if resource.kind.name != "endpoint":
            continue
        if str(resource) not in deployment.ids:
            raise DeployError(f"{resource} does not exist yet; run apply first")
        if args.yes:
            deployment.prefetch(resource)
        say(f"  fetch  the model of {resource}" + (": job started" if args.yes else ""))
    if not args.yes:
        say("Run prefetch --yes to start these jobs. Each uses one worker for some minutes.")


def status(deployment: Deployment, args: argparse.Namespace) -> None:
    for resource in [*deployment.resources, *deployment.unwanted_pods()]:
        say(f"  {resource}: {deployment.describe(resource)}")


def destroy(deployment: Deployment, args: argparse.Namespace) -> None:
    if not args.yes:
        for resource in [*deployment.unwanted_pods(), *reversed(deployment.resources)]:
            is_kept = args.keep_volumes and resource.kind.name == "volume"
            found_id = deployment.ids.get(str(resource), resource.body.get("id", "does not exist"))
            say(f"  keep   {resource}" if is_kept else f"  remove {resource}: {found_id}")
        return say("Run destroy --yes to remove them, including the weights on volumes unless --keep-volumes.")
    with locked(deployment.runpod) as warning:
        if warning:
            say(warning)
        deployment.look()
        for resource in [*deployment.unwanted_pods(), *reversed(deployment.resources)]:
            if args.keep_volumes and resource.kind.name == "volume":
                say(f"  keep   {resource}")
            else:
                say(f"  remove {resource}  " + ("done" if deployment.destroy(resource) else "did not exist"))
    return None


VERBS = {"plan": plan, "secrets": secrets, "apply": apply, "status": status, "prefetch": prefetch, "destroy": destroy}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="deploy.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("verb", choices=VERBS, nargs="?", default="plan")
    add(
        "--only",
        action="append",
        default=[],
        metavar="LABEL",
        help="of files: mistral, llama, api, scaler; repeatable",
    )
    add("--yes", action="store_true", help="make the changes instead of showing them")
    add("--fit", action="store_true", help="lower workers.max to what the account's quota of workers leaves free")
    add("--quota", type=int, metavar="N", help="the account's quota of workers (default: as RunPod says)")
    add(
        "--pods",
        action="append",
        default=[],
        metavar="LABEL",
        help="use pods instead of the always-on workers of this endpoint, as long as apply has this option; repeatable",
    )
    add("--keep-volumes", action="store_true", help="destroy keeps the volumes and the weights on them")
    add("--folder", type=Path, default=FOLDER, help="folder of the JSON files (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    try:
        return run(args)
    except BrokenPipeError:  # the reader has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the final flush does not fail
        return FAILED


def run(args: argparse.Namespace) -> int:
    try:
        resources = read_files(args.folder, args.only, os.environ)
        deployment = Deployment(Runpod.from_environment(PATIENCE_S), resources)
        deployment.look()
        VERBS[args.verb](deployment, args)
    except DeployError as error:
        say(f"Error: {error}")
        return REFUSED
    except RunpodError as error:
        say(f"Stopped: {error}\nCompleted changes are kept; run the same command again to continue.")
        return FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
