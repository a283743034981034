"""Every file that deploys something is linted or validated, offline: nothing here needs a network or an engine."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_runpod import KEY, FakeRunpod, Problem

from tests.helpers.settings import DEFAULT_POOLS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
YAMLS = sorted(path for path in DEPLOY.rglob("*.yaml") if path.name != ".yamllint.yaml")
JSONS = sorted(DEPLOY.rglob("*.json"))
IMAGES = sorted((ROOT / "containers").glob("*/Dockerfile"))
ON_VLLM = [ROOT / "containers/mistral/Dockerfile", ROOT / "containers/llama/Dockerfile", DEPLOY / "ray/Dockerfile"]
NOT_OURS = {".venv", "node_modules", ".git", ".cache"}
DAY_MS = 24 * 3600 * 1000
ENDPOINTS = sorted(DEPLOY.glob("runpod/*-endpoint.json"))


def shells() -> list[Path]:
    files = [path for folder in ("deploy", ".ci") for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if path.read_bytes()[:2] == b"#!" and b"sh" in path.read_bytes().split(b"\n")[0]]


def dockerfiles() -> list[Path]:
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS]
        found += [
            Path(folder, name) for name in names if re.fullmatch(r"(.+\.)?Dockerfile(\.(?!dockerignore).+)?", name)
        ]
    return sorted(found)


def passes(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_yaml_is_clean() -> None:
    assert YAMLS
    passes(BIN / "yamllint", "--strict", "-c", DEPLOY / ".yamllint.yaml", *YAMLS)


def test_shell_scripts_are_clean() -> None:
    found = shells()
    assert DEPLOY / "runpod" / "deploy.sh" in found
    passes(BIN / "shellcheck", *found)


def test_dockerfiles_are_clean() -> None:
    found = dockerfiles()
    assert {*IMAGES, *ON_VLLM} <= set(found)
    passes(BIN / "hadolint", "--failure-threshold", "style", *found)


def test_json_is_json() -> None:
    for path in JSONS:
        assert isinstance(read(path), dict), path


def test_the_compose_file_fits_its_schema() -> None:
    passes(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_no_service_asks_a_registry_for_our_image_or_reports_to_others() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours = {name: one for name, one in services.items() if one["image"] == "batchfile-api"}
    assert [name for name, one in ours.items() if "build" in one] == ["api"]
    assert all(one.get("pull_policy") == "never" for name, one in ours.items() if name != "api")
    assert "-master.telemetry=false" in services["store"]["command"].split()


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.parent.name)
def test_an_image_is_pinned_has_a_health_check_and_carries_no_weights(path: Path) -> None:
    text = path.read_text()
    (base,) = re.findall(r"^FROM (\S+)$", text, re.M)
    assert re.search(r":[\w.-]*\d", base), f"{base} is not pinned"
    assert ":latest" not in base
    assert "HEALTHCHECK" in text
    assert "STOPSIGNAL SIGTERM" in text
    copied = [source for sources in re.findall(r"^COPY (.+) \S+$", text, re.M) for source in sources.split()]
    _, *ignored = Path(f"{path}.dockerignore").read_text().splitlines()  # after a comment
    assert all((ROOT / source).exists() for source in copied)
    assert ignored[0] == "*"
    assert {line for line in ignored if line.startswith("!")} == {f"!{source}" for source in copied}


def test_the_api_image_runs_as_a_user_of_its_own() -> None:
    assert re.search(r"^USER \d+$", (ROOT / "containers/api/Dockerfile").read_text(), re.M)


@pytest.mark.parametrize("path", ON_VLLM, ids=lambda path: path.parent.name)
def test_what_goes_onto_vllms_image_is_installed_only_under_the_constraints_of_what_is_there(path: Path) -> None:
    text = path.read_text()
    (install,) = re.findall(r"pip install[^\n]*", text)
    assert "--constraint /tmp/kept.txt --constraint /tmp/lacks.txt" in install
    before, after = text.split(install)
    assert "python3 /opt/kept.py > /tmp/kept.txt" in before
    assert "python3 /opt/kept.py --check /tmp/kept.txt" in after
    assert "python3 /opt/kept.py --lacks /opt/constraints.txt > /tmp/lacks.txt" in before
    assert "COPY containers/kept.py constraints.txt /opt/" in text or path.parent.name == "ray"
    assert "/opt/" not in "".join(re.findall(r"\brm .*", text))


def test_the_ray_of_the_image_is_the_ray_of_the_cluster() -> None:
    (ray,) = re.findall(r"^ARG RAY=(\S+)$", (DEPLOY / "ray/Dockerfile").read_text(), re.M)
    assert f'rayVersion: "{ray}"' in (DEPLOY / "ray/raycluster.yaml").read_text()
    assert f"ray=={ray}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_images_have_the_vllm_and_the_packages_that_were_tested() -> None:
    (vllm,) = re.findall(r"^vllm==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    for path in (ROOT / "containers/mistral/Dockerfile", ROOT / "containers/llama/Dockerfile"):
        assert f"FROM vllm/vllm-openai:v{vllm}\n" in path.read_text()
    (install,) = re.findall(r"pip install[^\n]*", (ROOT / "containers/api/Dockerfile").read_text())
    assert "--constraint constraints.txt" in install


def test_what_is_installed_is_all_there_and_what_moved_is_named(tmp_path: Path) -> None:
    kept = ROOT / "containers" / "kept.py"
    listed = subprocess.run([sys.executable, kept], capture_output=True, text=True, check=True).stdout
    (tmp_path / "kept").write_text(listed)
    passes(sys.executable, kept, "--check", tmp_path / "kept")
    (tmp_path / "kept").write_text(listed + "torch==0.0.1\n")
    moved = subprocess.run([sys.executable, kept, "--check", tmp_path / "kept"], capture_output=True, text=True)
    assert (moved.returncode, "torch==0.0.1" in moved.stderr) == (1, True)


def test_what_an_image_lacks_is_constrained_and_what_it_has_is_not(tmp_path: Path) -> None:
    (tmp_path / "constraints").write_text("# a comment\n\npytest==0.0.1\nno-such-thing==1.0; python_version < '3.14'\n")
    command = [sys.executable, ROOT / "containers" / "kept.py", "--lacks", tmp_path / "constraints"]
    lacks = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert lacks == "no-such-thing==1.0; python_version < '3.14'\n"


def put_distribution(folder: Path, name: str, version: str) -> str:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


def test_of_two_versions_of_one_name_the_one_that_is_imported_is_kept(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("kept", ROOT / "containers" / "kept.py")
    assert spec is not None
    assert spec.loader is not None
    kept = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kept)
    first = put_distribution(tmp_path / "first", "Some_Thing", "2.0+cu130")
    second = put_distribution(tmp_path / "second", "some.thing", "1.0")
    assert kept.installed([first, second]) == {"some-thing==2.0+cu130"}
    assert kept.installed([second, first]) == {"some-thing==1.0"}


def test_what_lies_elsewhere_on_the_path_is_not_kept(tmp_path: Path) -> None:
    """As the operating system's packages do."""
    environ = {**os.environ, "PYTHONPATH": put_distribution(tmp_path, "of-the-system", "1.0")}
    command = [sys.executable, ROOT / "containers" / "kept.py"]
    listed = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
    assert "of-the-system==1.0" not in listed
    assert len({line.partition("==")[0] for line in listed}) == len(listed) > 1


