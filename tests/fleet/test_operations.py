"""docs/operations.md, docs/performance.md, the alerts and the manifest for Ray speak of what there is."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from prometheus_client.core import Metric

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.testing import MemoryStore
from tests.helpers.engine import engine_factory
from tests.helpers.fleet import RunnerCollector, order_of
from tests.helpers.fleet import options_parse as parse
from tests.helpers.ledger import HeartbeatRecord, SetAside, StatusReader, write_heartbeat
from tests.helpers.service import Metrics, PoolStatus
from tests.helpers.settings import load_settings
from tests.helpers.store import MeteredStore

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
FIGURES = ROOT / "docs" / "performance.md"
MONITORING = ROOT / "deploy" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
RECORDED = yaml.safe_load((MONITORING / "recording.yaml").read_text())["groups"][0]["rules"]
BOARD = json.loads((MONITORING / "grafana.json").read_text())
MANIFEST = yaml.safe_load((ROOT / "deploy" / "ray" / "raycluster.yaml").read_text())["spec"]
NAME = re.compile(r"\bbatchfile_[a-z0-9_]+")
COLONS = re.compile(r"\b\w+(?::\w+)+")  # names of recording rules
OF_HISTOGRAMS = ("_bucket", "_sum", "_count")


def sample_names(families: Iterable[Metric]) -> set[str]:
    """What may be asked for; a metric without samples yet has the name of its family."""
    return {family.name for family in families} | {sample.name for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The names that the pages of the API and of a runner have, where there is one batch's worth of everything."""
    store = MeteredStore(MemoryStore())
    ledger, settings = Ledger(store=store), load_settings()
    write_heartbeat(
        ledger, HeartbeatRecord(pool="mistral", runner_id="m", model="m", engine="echo", state="idle", started_at=0.0)
    )
    pool_status = PoolStatus(ledger, settings, StatusReader(ledger))
    page = Metrics(pool_status, store, list(settings.pools), SetAside(ledger)).render().decode()
    typed = dict(re.findall(r"^# TYPE (\S+) (\w+)$", page, re.M))
    histograms = {name + ending for name, kind in typed.items() if kind == "histogram" for ending in OF_HISTOGRAMS}
    runner = Runner(ledger, engine_factory("echo", model="m"), RunnerOptions(runner_id="m", pool="mistral"))
    process = {"process_start_time_seconds"}  # of the client library, on a runner's page
    return (
        process
        | typed.keys()
        | histograms
        | sample_names(list(RunnerCollector(runner, store, "mistral", "m").collect()))
    )


def test_every_metric_that_the_page_names_exists(known: set[str]) -> None:
    assert set(NAME.findall(PAGE.read_text() + FIGURES.read_text())) <= known


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_is_valid_promql_over_metrics_that_exist(rule: dict[str, Any], known: set[str]) -> None:
    promql_parser.parse(rule["expr"])
    names = set(NAME.findall(rule["expr"]))
    assert names <= known
    assert names or re.search(
        r"\bup\{|\bprocess_start_time_seconds\{", rule["expr"]
    )  # those of Prometheus and its library
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_steps(rule: dict[str, Any]) -> None:
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    sections = re.split(r"^#{2,3} ", (ROOT / path).read_text(), flags=re.M)[1:]
    (steps,) = (text for text in sections if anchor_of(text.partition("\n")[0]) == anchor)
    assert rule["alert"] in steps, "what you see"
    assert len(re.findall(r"^\d\. ", steps, re.M)) >= 3
    table = PAGE.read_text().split("## Alerts and what to do")[1].split("##")[0]
    (row,) = (line for line in table.splitlines() if line.startswith(f"| `{rule['alert']}` |"))
    assert row.endswith(f"(#{anchor}) |")


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def test_the_rules_that_are_recorded_are_valid_over_metrics_that_exist(known: set[str]) -> None:
    for rule in RECORDED:
        promql_parser.parse(rule["expr"])
        assert set(NAME.findall(COLONS.sub("", rule["expr"]))) <= known
        assert set(COLONS.findall(rule["expr"])) <= {one["record"] for one in RECORDED}


