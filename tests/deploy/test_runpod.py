"""deploy.sh against the fake of RunPod's v2 API: every file of deploy/runpod is accepted, and nothing is done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runpod import KEY, FakeRunpod
from runpod_cli import FOLDER, Deploy

POOLS = ["--only", "mistral", "--only", "llama"]


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_without_yes_nothing_is_changed(deploy: Deploy, runpod: FakeRunpod) -> None:
    for verb in ("plan", "apply", "destroy"):
        done = deploy(verb)
        assert done.returncode == 0, done.stdout + done.stderr
    assert runpod.calls == []


def test_a_plan_says_what_it_costs_and_what_is_not_known(deploy: Deploy) -> None:
    told = deploy("plan").stdout
    assert "create endpoint batchfile-mistral" in told
    assert "endpoint batchfile-mistral: $815 a month for always-on workers, $8,147 with all workers" in told
    assert "endpoint batchfile-llama-70b: $3,995 a month for always-on workers, $11,984 with all workers" in told
    assert (
        "its always-on workers: $2,613 on secure pods or $2,029 on community pods instead of $3,995 (--pods llama)"
        in told
    )
    assert "pod batchfile-api: $44 a month" in told
    assert "total: $4,918 a month for always-on workers" in told
    assert "(prices: RunPod's catalog, now;" in told


def test_from_nothing_everything_is_made_and_again_nothing_is_done(deploy: Deploy, runpod: FakeRunpod) -> None:
    done = deploy("apply", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    mistral, llama = (runpod.named("serverless", f"batchfile-{pool}") for pool in ("mistral", "llama-70b"))
    assert mistral["gpu"] == {"pools": ["ADA_24"], "count": 1, "minCudaVersion": "13.0"}
    assert (mistral["workers"], mistral["flashboot"]) == ({"min": 1, "max": 10}, "FLASHBOOT")
    assert llama["gpu"]["count"] == 2
    assert llama["gpu"]["excludedTypes"] == ["NVIDIA A100 80GB PCIe"]
    assert llama["workers"] == {"min": 1, "max": 3}
    assert mistral["image"] == "registry.example/acme/batchfile-mistral:1.2.3"
    assert mistral["networkVolumes"] == [runpod.named("network-volumes", "batchfile-mistral")["id"]]
    assert runpod.named("pods", "batchfile-api")["ports"] == ["8000/http"]
    for endpoint in (mistral, llama):
        (job,) = runpod.jobs[endpoint["id"]]
        assert job["input"]["prefetch"] is True
    runpod.calls.clear()
    assert "Nothing to do." in deploy("apply", "--yes").stdout
    assert runpod.calls == []


def test_only_what_changed_is_changed(deploy: Deploy, runpod: FakeRunpod, files: Path) -> None:
    assert deploy("apply", "--yes").returncode == 0
    runpod.calls.clear()
    change(files / "runpod-mistral-endpoint.json", workers={"min": 0, "max": 10})
    change(files / "runpod-llama-volume.json", size=300)
    told = deploy("apply", "--yes").stdout
    endpoint_id = runpod.named("serverless", "batchfile-mistral")["id"]
    volume_id = runpod.named("network-volumes", "batchfile-llama-70b")["id"]
    assert runpod.calls == [
        ("PATCH", f"/v2/network-volumes/{volume_id}", {"size": 300}),
        ("PATCH", f"/v2/serverless/{endpoint_id}", {"workers": {"min": 0, "max": 10}}),
    ]
    assert "2 done." in told


def test_a_new_version_reaches_the_endpoints_that_copied_their_template(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes", *POOLS).returncode == 0
    runpod.calls.clear()
    done = deploy("apply", "--yes", *POOLS, BATCHFILE_VERSION="1.2.4")
    assert done.returncode == 0, done.stdout
    assert [(method, path.split("/")[2]) for method, path, _ in runpod.calls] == [
        ("PATCH", "templates"),
        ("PATCH", "templates"),
        ("PATCH", "serverless"),
        ("PATCH", "serverless"),
    ]
    assert runpod.named("serverless", "batchfile-mistral")["image"].endswith(":1.2.4")
    runpod.calls.clear()
    assert "Nothing to do." in deploy("apply", "--yes", *POOLS, BATCHFILE_VERSION="1.2.4").stdout


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", ["/v2/network-volumes", "/v2/templates", "/v2/serverless", "/v2/pods", "/v2/ep4/run"])
def test_a_run_that_failed_half_way_is_completed_by_the_next(
    deploy: Deploy, runpod: FakeRunpod, path: str, when: str
) -> None:
    """The fake counts what it makes: the endpoint is the fourth."""
    only = ["--only", "mistral", "--only", "api"]
    runpod.fail_at = ("POST", path, when)
    failed = deploy("apply", "--yes", *only)
    assert failed.returncode == 1
    assert "run the same command again" in failed.stdout
    runpod.fail_at = None
    assert "batchfile_deploy_lock" not in [secret["name"] for secret in runpod.secrets]
    done = deploy("apply", "--yes", *only)
    assert done.returncode == 0, done.stdout
    assert {kind: len(things) for kind, things in runpod.things.items()} == dict.fromkeys(runpod.things, 1)
    (jobs,) = runpod.jobs.values()
    assert [job["input"]["prefetch"] for job in jobs] == [True]
    assert runpod.named("serverless", "batchfile-mistral")["networkVolumes"] == list(runpod.things["network-volumes"])


def test_a_model_is_asked_for_once_whatever_became_of_the_job(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes", "--only", "mistral").returncode == 0
    (jobs,) = runpod.jobs.values()
    for status in ("IN_PROGRESS", "COMPLETED", "FAILED"):
        jobs[0]["status"] = status
        assert "Nothing to do." in deploy("apply", "--yes", "--only", "mistral").stdout
    assert len(jobs) == 1


def test_destroy_removes_all_of_it_and_can_keep_the_weights(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes").returncode == 0
    kept = deploy("destroy", "--yes", "--keep-volumes")
    assert kept.returncode == 0, kept.stdout
    assert [len(things) for things in runpod.things.values()] == [2, 0, 0, 0]
    assert deploy("destroy", "--yes").returncode == 0
    assert not any(runpod.things.values())
    assert deploy("destroy", "--yes").returncode == 0


def test_destroy_that_failed_half_way_is_completed_by_the_next(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes").returncode == 0
    template_id = runpod.named("serverless", "batchfile-mistral")["id"]
    runpod.fail_at = ("DELETE", f"/v2/serverless/{template_id}", "after")
    assert deploy("destroy", "--yes").returncode == 1
    runpod.fail_at = None
    assert deploy("destroy", "--yes").returncode == 0
    assert not any(runpod.things.values())


def hand_set(runpod: FakeRunpod, kind: str, **values: str) -> dict[str, str]:
    """As somebody does in the console: the variables that the thing called batchfile-mistral has then."""
    thing = runpod.named(kind, "batchfile-mistral")
    thing["env"] = {**thing["env"], **values}
    return dict(thing["env"])


def test_a_value_that_was_set_by_hand_for_a_secret_is_left_alone(deploy: Deploy, runpod: FakeRunpod) -> None:
    only = ["--only", "mistral"]
    assert deploy("apply", "--yes", *only).returncode == 0
    runpod.calls.clear()
    env = hand_set(runpod, "serverless", AWS_ACCESS_KEY_ID="AKIA_mine", AWS_SECRET_ACCESS_KEY="mine")
    told = deploy("plan", *only).stdout
    line = "keep   endpoint batchfile-mistral: as set there (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
    assert line in told
    assert "Nothing to do." in deploy("apply", "--yes", *only).stdout
    assert runpod.calls == []
    done = deploy("apply", "--yes", *only, BATCHFILE_VERSION="1.2.4", BATCHFILE_STORE="s3://other/place")
    assert done.returncode == 0, done.stdout
    endpoint = runpod.named("serverless", "batchfile-mistral")
    assert endpoint["env"] == {**env, "BATCHFILE_STORE": "s3://other/place"}
    assert endpoint["image"].endswith(":1.2.4")
    assert "; env (BATCHFILE_STORE); as set there (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)  done" in done.stdout
    for value in ("AKIA_mine", "mine)", "s3://other"):
        assert value not in told + done.stdout


def test_a_secret_or_a_value_that_the_file_renames_is_changed(deploy: Deploy, runpod: FakeRunpod, files: Path) -> None:
    only = ["--only", "mistral"]
    assert deploy("apply", "--yes", *only).returncode == 0
    path = files / "runpod-mistral-template.json"
    env = json.loads(path.read_text())["env"]
    change(path, env={**env, "HF_TOKEN": "{{ RUNPOD_SECRET_another }}", "HF_HOME": "/elsewhere"})
    runpod.calls.clear()
    refused = deploy("apply", "--yes", *only)
    assert (refused.returncode, runpod.calls) == (2, [])
    assert "RunPod has no secret another. Nothing was changed. Create them in RunPod's console" in refused.stdout
    assert deploy("secrets", "--yes", *only, ANOTHER="hf_x").returncode == 0
    assert deploy("apply", "--yes", *only).returncode == 0
    for kind in ("templates", "serverless"):
        found = runpod.named(kind, "batchfile-mistral")["env"]
        assert (found["HF_TOKEN"], found["HF_HOME"]) == ("{{ RUNPOD_SECRET_another }}", "/elsewhere")


def test_variables_that_no_file_names_are_left_and_told(deploy: Deploy, runpod: FakeRunpod, files: Path) -> None:
    only = ["--only", "mistral"]
    path = files / "runpod-mistral-template.json"
    env = json.loads(path.read_text())["env"]
    change(path, env={**env, "BATCHFILE_WEIRD": "1"})
    assert deploy("apply", "--yes", *only).returncode == 0
    change(path, env=env)
    hand_set(runpod, "serverless", MINE="2")
    told = deploy("plan", *only).stdout
    assert "keep   template batchfile-mistral: in no file and left (BATCHFILE_WEIRD)" in told
    assert "keep   endpoint batchfile-mistral: in no file and left (BATCHFILE_WEIRD, MINE)" in told
    assert deploy("apply", "--yes", *only, BATCHFILE_STORE="s3://other/place").returncode == 0
    assert runpod.named("serverless", "batchfile-mistral")["env"]["MINE"] == "2"


def test_status_tells_workers_jobs_and_addresses(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes").returncode == 0
    told = deploy("status").stdout
    assert "1 to 10 workers (none), 0 jobs running, 1 waiting" in told
    assert f"https://{runpod.named('pods', 'batchfile-api')['id']}-8000.proxy.runpod.net" in told


def test_a_fetch_that_failed_is_told(deploy: Deploy, runpod: FakeRunpod) -> None:
    assert deploy("apply", "--yes", "--only", "mistral").returncode == 0
    ((job,),) = runpod.jobs.values()
    job["status"] = "FAILED"
    assert "0 jobs running, 0 waiting, 1 failed" in deploy("status", "--only", "mistral").stdout


@pytest.mark.parametrize("answer", [{}, {"endpoints": None}, {"endpoints": [{"name": "batchfile-mistral"}]}, []])
def test_an_answer_that_can_not_be_used_stops_it_with_a_word(
    deploy: Deploy, runpod: FakeRunpod, answer: object
) -> None:
    runpod.odd = {"/v2/serverless": answer}
    stopped = deploy("apply", "--yes", "--only", "mistral")
    assert (stopped.returncode, stopped.stderr) == (1, "")
    assert "Stopped: /serverless" in stopped.stdout
    assert runpod.calls == []


def test_a_reader_that_goes_away_is_no_error(deploy: Deploy) -> None:
    """As `| head -1` does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        assert deploy("plan", stdout=gone).stderr == ""