@pytest.mark.parametrize("path", ENDPOINTS, ids=lambda path: path.name)
def test_an_endpoint_has_its_template_and_volume_and_fits_its_pool(path: Path) -> None:
    endpoint = read(path)
    template = read(path.with_name(path.name.replace("endpoint", "template")))
    volume = read(path.with_name(path.name.replace("endpoint", "volume")))
    assert endpoint["templateId"] == template["name"]
    assert endpoint["networkVolumes"] == [volume["name"]]
    pool = template["env"]["POOL"]
    assert endpoint["name"] == f"batchfile-{pool}"
    assert endpoint["gpu"]["count"] == DEFAULT_POOLS[pool].get("tensor_parallel_size", 1)
    assert not endpoint["workers"]["min"] or endpoint["timeout"] == DAY_MS, "a standing job's end reloads the model"
    assert all("SECRET" in value for name, value in template["env"].items() if "TOKEN" in name or "ACCESS" in name)


def test_the_fake_refuses_fields_and_values_that_runpod_refuses() -> None:
    good = {**read(ENDPOINTS[0]), "templateId": "tpl1", "networkVolumes": []}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"gpuTypeIds": ["NVIDIA GeForce RTX 4090"]}, "'gpuTypeIds' not allowed"),
        ({"workersMin": 1}, "'workersMin' not allowed"),
        ({"workers": {"min": 1, "idleTimeout": 5}}, "idleTimeout does not apply"),
        ({"scaling": {"type": "REQUEST_COUNT", "queueDelay": 4}}, "'queueDelay' not allowed"),
        ({"flashboot": True}, "$.flashboot: got bool"),
        ({"gpu": {"pools": ["RTX_4090"]}}, "no GPU pool RTX_4090"),
        ({"networkVolumes": ["batchfile-mistral"]}, "not found"),
        ({"type": "LOAD_BALANCER", "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}}, "REQUEST_COUNT"),
        ({"env": {"PORT": 8000}}, "$.env: {'PORT': 8000} is not allowed"),
        ({"gpu": {"pools": ["ADA_24"], "count": 0}}, "$.gpu.count: 0 is not allowed"),
        ({"gpu": {"pools": []}}, "$.gpu.pools: [] is not allowed"),
        ({"gpu": {"pools": ["ADA_24"], "minCudaVersion": "13.0", "allowedCudaVersions": ["13.0"]}}, "exclusive"),
        ({"gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA GeForce RTX 4090"]}}, "no GPU type is left"),
        ({"disk": 0}, "$.disk: 0 is not allowed"),
        ({"name": ""}, "$.name: '' is not allowed"),
        ({"templateId": ""}, "$.templateId: '' is not allowed"),
        ({"workers": {"min": -1}}, "$.workers.min: -1 is not allowed"),
        ({"workers": {"max": 21}}, "must not exceed your workers quota (20)"),
        ({"scaling": {"type": "REQUEST_COUNT", "requestCount": 0}}, "requestCount: 0 is not allowed"),
        ({"args": "a", "cmd": ["b"]}, "args and cmd describe different commands"),
    ]
    fake = FakeRunpod()
    template = {"name": "t", "image": "i", "serverless": True}
    fake.answer("POST", "/v2/templates", template, f"Bearer {KEY}")
    for fields, reason in wrong:
        with pytest.raises(Problem) as caught:
            fake.answer("POST", "/v2/serverless", {**good, **fields}, f"Bearer {KEY}")
        assert reason in json.dumps(caught.value.body), fields
    assert fake.answer("POST", "/v2/serverless", good, f"Bearer {KEY}")[0] == 201


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cpu": {"id": "cpu5c", "vcpuCount": 1}}, "$.cpu.vcpuCount: 1 is not allowed"),
        ({"cpu": {"id": "cpu5c", "vcpuCount": 6}}, "$.cpu.vcpuCount: 6 is not allowed"),
        ({"cpu": {"id": "", "vcpuCount": 2}}, "$.cpu.id: '' is not allowed"),
        ({"gpu": {"id": "NVIDIA GeForce RTX 4090"}}, "exactly one of gpu and cpu"),
        ({"cloud": "secure"}, "$.cloud: 'secure' is not allowed"),
        ({"templateId": "tpl1", "name": "n"}, "a serverless template"),
        ({"image": None}, "$.image: got NoneType"),
        ({"mounts": {"network": [{"volumeId": "a", "path": "/a"}, {"volumeId": "b", "path": "/b"}]}}, "maxItems"),
        ({"mounts": {"persistent": {"size": 10, "path": "/a"}}}, "persistent mounts are for pods with a GPU"),
        ({"mounts": {"network": [{"volumeId": "a"}]}}, "missing property 'path'"),
    ],
)
def test_the_fake_refuses_pods_that_runpod_refuses(fields: dict[str, Any], reason: str) -> None:
    fake = FakeRunpod()
    template = {"name": "t", "image": "i", "serverless": True}
    fake.answer("POST", "/v2/templates", template, f"Bearer {KEY}")
    good = {"name": "p", "image": "i", "cpu": {"id": "cpu5c", "vcpuCount": 2}}
    with pytest.raises(Problem) as caught:
        fake.answer("POST", "/v2/pods", {**good, **fields}, f"Bearer {KEY}")
    assert reason in json.dumps(caught.value.body), fields
    del good["image"]
    with pytest.raises(Problem, match="validation failed"):
        fake.answer("POST", "/v2/pods", good, f"Bearer {KEY}")


def test_scripts_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in IMAGES:
        for group in re.findall(r'"\.\[([\w,]+)\]"', path.read_text()):
            assert set(group.split(",")) <= set(extras), path


def test_every_link_of_the_walk_through_leads_somewhere() -> None:
    pages = [*DEPLOY.rglob("README.md"), *(ROOT / "containers").rglob("README.md")]
    assert len(pages) == 7
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
