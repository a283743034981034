"""What resources cost a month, and where their GPUs are: from RunPod's catalog, or else from prices.json."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from resources import DeployError, Json, Resource

from runners.runpod.api import Runpod, RunpodError, at

FROZEN = Path(__file__).resolve().parent / "prices.json"
HOURS_A_MONTH = 730


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """`gpus`: types in the form of `GET /v2/catalog/gpus`, by the number of GPUs of a worker. Prices are per hour."""

    source: str
    gpus: Mapping[int, list[Json]]
    cpus: Mapping[str, float]
    volume_gb_month: float

    def types(self, gpu: Json) -> list[Json]:
        """The GPU types that a worker of an endpoint may have."""
        excluded = gpu.get("excludedTypes", [])
        known = self.gpus.get(gpu.get("count", 1), [])
        return [one for one in known if one.get("pool") in gpu["pools"] and one["id"] not in excluded]

    def worker_hour(self, gpu: Json, of: str = "serverless") -> float | None:
        """The most expensive type counts on an endpoint, and the least expensive for a pod: there you choose it."""
        found = [price for one in self.types(gpu) if (price := (one.get("price") or {}).get(of))]
        count = int(gpu.get("count", 1))
        return (max(found) if of == "serverless" else min(found)) * count if found else None

    def pod_type(self, gpu: Json) -> str:
        """The least expensive type for a pod instead of a worker. Raises: DeployError if none is known."""
        types = sorted(self.types(gpu), key=lambda one: (one.get("price") or {}).get("secure") or float("inf"))
        if not types:
            raise DeployError(f"no GPU of {', '.join(gpu['pools'])} is in RunPod's catalog or {FROZEN.name}")
        return str(types[0]["id"])

    def month(self, resource: Resource) -> tuple[float, float] | None:
        """The cost with always-on workers only and with all workers; None if it is unknown."""
        body = resource.body
        hour: float | None
        least = most = 1
        if resource.kind.name == "volume":
            hour = body["size"] * self.volume_gb_month / HOURS_A_MONTH
        elif resource.kind.name == "endpoint" and "gpu" in body:
            hour = self.worker_hour(body["gpu"])
            least, most = body["workers"]["min"], body["workers"]["max"]
        elif "cpu" in body and resource.kind.name == "pod":
            price = self.cpus.get(body["cpu"]["id"])
            hour = None if price is None else price * body["cpu"]["vcpuCount"]
        elif "gpu" in body and resource.kind.name == "pod":
            hour = self._pod_hour(body)
        else:
            return None
        return None if hour is None else (hour * least * HOURS_A_MONTH, hour * most * HOURS_A_MONTH)

    def _pod_hour(self, body: Json) -> float | None:
        count = body["gpu"].get("count", 1)
        types = [one for known in self.gpus.values() for one in known if one["id"] == body["gpu"]["id"]]
        price = (types[0].get("price") or {}).get(body.get("cloud", "SECURE").lower()) if types else None
        return price * count if price else None

    def check_data_centers(self, resource: Resource) -> None:
        """Raises: DeployError if none of the endpoint's data centers has its GPUs. Without availability, it passes."""
        body = resource.body
        wanted = set(body.get("dataCenterIds", []))
        types = self.types(body["gpu"]) if "gpu" in body else []
        if not wanted or not any("availability" in one for one in types):
            return
        offered = [center for one in types for center in one.get("dataCenters") or []]
        having = {str(center["id"]) for center in offered if center.get("availability") != "NONE"}
        if not wanted & having:
            raise DeployError(
                f"{resource}: {', '.join(sorted(wanted))} has no {body['gpu'].get('count', 1)} x "
                f"{' or '.join(str(one['id']) for one in types)} for serverless now; "
                + (f"set RUNPOD_DATA_CENTER to one that has: {', '.join(sorted(having))}" if having else "none has")
            )


def read_prices(runpod: Runpod, resources: Iterable[Resource]) -> Prices:
    """The current prices, with availability for serverless workers; the frozen ones where the catalog fails."""
    frozen = json.loads(FROZEN.read_text())
    counts = {resource.body["gpu"].get("count", 1) for resource in resources if "gpu" in resource.body}
    volume = frozen["volume_gb_month"]
    try:
        path = "/catalog/gpus?include=AVAILABILITY&product=SERVERLESS&count={}"
        gpus = {count: _listed(runpod, path.format(count), "gpus") for count in counts}
        found = _listed(runpod, "/catalog/cpus", "cpus")
        cpus = {one["id"]: price for one in found if (price := (one.get("price") or {}).get("securePerVcpu"))}
        return Prices(source="RunPod's catalog, now", gpus=gpus, cpus=cpus, volume_gb_month=volume)
    except RunpodError as error:
        source = f"{FROZEN.name} of {frozen['date']}, because RunPod's catalog cannot be read: {error}"
        return Prices(source=source, gpus=dict.fromkeys(counts, frozen["gpus"]), cpus={}, volume_gb_month=volume)


def _listed(runpod: Runpod, path: str, key: str) -> list[Json]:
    found = at(runpod.manage("GET", path), key, kind=list, of=path)
    for one in found:
        at(one, "id", kind=str, of=path)
    return found


def cost_lines(resources: list[Resource], prices: Prices) -> list[str]:
    """The monthly cost, and what pods would cost instead of always-on workers. Missing prices are reported."""
    lines, least, most = [], 0.0, 0.0
    unknown: set[str] = set()
    for resource in resources:
        found = prices.month(resource)
        if found is not None:
            least, most = least + found[0], most + found[1]
            lines.append(f"  {resource}: {_text(*found)}")
            lines += _compared(resource, found[0], prices)
        elif resource.kind.name != "template":
            unknown.add(resource.kind.name)
            lines.append(f"  {resource}: price unknown; see RunPod's pricing page")
    without = "".join(f", without some {name}s" for name in sorted(unknown))
    lines.append(f"  total{without}: {_text(least, most)}")
    lines.append(f"  (prices: {prices.source}; 730 hours; without discounts)")
    return lines


def _compared(resource: Resource, month: float, prices: Prices) -> list[str]:
    num = resource.body["workers"]["min"] if resource.kind.name == "endpoint" else 0
    hours = {of: prices.worker_hour(resource.body["gpu"], of) for of in ("secure", "community")} if num else {}
    found = [f"${hour * num * HOURS_A_MONTH:,.0f} on {of} pods" for of, hour in hours.items() if hour]
    option = f"--pods {resource.label}" if found else ""
    return [f"    its always-on workers: {' or '.join(found)} instead of ${month:,.0f} ({option})"] if found else []


def _text(least: float, most: float) -> str:
    if least == most:
        return f"${least:,.0f} a month"
    return f"${least:,.0f} a month for always-on workers, ${most:,.0f} with all workers on all month"