def test_every_panel_of_the_board_has_queries_over_metrics_and_rules_that_exist(known: set[str]) -> None:
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    assert len(panels) >= 20
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in panels:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "5m").replace("$pool", "p")
            promql_parser.parse(text)
            assert "$" not in text
            assert set(NAME.findall(COLONS.sub("", text))) <= known, panel["title"]
            assert set(COLONS.findall(text)) <= {rule["record"] for rule in RECORDED}, panel["title"]


def test_no_two_panels_of_the_board_overlap() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus's promtool")
def test_the_alerts_fire_when_they_should() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts.test.yaml"], cwd=MONITORING, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_the_page_is_valid_promql() -> None:
    queries = [text for text in re.findall(r"`([^`\n]+)`", PAGE.read_text()) if NAME.search(text)]
    assert len(queries) > 20
    for query in queries:
        promql_parser.parse(query)


def test_the_page_says_what_to_do_about_each_alert_and_about_no_other() -> None:
    section = PAGE.read_text().split("## Alerts and what to do")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize(
    ("model", "parameters", "flops", "floor_ms", "ceiling"),
    [
        ("Mistral-7B on one RTX 4090", 7.11e9, 165.2e12, 14.1, 24.8),
        ("Llama-3-70B on two A100-80 SXM", 69.5e9, 2 * 312e12, 34.1, 9.6),
        ("an 8B model on one H200", 7.5e9, 989e12, 3.1, 141),
    ],
)
def test_the_pages_figures_follow_from_its_formulas(
    model: str, parameters: float, flops: float, floor_ms: float, ceiling: float
) -> None:
    bytes_per_s = {165.2e12: 1.008e12, 2 * 312e12: 2 * 2.039e12, 989e12: 4.8e12}[flops]
    assert 2 * parameters / bytes_per_s * 1e3 == pytest.approx(floor_ms, rel=0.01)
    assert flops / (2 * parameters * 468) == pytest.approx(ceiling, rel=0.01)
    assert f"| {model} | {floor_ms} ms | {ceiling} |" in FIGURES.read_text()


def test_the_pages_prices_are_those_that_the_deployment_prints() -> None:
    prices = json.loads((ROOT / "deploy" / "runpod" / "prices.json").read_text())
    text = FIGURES.read_text()
    assert prices["date"] in text
    hours = {gpu["pool"]: gpu["price"]["serverless"] for gpu in prices["gpus"]}
    for hour in hours.values():
        assert f"${hour:g}" in text
    card, two_cards = hours["ADA_24"], 2 * hours["AMPERE_80"]
    for hour, rates in ((card, (8.03, 12.05)), (two_cards, (3.24, 4.86))):
        low, high = (hour / (3600 * rate) * 1e6 for rate in reversed(rates))
        assert f"| ${low:.0f} to ${high:.0f} |" in text


def test_the_manifest_orders_pools_that_its_worker_groups_can_hold() -> None:
    script = MANIFEST["headGroupSpec"]["template"]["spec"]["containers"][0]["lifecycle"]["postStart"]["exec"]["command"]
    words = script[-1].split("runners.ray ")[1].split("do sleep")[0].replace("\\\n", " ").split()
    plans = {plan.pool: plan for plan in order_of(parse(words), load_settings()).plans}
    groups = {group["groupName"]: group for group in MANIFEST["workerGroupSpecs"]}
    assert plans.keys() == groups.keys()
    for pool, group in groups.items():
        plan, container = plans[pool], group["template"]["spec"]["containers"][0]
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {plan.on: 1}, "one runner a pod"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(plan.num_gpus)
        assert (group["minReplicas"], group["maxReplicas"]) == (plan.bounds.minimum, plan.bounds.maximum)
        assert container["ports"][0]["containerPort"] == plan.first_port


def test_the_manifests_pods_are_pods() -> None:
    for group in (MANIFEST["headGroupSpec"], *MANIFEST["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.30", strict=True)
