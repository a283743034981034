"""What the endpoints and volumes cost a month, from prices.json. A price that is not in there is said, not guessed."""

import json
from pathlib import Path

from resources import Resource

HOURS_A_MONTH = 730


def cost_lines(resources: list[Resource], prices_path: Path) -> list[str]:
    prices = json.loads(prices_path.read_text())
    lines, least, most = [], 0.0, 0.0
    unknown: set[str] = set()
    for resource in resources:
        found = _monthly(resource, prices)
        if found is None:
            if resource.kind.name != "template":
                unknown.add(resource.kind.name)
                lines.append(f"  {resource}: its price is not in {prices_path.name}; see RunPod's pricing page")
            continue
        least, most = least + found[0], most + found[1]
        lines.append(f"  {resource}: {_text(*found)}")
    without = "".join(f", without the {name}s" for name in sorted(unknown))
    lines.append(f"  together{without}: {_text(least, most)}")
    lines.append(f"  (prices of {prices['date']}, {prices['source']}; 730 hours; discounts are not counted)")
    return lines


def _text(least: float, most: float) -> str:
    if least == most:
        return f"${least:,.0f} a month"
    return f"${least:,.0f} a month for what is always on, ${most:,.0f} with every worker on all month"


def _monthly(resource: Resource, prices: dict) -> tuple[float, float] | None:
    """The least and the most. Between several kinds of GPU the dearest counts."""
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
