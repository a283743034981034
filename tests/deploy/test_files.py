"""Every file that deploys something is linted or validated, offline: nothing here needs a network or an engine."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fake_runpod import KEY, FakeRunpod, Problem

from batchfile.settings import DEFAULT_POOLS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
YAMLS = sorted(path for path in DEPLOY.rglob("*.yaml") if path.name != ".yamllint.yaml")
JSONS = sorted(DEPLOY.rglob("*.json"))
DOCKERFILES = sorted((ROOT / "containers").glob("*/Dockerfile"))
ENDPOINTS = sorted(DEPLOY.glob("runpod/*-endpoint.json"))


def shells() -> list[Path]:
    files = [path for folder in ("deploy", ".ci") for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if path.read_bytes()[:2] == b"#!" and b"sh" in path.read_bytes().split(b"\n")[0]]


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
    assert len(DOCKERFILES) == 3
    passes(BIN / "hadolint", "--failure-threshold", "style", *DOCKERFILES)


def test_json_is_json() -> None:
    for path in JSONS:
        assert isinstance(read(path), dict), path


def test_the_compose_file_fits_its_schema() -> None:
    passes(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_pinned_has_a_health_check_and_carries_no_weights(path: Path) -> None:
    text = path.read_text()
    (base,) = re.findall(r"^FROM (\S+)$", text, re.M)
    assert re.search(r":[\w.-]*\d", base), f"{base} is not pinned"
    assert ":latest" not in base
    assert "HEALTHCHECK" in text
    assert "STOPSIGNAL SIGTERM" in text
    copied = [source for sources in re.findall(r"^COPY (.+) \S+$", text, re.M) for source in sources.split()]
    ignored = Path(f"{path}.dockerignore").read_text().split()
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f"{source} is hidden from the build"


def test_the_api_image_runs_as_a_user_of_its_own() -> None:
    assert re.search(r"^USER \d+$", (ROOT / "containers/api/Dockerfile").read_text(), re.M)


def test_runner_images_install_only_under_the_constraints_of_what_is_there() -> None:
    for name in ("mistral", "llama"):
        text = (ROOT / "containers" / name / "Dockerfile").read_text()
        installs = re.findall(r"uv pip install[^\n]*", text)
        assert len(installs) == 1
        assert "--constraint /tmp/kept.txt" in installs[0]
        assert "--check /tmp/kept.txt" in text


def test_what_is_installed_is_all_there_and_what_moved_is_named(tmp_path: Path) -> None:
    kept = ROOT / "containers" / "kept.py"
    listed = subprocess.run([sys.executable, kept], capture_output=True, text=True, check=True).stdout
    (tmp_path / "kept").write_text(listed)
    passes(sys.executable, kept, "--check", tmp_path / "kept")
    (tmp_path / "kept").write_text(listed + "torch==0.0.1\n")
    moved = subprocess.run([sys.executable, kept, "--check", tmp_path / "kept"], capture_output=True, text=True)
    assert (moved.returncode, "torch==0.0.1" in moved.stderr) == (1, True)


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
    ]
    fake = FakeRunpod()
    template = {"name": "t", "image": "i", "serverless": True}
    fake.answer("POST", "/v2/templates", template, f"Bearer {KEY}")
    for fields, reason in wrong:
        with pytest.raises(Problem) as caught:
            fake.answer("POST", "/v2/serverless", {**good, **fields}, f"Bearer {KEY}")
        assert reason in json.dumps(caught.value.body), fields
    assert fake.answer("POST", "/v2/serverless", good, f"Bearer {KEY}")[0] == 201


def test_scripts_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in DOCKERFILES:
        for group in re.findall(r'"\.\[([\w,]+)\]"', path.read_text()):
            assert set(group.split(",")) <= set(extras), path


def test_every_link_of_the_walk_through_leads_somewhere() -> None:
    pages = [DEPLOY / "README.md", DEPLOY / "kubernetes" / "README.md", *(ROOT / "containers").rglob("README.md")]
    assert len(pages) == 6
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
