"""KEDA's and KubeRay's kinds, whose definitions no cluster checks here: each field is one that we know they have.

A field that is not listed is not wrong, it is not looked up yet: read the operator's reference, then list it.
"""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
VERSION = "1.33"
META = {"name": str}
POD = object  # what Kubernetes' own schema checks

# A type: a value of it. A dict: an object of these fields. A list: a list of such.
KEDA = {
    "TriggerAuthentication": {"secretTargetRef": [{"parameter": str, "name": str, "key": str}]},
    "ScaledJob": {
        "pollingInterval": int,
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "successfulJobsHistoryLimit": int,
        "failedJobsHistoryLimit": int,
        "scalingStrategy": {"strategy": str},
        "rollout": {"strategy": str},
        "triggers": [
            {
                "type": str,
                "metadata": {
                    "url": str,
                    "valueLocation": str,
                    "activationTargetValue": str,
                    "targetValue": str,
                    "authMode": str,
                },
                "authenticationRef": {"name": str},
            }
        ],
        "jobTargetRef": {"backoffLimit": int, "template": POD},
    },
}
NEEDED = {"ScaledJob": {"triggers", "jobTargetRef"}, "TriggerAuthentication": {"secretTargetRef"}}
RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int},
    "headGroupSpec": {"rayStartParams": {"num-cpus": str, "dashboard-host": str}, "template": POD},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": {"resources": str},
            "template": POD,
        }
    ],
}


def unknown(where: str, given: Any, known: Any) -> list[str]:
    if isinstance(known, dict):
        if not isinstance(given, dict):
            return [f"{where} is no object"]
        found = [f"{where}.{name} is not a field that we know" for name in given if name not in known]
        return found + [
            one for name in given.keys() & known.keys() for one in unknown(f"{where}.{name}", given[name], known[name])
        ]
    if isinstance(known, list):
        if not isinstance(given, list):
            return [f"{where} is no list"]
        return [one for n, value in enumerate(given) for one in unknown(f"{where}[{n}]", value, known[0])]
    is_right = isinstance(given, known) and not (known is int and isinstance(given, bool))
    return [] if is_right else [f"{where} is {given!r}, which is no {known.__name__}"]


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def test_keda_knows_every_field_and_value() -> None:
    found = documents("kubernetes/overlays/keda/scaledjobs.yaml")
    assert {one["kind"] for one in found} == set(KEDA)
    for one in found:
        kind, name = one["kind"], one["metadata"]["name"]
        head = {"apiVersion": str, "kind": str, "metadata": META, "spec": KEDA[kind]}
        assert unknown(name, one, head) == []
        assert one["apiVersion"] == "keda.sh/v1alpha1"
        assert NEEDED[kind] <= set(one["spec"])
        if kind == "ScaledJob":
            assert one["spec"]["scalingStrategy"]["strategy"] in {"default", "custom", "accurate", "eager"}
            assert one["spec"]["rollout"]["strategy"] in {"default", "gradual"}
            (trigger,) = one["spec"]["triggers"]
            assert trigger["type"] == "metrics-api"
            assert {"url", "valueLocation", "targetValue"} <= set(trigger["metadata"])
            assert trigger["metadata"]["authMode"] in {"apiKey", "basic", "bearer", "tls"}


def test_kuberay_knows_every_field_and_kubernetes_every_pod_of_the_cluster() -> None:
    (cluster,) = documents("ray/raycluster.yaml")
    head = {"apiVersion": str, "kind": str, "metadata": META, "spec": RAY_CLUSTER}
    assert unknown("RayCluster", cluster, head) == []
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert spec["autoscalerOptions"]["version"] in {"v1", "v2"}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group["groupName"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)
        assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"minReplicas": 1}, "j.minReplicas is not a field that we know"),
        ({"pollingInterval": "15"}, "j.pollingInterval is '15', which is no int"),
        ({"triggers": [{"metadata": {"targetValue": 5}}]}, "j.triggers[0].metadata.targetValue is 5, which is no str"),
        ({"triggers": {}}, "j.triggers is no list"),
        ({"rollout": "gradual"}, "j.rollout is no object"),
    ],
)
def test_a_field_or_value_of_another_kind_is_named(fields: dict[str, Any], told: str) -> None:
    assert unknown("j", fields, KEDA["ScaledJob"]) == [told]
