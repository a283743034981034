"""Deploys the JSON files of this folder through RunPod's v2 API. Run it as deploy.sh.

plan      show what apply would do, and what it costs
apply     create and change resources; run it again after a failure, or when a file has changed
status    show the resources, with workers and jobs of each endpoint
prefetch  start a job for each endpoint that downloads its model to its volume
destroy   remove everything in the files, including volumes and weights unless --keep-volumes

Nothing is changed without --yes. Set RUNPOD_API_KEY; the other variables are in deploy/README.md.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from resources import KINDS, DeployError, Json, Resource, Step, compare, pick, read_files, with_ids

from runners.runpod.api import Runpod, RunpodError, at

FOLDER = Path(__file__).resolve().parent
OK, FAILED, REFUSED = 0, 1, 2
PREFETCH_S = 3600
HOURS_A_MONTH = 730


class Deployment:
    """The files, applied to one account."""

    def __init__(self, runpod: Runpod, resources: list[Resource]) -> None:
        self._runpod = runpod
        self._resources = resources
        self.ids: dict[str, str] = {}
        self._found: dict[str, Json] = {}

    def look(self) -> None:
        """Find the existing resources. Raises: RunpodError, DeployError."""
        self.ids, self._found = {}, {}
        for kind in KINDS:
            of_kind = [resource for resource in self._resources if resource.kind is kind]
            listed = self._runpod.listed(kind.path, kind.key) if of_kind else []
            for resource in of_kind:
                found = pick(listed, resource)
                if found is not None:
                    self._found[str(resource)] = found
                    self.ids[str(resource)] = str(found["id"])

    def steps(self) -> list[Step]:
        templates = {resource.name: resource.body for resource in self._resources if resource.kind.name == "template"}
        return [
            compare(
                resource,
                self._found.get(str(resource)),
                templates.get(resource.body.get("templateId", ""), {}),
                self.ids,
            )
            for resource in self._resources
        ]

    def apply(self, step: Step) -> None:
        path = step.resource.kind.path
        if step.verb == "create":
            body = with_ids(step.resource.body, self.ids)
            made = self._runpod.manage("POST", path, body)
            self.ids[str(step.resource)] = at(made, "id", kind=str, of=f"POST {path}")
        elif step.verb == "change":
            self._runpod.manage("PATCH", f"{path}/{step.found_id}", with_ids(step.fields, self.ids))

    def destroy(self, resource: Resource) -> bool:
        """Returns whether it existed. Deleting an endpoint also deletes its template, so that may be gone already."""
        found_id = self.ids.get(str(resource))
        if found_id is None:
            return False
        try:
            self._runpod.manage("DELETE", f"{resource.kind.path}/{found_id}")
        except RunpodError as error:
            if error.status != 404:
                raise
        return True

    def prefetch(self, resource: Resource) -> None:
        """Start the job. RunPod drops a job that waits longer than a day (its default)."""
        body = {"input": {"prefetch": True, "timeout_s": PREFETCH_S}, "policy": {"executionTimeout": PREFETCH_S * 1000}}
        self._runpod.jobs("POST", self.ids[str(resource)], "run", body)

    def is_untouched(self, resource: Resource) -> bool:
        """Whether the endpoint has had no job yet, as far as RunPod knows."""
        health = self._runpod.health(self.ids[str(resource)])
        return not (health.num_waiting or health.num_at_work or health.num_completed or health.num_failed)

    def describe(self, resource: Resource) -> str:
        found = self._found.get(str(resource))
        if found is None:
            return "does not exist"
        if resource.kind.name == "endpoint":
            health = self._runpod.health(found["id"])
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


def cost_lines(resources: list[Resource], prices_path: Path) -> list[str]:
    """The monthly cost of endpoints and volumes. Missing prices are reported."""
    prices = json.loads(prices_path.read_text())
    lines, least, most = [], 0.0, 0.0
    unknown: set[str] = set()
    for resource in resources:
        found = _monthly(resource, prices)
        if found is None:
            if resource.kind.name != "template":
                unknown.add(resource.kind.name)
                lines.append(f"  {resource}: no price in {prices_path.name}; see RunPod's pricing page")
            continue
        least, most = least + found[0], most + found[1]
        lines.append(f"  {resource}: {_text(*found)}")
    without = "".join(f", without the {name}s" for name in sorted(unknown))
    lines.append(f"  total{without}: {_text(least, most)}")
    lines.append(f"  (prices of {prices['date']}, {prices['source']}; 730 hours; without discounts)")
    return lines


def _text(least: float, most: float) -> str:
    if least == most:
        return f"${least:,.0f} a month"
    return f"${least:,.0f} a month for always-on workers, ${most:,.0f} with all workers on all month"


def _monthly(resource: Resource, prices: dict) -> tuple[float, float] | None:
    """The minimum and maximum cost. For several kinds of GPU, the most expensive counts."""
    body = resource.body
    if resource.kind.name == "volume":
        month = body["size"] * prices["volume_gb_month"]
        return month, month
    if resource.kind.name == "endpoint" and "gpu" in body:
        hourly = [prices["gpu_hour"].get(pool) for pool in body["gpu"]["pools"]]
        if None in hourly:
            return None
        worker = max(hourly) * body["gpu"].get("count", 1) * HOURS_A_MONTH
        return worker * body["workers"]["min"], worker * body["workers"]["max"]
    return None


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


def plan(deployment: Deployment, resources: list[Resource], args: argparse.Namespace) -> None:
    steps = deployment.steps()
    for step in steps:
        say(shown(step))
    say("Cost at RunPod's prices:")
    for line in cost_lines(resources, FOLDER / "prices.json"):
        say(line)
    num = sum(step.verb != "keep" for step in steps)
    say(f"{num} changes. Run apply --yes to make them." if num else "Nothing to do.")


def apply(deployment: Deployment, resources: list[Resource], args: argparse.Namespace) -> None:
    steps = [step for step in deployment.steps() if step.verb != "keep"]
    if not args.yes:
        return plan(deployment, resources, args)
    for step in steps:
        deployment.apply(step)
        say(f"{shown(step)}  done")
    num_done = len(steps) + _fetch_models(deployment, resources)
    say(f"{num_done} done." if num_done else "Nothing to do.")


def _fetch_models(deployment: Deployment, resources: list[Resource]) -> int:
    """Starts missing downloads; returns how many. Checks all endpoints: an earlier run may have been interrupted."""
    endpoints = [resource for resource in resources if resource.kind.name == "endpoint"]
    untouched = [resource for resource in endpoints if deployment.is_untouched(resource)]
    for resource in untouched:
        deployment.prefetch(resource)
        say(f"  fetch  the model of {resource}: job started")
    return len(untouched)


def prefetch(deployment: Deployment, resources: list[Resource], args: argparse.Namespace) -> None:
    for resource in resources:
        if resource.kind.name != "endpoint":
            continue
        if str(resource) not in deployment.ids:
            raise DeployError(f"{resource} does not exist yet; run apply first")
        if args.yes:
            deployment.prefetch(resource)
        say(f"  fetch  the model of {resource}" + (": job started" if args.yes else ""))
    if not args.yes:
        say("Run prefetch --yes to start these jobs. Each uses one worker for some minutes.")


def status(deployment: Deployment, resources: list[Resource], args: argparse.Namespace) -> None:
    for resource in resources:
        say(f"  {resource}: {deployment.describe(resource)}")


def destroy(deployment: Deployment, resources: list[Resource], args: argparse.Namespace) -> None:
    for resource in reversed(resources):
        if args.keep_volumes and resource.kind.name == "volume":
            say(f"  keep   {resource}")
        elif not args.yes:
            say(f"  remove {resource}: " + deployment.ids.get(str(resource), "does not exist"))
        else:
            say(f"  remove {resource}  " + ("done" if deployment.destroy(resource) else "did not exist"))
    if not args.yes:
        say("Run destroy --yes to remove them, including the weights on volumes unless --keep-volumes.")


VERBS = {"plan": plan, "apply": apply, "status": status, "prefetch": prefetch, "destroy": destroy}


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
        deployment = Deployment(Runpod.from_environment(), resources)
        deployment.look()
        VERBS[args.verb](deployment, resources, args)
    except DeployError as error:
        say(f"Error: {error}")
        return REFUSED
    except RunpodError as error:
        say(f"Stopped: {error}\nCompleted changes are kept; run the same command again to continue.")
        return FAILED
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