def test_it_needs_python_and_nothing_else(deploy: Deploy, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    done = deploy("apply", "--yes", "--only", "mistral", PYTHON=str(bare))
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_of_one_name_are_refused_by_id(deploy: Deploy, runpod: FakeRunpod) -> None:
    for thing_id in ("vol90", "vol91"):
        runpod.things["network-volumes"][thing_id] = {"id": thing_id, "name": "batchfile-mistral", "size": 50}
    refused = deploy("apply", "--yes", "--only", "mistral")
    assert refused.returncode == 2
    assert "vol91, vol90" in refused.stdout


def test_what_can_not_be_changed_is_refused_before_anything_is(deploy: Deploy, runpod: FakeRunpod, files: Path) -> None:
    assert deploy("apply", "--yes", "--only", "mistral").returncode == 0
    runpod.calls.clear()
    change(files / "runpod-mistral-volume.json", size=20)
    refused = deploy("apply", "--yes", "--only", "mistral")
    assert (refused.returncode, runpod.calls) == (2, [])
    assert "cannot shrink" in refused.stdout
    elsewhere = deploy("apply", "--yes", "--only", "mistral", RUNPOD_DATA_CENTER="EU-RO-1")
    assert (elsewhere.returncode, runpod.calls) == (2, [])
    assert "dataCenter of volume batchfile-mistral cannot be changed" in elsewhere.stdout


def test_a_field_that_the_api_does_not_know_is_named(deploy: Deploy, files: Path) -> None:
    change(files / "runpod-mistral-endpoint.json", gpuType="RTX 4090")
    failed = deploy("apply", "--yes", "--only", "mistral")
    assert failed.returncode == 1
    assert "$: additional properties 'gpuType' not allowed" in failed.stdout


def test_a_missing_key_or_variable_is_named(deploy: Deploy) -> None:
    assert "RUNPOD_API_KEY is not set" in deploy("plan", RUNPOD_API_KEY="").stdout
    environ = {name: value for name, value in os.environ.items() if name != "BATCHFILE_STORE"}
    told = subprocess.run([FOLDER / "deploy.sh"], env={**environ, "PYTHON": sys.executable}, capture_output=True)
    assert b"needs the variable" in told.stdout
    wrong = deploy("plan", RUNPOD_API_KEY="rpa_wrong")
    assert (wrong.returncode, "401" in wrong.stdout) == (1, True)
    broken = deploy("plan", RUNPOD_API_KEY="rpa_\nwrong")
    assert (broken.returncode, broken.stderr) == (1, "")
    assert "RUNPOD_API_KEY contains characters that no key has" in broken.stdout
    assert deploy("plan", RUNPOD_API_KEY=f"{KEY}\n").returncode == 0


def test_no_value_of_env_is_printed(deploy: Deploy, runpod: FakeRunpod, files: Path) -> None:
    assert deploy("apply", "--yes", "--only", "mistral").returncode == 0
    change(files / "runpod-mistral-template.json", env={"POOL": "mistral", "HF_TOKEN": "hf_secret"})
    told = deploy("plan", "--only", "mistral").stdout
    assert "change template batchfile-mistral: env (HF_TOKEN)" in told
    assert "hf_secret" not in told
