"""deploy.sh in an account as they are: a small quota, many resources, 429s, two people, a console, and prices."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_runpod import KEY, FakeRunpod
from runpod_cli import Deploy

LOCK = "batchfile_deploy_lock"


def created(runpod: FakeRunpod) -> list[str]:
    return [
        f"{path.split('/')[2]} {body['name']}"
        for method, path, body in runpod.calls
        if method == "POST" and "name" in body
    ]


def others(runpod: FakeRunpod) -> dict[str, set[str]]:
    """Five resources of each kind that are no concern of a deployment; returns all IDs."""
    bodies: dict[str, dict[str, Any]] = {
        "network-volumes": {"size": 10, "dataCenter": "US-KS-2"},
        "templates": {"image": "x"},
        "pods": {"image": "x", "cpu": {"id": "cpu5c", "vcpuCount": 2}},
        "serverless": {
            "image": "x",
            "type": "QUEUE",
            "gpu": {"pools": ["ADA_24"]},
            "workers": {"max": 0},
            "scaling": {"type": "REQUEST_COUNT", "requestCount": 1},
        },
    }
    for kind, body in bodies.items():
        for number in range(5):
            runpod.answer("POST", f"/v2/{kind}", {**body, "name": f"mine-{number}"}, f"Bearer {KEY}")
    return {kind: set(things) for kind, things in runpod.things.items()}


@pytest.mark.slow
def test_a_small_busy_account_from_nothing_to_running_and_back(deploy: Deploy, runpod: FakeRunpod, files: Path) -> None:
    mine = others(runpod)
    runpod.quota, runpod.page_num = 5, 2

    def run(*arguments: str) -> str:
        done = deploy(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        names = [(kind, thing["name"]) for kind, things in runpod.things.items() for thing in things.values()]
        assert len(names) == len(set(names)), "nothing is double"
        assert LOCK not in [secret["name"] for secret in runpod.secrets]
        return str(done.stdout)

    runpod.busy_every = 3
    told = run("apply", "--fit", "--yes")
    assert "fit    batchfile-mistral: max = 4 instead of 10" in told
    assert "fit    batchfile-llama-70b: max = 1 instead of 3" in told
    assert runpod.num_busy > 5
    runpod.busy_every = 0
    runpod.calls.clear()
    assert "Nothing to do." in run("apply", "--fit", "--yes")
    assert runpod.calls == []
    path = files / "runpod-llama-volume.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": 300}))
    run("apply", "--fit", "--yes")
    assert [(method, body) for method, _, body in runpod.calls] == [("PATCH", {"size": 300})]
    run("destroy", "--keep-volumes", "--yes")
    runpod.fail_at = ("POST", "/v2/serverless", "after")
    assert deploy("apply", "--fit", "--yes").returncode == 1
    runpod.fail_at = None
    run("apply", "--fit", "--yes")
    run("destroy", "--yes")
    assert {kind: set(things) for kind, things in runpod.things.items()} == mine


def test_a_quota_that_does_not_suffice_stops_before_anything_is_made(deploy: Deploy, runpod: FakeRunpod) -> None:
    runpod.quota = 5
    refused = deploy("apply", "--yes")
    assert (refused.returncode, runpod.calls) == (2, [])
    needs = "need 13 workers (batchfile-llama-70b 3, batchfile-mistral 10), 5 are allowed (the account's quota)"
    assert needs in refused.stdout
    assert "--fit" in refused.stdout
    planned = deploy("plan")
    assert (planned.returncode, needs in planned.stdout, "Cost:" in planned.stdout) == (2, True, True)
    assert deploy("apply", "--yes", "--only", "api").returncode == 0
    runpod.quota = 1
    refused = deploy("apply", "--fit", "--yes")
    assert (refused.returncode, "--fit" in refused.stdout) == (2, False)
    runpod.odd = {"/v2/account/limits": {}}
    assert "RunPod's default, because the quota cannot be read" in deploy("plan").stdout
    assert deploy("plan", "--quota", "13").returncode == 0


def test_workers_of_other_endpoints_count_and_existing_ones_stay(deploy: Deploy, runpod: FakeRunpod) -> None:
    runpod.quota = 13
    assert deploy("apply", "--yes", "--only", "llama").returncode == 0
    runpod.quota = 12
    assert "other endpoints have 3" in deploy("apply", "--yes", "--only", "mistral").stdout
    assert deploy("apply", "--yes", "--only", "llama").returncode == 0
    assert deploy("apply", "--fit", "--yes", "--only", "mistral").returncode == 0
    assert runpod.named("serverless", "batchfile-mistral")["workers"]["max"] == 9


def test_workers_are_given_back_before_others_are_asked_for(deploy: Deploy, runpod: FakeRunpod, files: Path) -> None:
    runpod.quota = 13
    assert deploy("apply", "--yes").returncode == 0
    for label, num in (("mistral", 4), ("llama", 9)):
        path = files / f"runpod-{label}-endpoint.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "workers": {"min": 1, "max": num}}))
    done = deploy("apply", "--yes")
    assert done.returncode == 0, done.stdout


def test_what_costs_most_is_made_last(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes", "--pods", "llama").returncode == 0
    kinds = [name.split()[0] for name in created(runpod)]
    assert kinds == ["templates"] * 2 + ["network-volumes"] * 2 + ["pods"] * 2 + ["serverless"] * 2 + ["pods"]
    runpod.things["serverless"].clear()
    runpod.calls.clear()
    assert deploy("apply", "--yes").returncode == 0
    assert created(runpod) == ["serverless batchfile-mistral", "serverless batchfile-llama-70b"]


def test_always_on_workers_move_to_pods_and_back(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes", "--only", "llama").returncode == 0
    option = ("--only", "llama", "--pods", "llama")
    told = deploy("plan", *option).stdout
    assert "pod batchfile-llama-70b-pod1: $2,613 a month" in told
    assert "endpoint batchfile-llama-70b: $0 a month for always-on workers" in told
    assert deploy("apply", "--yes", *option).returncode == 0
    pod, endpoint = (
        runpod.named(kind, f"batchfile-llama-70b{name}") for kind, name in (("pods", "-pod1"), ("serverless", ""))
    )
    assert endpoint["workers"] == {"min": 0, "max": 3}
    assert pod["gpu"] == {"id": "NVIDIA A100-SXM4-80GB", "count": 2, "minCudaVersion": "13.0"}
    assert (pod["image"], pod["env"], pod["cmd"]) == (
        endpoint["image"],
        endpoint["env"],
        ["runners", "--pool", "llama-70b"],
    )
    (volume,) = runpod.things["network-volumes"]
    assert pod["mounts"] == {"network": [{"volumeId": volume, "path": "/runpod-volume"}]}
    assert "Nothing to do." in deploy("apply", "--yes", *option).stdout
    assert f"pod batchfile-llama-70b-pod1: {pod['id']}: RUNNING" in deploy("status", "--only", "llama").stdout
    back = deploy("apply", "--yes", "--only", "llama")
    assert "remove pod batchfile-llama-70b-pod1  done" in back.stdout
    assert (runpod.things["pods"], endpoint["workers"]["min"]) == ({}, 1)
    assert deploy("apply", "--yes", *option).returncode == 0
    assert deploy("destroy", "--yes", "--only", "llama").returncode == 0
    assert not any(runpod.things.values())
    wrong = deploy("plan", "--only", "mistral", "--pods", "llama")
    assert (wrong.returncode, "--pods llama: its files have no endpoint" in wrong.stdout) == (2, True)


def test_of_two_at_once_one_is_refused(deploy: Deploy, runpod: FakeRunpod) -> None:
    second: list[subprocess.CompletedProcess[str]] = []

    def taking(method: str, path: str) -> None:
        if (method, path) == ("POST", "/v2/serverless") and not second:
            second.append(deploy("apply", "--yes", "--only", "mistral"))

    runpod.taking = taking
    first = deploy("apply", "--yes", "--only", "mistral")
    assert (first.returncode, second[0].returncode) == (0, 2), first.stdout
    assert "another deployment is changing this account" in second[0].stdout
    assert "Nothing to do." in deploy("apply", "--yes", "--only", "mistral").stdout
    assert {kind: len(things) for kind, things in runpod.things.items()} == {
        "network-volumes": 1,
        "templates": 1,
        "serverless": 1,
        "pods": 0,
    }


def test_one_that_was_killed_is_in_the_way_for_half_an_hour(deploy: Deploy, runpod: FakeRunpod) -> None:
    runpod.answer(
        "POST", "/v2/account/secrets", {"name": LOCK, "value": "x", "description": "elsewhere"}, f"Bearer {KEY}"
    )
    refused = deploy("apply", "--yes", "--only", "api")
    assert (refused.returncode, runpod.calls) == (2, [])
    assert (
        f"(elsewhere). When it has ended, run the same command again. If it was killed, delete the secret {LOCK}"
        in (refused.stdout)
    )
    runpod.secrets[-1]["createdAt"] = (datetime.now(UTC) - timedelta(minutes=31)).isoformat()
    assert deploy("apply", "--yes", "--only", "api").returncode == 0
    runpod.fail_at = ("POST", "/v2/account/secrets", "after")
    assert deploy("destroy", "--yes", "--only", "api").returncode == 0
    assert LOCK not in [secret["name"] for secret in runpod.secrets]


def test_an_endpoint_that_somebody_deleted_is_made_again(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes", "--only", "mistral").returncode == 0
    (endpoint_id,) = runpod.things["serverless"]
    runpod.answer("DELETE", f"/v2/serverless/{endpoint_id}", {}, f"Bearer {KEY}")
    assert "create endpoint batchfile-mistral" in deploy("plan", "--only", "mistral").stdout
    assert deploy("apply", "--yes", "--only", "mistral").returncode == 0
    assert (
        len(runpod.things["serverless"])
        == len(runpod.things["templates"])
        == len(runpod.things["network-volumes"])
        == 1
    )


def test_a_data_center_without_the_gpu_stops_before_anything_is_made(deploy: Deploy, runpod: FakeRunpod) -> None:
    runpod.data_centers = ["EU-RO-1"]
    refused = deploy("apply", "--yes", "--only", "llama")
    assert (refused.returncode, runpod.calls) == (2, [])
    assert (
        "US-KS-2 has no 2 x NVIDIA A100-SXM4-80GB for serverless now; set RUNPOD_DATA_CENTER to one that has: EU-RO-1"
        in (refused.stdout)
    )
    runpod.data_centers = []
    assert "none has" in deploy("plan", "--only", "llama").stdout


def test_without_a_catalog_the_frozen_prices_are_named(deploy: Deploy, runpod: FakeRunpod) -> None:
    runpod.odd = {"/v2/catalog/gpus": {}}
    told = deploy("plan").stdout
    assert "endpoint batchfile-mistral: $815 a month" in told
    assert "$2,613 on secure pods or $2,029 on community pods" in told
    assert "total, without some pods: $4," in told
    assert "(prices: prices.json of 2026-08-20, because RunPod's catalog cannot be read: /catalog/gpus" in told


def test_secrets_are_made_once_from_variables_and_never_shown(deploy: Deploy, runpod: FakeRunpod) -> None:
    runpod.secrets = [secret for secret in runpod.secrets if "s3" not in secret["name"]]
    assert "no secret batchfile_s3_key_id, batchfile_s3_secret. Nothing was changed" in deploy("apply", "--yes").stdout
    missing = deploy("secrets", "--yes", BATCHFILE_S3_KEY_ID="AKIA_x")
    assert missing.returncode == 2
    assert "set BATCHFILE_S3_SECRET to the values" in missing.stdout
    values = {"BATCHFILE_S3_KEY_ID": "AKIA_x", "BATCHFILE_S3_SECRET": "s3cret\n", "HUGGINGFACE_TOKEN": "other"}
    assert "create secret batchfile_s3_secret\n" in deploy("secrets", **values).stdout
    assert "s3" not in "".join(secret["name"] for secret in runpod.secrets)
    done = deploy("secrets", "--yes", **values)
    assert done.returncode == 0, done.stdout
    assert "keep   secret huggingface_token" in done.stdout
    found = {secret["name"]: secret["value"] for secret in runpod.secrets}
    assert (found["batchfile_s3_key_id"], found["batchfile_s3_secret"]) == ("AKIA_x", "s3cret")
    assert found["huggingface_token"] == "x"
    assert "AKIA_x" not in done.stdout
    assert deploy("apply", "--yes").returncode == 0


def test_a_key_without_secrets_can_deploy_alone(deploy: Deploy, runpod: FakeRunpod) -> None:
    runpod.forbidden = ("/v2/account/",)
    done = deploy("apply", "--yes", "--only", "api")
    assert done.returncode == 0, done.stdout
    assert "the key cannot use secrets" in done.stdout
    assert deploy("secrets", "--only", "api").returncode == 1


def test_a_name_that_runpod_reserves_is_refused(deploy: Deploy, files: Path) -> None:
    path = files / "runpod-scaler-pod.json"
    path.write_text(path.read_text().replace("batchfile_scaler_key", "runpod_key"))
    refused = deploy("secrets", "--yes", "--only", "scaler", RUNPOD_KEY="x")
    assert (refused.returncode, "RunPod reserves names" in refused.stdout) == (2, True)
