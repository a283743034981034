"""The manifests, rendered by kustomize and checked offline: Kubernetes' own schemas, and what our code promises."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helpers.fleet import STOP_MARGIN_S
from tests.helpers.ledger import Limits
from tests.helpers.service import schemas
from tests.helpers.settings import DEFAULT_POOLS

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ["base", "overlays/keda", "overlays/echo"]
VERSION = "1.33"
CUSTOM = {"ScaledJob", "TriggerAuthentication"}

Json = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Json]:
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", ROOT / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def of_kind(overlay: str, kind: str) -> dict[str, Json]:
    return {one["metadata"]["name"]: one for one in rendered(overlay) if one["kind"] == kind}


def pods(overlay: str) -> Iterator[tuple[str, Json]]:
    """The template of each pod, by the name of what makes it."""
    for name, one in of_kind(overlay, "Deployment").items():
        yield name, one["spec"]["template"]
    for name, one in of_kind(overlay, "ScaledJob").items():
        yield name, one["spec"]["jobTargetRef"]["template"]


def pool_of(container: Json) -> str:
    args: list[str] = container["args"]
    return args[args.index("--pool") + 1]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_fits_the_schema_of_its_kind(overlay: str) -> None:
    for one in rendered(overlay):
        assert one["metadata"].get("namespace") == "batchfile" or one["kind"] == "Namespace"
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, VERSION, strict=True)
    for name, one in of_kind(overlay, "ScaledJob").items():
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": one["spec"]["jobTargetRef"]}
        kubernetes_validate.validate(job, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_pod_names_is_there(overlay: str) -> None:
    for name, pod in pods(overlay):
        spec = pod["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        claims = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if len(volume) > 1 and "persistentVolumeClaim" in volume
        }
        assert claims <= set(of_kind(overlay, "PersistentVolumeClaim")), name
        assert spec["enableServiceLinks"] is False, name
        for container in spec["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted == set(volumes), name
            config, secret = container["envFrom"]
            assert config["configMapRef"]["name"] in of_kind(overlay, "ConfigMap"), name
            assert secret["secretRef"]["name"] == ("batchfile-api" if name == "api" else "batchfile-runner")
            assert not container["image"].endswith(":latest")
            ports = {port["name"] for port in container["ports"]}
            probes = [probe for key, probe in container.items() if key.endswith("Probe")]
            assert probes
            assert {probe["httpGet"]["port"] for probe in probes} <= ports, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stopping_runner_has_the_time_to_give_back_what_it_holds(overlay: str) -> None:
    needed_s = Limits().grace_s + STOP_MARGIN_S
    runners = [(name, pod) for name, pod in pods(overlay) if name != "api"]
    assert {name for name, _ in runners} == {"mistral", "llama"}
    for name, pod in runners:
        assert pod["spec"]["terminationGracePeriodSeconds"] > needed_s, name


@pytest.mark.parametrize("overlay", ["base", "overlays/keda"])
def test_a_runner_has_the_gpus_and_the_shared_memory_of_its_pool(overlay: str) -> None:
    for name, pod in pods(overlay):
        if name == "api":
            continue
        (container,) = pod["spec"]["containers"]
        wanted = DEFAULT_POOLS[pool_of(container)].get("tensor_parallel_size", 1)
        assert container["resources"]["limits"]["nvidia.com/gpu"] == wanted
        assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_budget_covers_pods_that_are_there_and_lets_a_node_be_drained(overlay: str) -> None:
    deployments = of_kind(overlay, "Deployment")
    budgets = of_kind(overlay, "PodDisruptionBudget")
    assert set(budgets) == set(deployments)
    for name, budget in budgets.items():
        labels = deployments[name]["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        at_least = budget["spec"].get("minAvailable", 0)
        assert at_least < deployments[name]["spec"]["replicas"] or "maxUnavailable" in budget["spec"]
        for job in of_kind(overlay, "ScaledJob").values():
            others = job["spec"]["jobTargetRef"]["template"]["metadata"]["labels"]
            assert not budget["spec"]["selector"]["matchLabels"].items() <= others.items()


def test_keda_asks_the_scale_route_for_a_number_that_it_answers() -> None:
    jobs = of_kind("overlays/keda", "ScaledJob")
    assert {name: (job["spec"]["minReplicaCount"], job["spec"]["maxReplicaCount"]) for name, job in jobs.items()} == {
        "mistral": (0, 10),
        "llama": (0, 2),
    }
    for job in jobs.values():
        (trigger,) = job["spec"]["triggers"]
        (container,) = job["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
        asked = trigger["metadata"]
        assert all(isinstance(value, str) for value in asked.values())
        assert asked["url"] == f"http://api.batchfile.svc/api/pools/{pool_of(container)}/scale"
        assert asked["valueLocation"] in schemas.Scale.__annotations__
        assert trigger["authenticationRef"]["name"] in of_kind("overlays/keda", "TriggerAuthentication")
    (service,) = of_kind("overlays/keda", "Service")
    assert service == "api"


def test_no_job_that_ends_when_idle_is_kept_at_a_number() -> None:
    """KEDA would start it again and again, and leave it out of what it counts. What stands is a Deployment."""
    for name, job in of_kind("overlays/keda", "ScaledJob").items():
        (container,) = job["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
        assert "--idle-exit" in container["args"], name
        assert job["spec"]["minReplicaCount"] == 0, name
    standing = of_kind("overlays/keda", "Deployment")
    assert set(standing) == {"api", "llama"}
    (llama,) = standing["llama"]["spec"]["template"]["spec"]["containers"]
    assert "--idle-exit" not in llama["args"]
    (trigger,) = of_kind("overlays/keda", "ScaledJob")["llama"]["spec"]["triggers"]
    assert (trigger["metadata"]["activationTargetValue"], trigger["metadata"]["targetValue"]) == ("200", "400")


def test_the_echo_overlay_asks_for_no_gpu_and_no_weights() -> None:
    assert of_kind("overlays/echo", "PersistentVolumeClaim") == {}
    for name, pod in pods("overlays/echo"):
        (container,) = pod["spec"]["containers"]
        assert container["image"] == "batchfile-api:0.2"
        assert "nvidia.com/gpu" not in str(container)
        assert name == "api" or "--engine=echo" in container["args"]
