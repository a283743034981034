"""A batch that is deleted: over a service and on a store, and with `--now` its bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.service.remote_kit import Shell, jsonl, line

NAME = "Erika Mustermann"


@pytest.fixture(params=["service", "directory"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    if request.param == "service":
        api = request.getfixturevalue("api")
        return Shell(tmp_path, ["--url", api.url], api.store)
    return Shell(tmp_path, ["--store", "st"], str(tmp_path / "st"))


def bytes_of(shell: Shell, batch_id: str) -> dict[str, bytes]:
    """What is stored of the batch."""
    folder = Path(shell.store) / "batches" / batch_id
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ended(shell: Shell) -> str:
    rows = jsonl(line(NAME), line("b"))
    batch_id = shell.id_of("submit", "-", "--stage", "email", "--metadata", f"lead={NAME}", stdin=rows)
    shell.work(batch_id)
    return batch_id


def test_a_deleted_batch_is_gone_and_its_bytes_with_now(shell: Shell) -> None:
    open_id = shell.id_of("submit", "-", "--stage", "email", stdin=jsonl(line("a")))
    assert b"ancel" in shell.run("delete", open_id, code=4).stderr
    assert b"ancel" in shell.run("delete", open_id, "--now", code=4).stderr
    batch_id = ended(shell)
    assert shell.run("delete", batch_id).stdout.decode() == f"{batch_id} is deleted\n"
    assert NAME in str(bytes_of(shell, batch_id)), "for downloads that are under way"
    assert b"no such batch" in shell.run("status", batch_id, code=2).stderr
    assert b"no such batch" in shell.run("delete", batch_id, code=2).stderr
    done = shell.run("delete", batch_id, "--now")
    assert done.stdout.decode() == f"{batch_id} is deleted, and its data is removed\n"
    assert list(bytes_of(shell, batch_id)) == ["batch.json"]
    assert NAME not in str(bytes_of(shell, batch_id))
    assert [batch["batch_id"] for batch in shell.json("ls")][:1] == [open_id]


def test_now_deletes_an_ended_batch_in_one_go(shell: Shell) -> None:
    batch_id = ended(shell)
    shell.run("delete", "--now", batch_id)
    assert list(bytes_of(shell, batch_id)) == ["batch.json"]
    assert b"no such batch" in shell.run("results", batch_id, code=2).stderr
    assert b"no such batch" in shell.run("delete", "batch_000000000000", "--now", code=2).stderr


def test_with_the_batch_of_a_run_the_one_that_it_keeps_is_deleted(shell: Shell) -> None:
    def run(limit: int) -> str:
        place = ["-o", "out.jsonl", "--engine", "echo", "--store", shell.store, "--json"]
        done = warm.run(
            "batchfile",
            ["run", "in.jsonl", "--limit", str(limit), *place],
            cwd=shell.folder,
            env=shell.environ,
            stdin=b"",
        )
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["batch_id"])

    (shell.folder / "in.jsonl").write_bytes(jsonl(*(line(f"r{n}") for n in range(20))))
    kept, last = run(20), run(5)
    assert [batch["batch_id"] for batch in shell.json("ls")][:2] == [last, kept]
    shell.run("delete", last, "--now")
    assert not {last, kept} & {batch["batch_id"] for batch in shell.json("ls")}
    assert list(bytes_of(shell, kept)) == ["batch.json"]


def test_over_http_another_tenant_deletes_nothing(start_api: Any, make_request: Any) -> None:
    api = start_api(BATCHFILE_API_KEYS=",".join(f"{tenant}:{digest(tenant)}" for tenant in ("acme", "zeta")))
    acme, zeta = ({"authorization": f"Bearer {tenant}"} for tenant in ("acme", "zeta"))
    batch_id = api.submit("email", [make_request("a")], **acme)
    api.work(batch_id)
    path = f"/api/batches/{batch_id}?now=true"
    assert api.http.delete(path, headers=zeta).status_code == 404
    assert api.http.get(f"/api/batches/{batch_id}/results", headers=acme).status_code == 200
    assert api.http.delete(path, headers=acme).json() == {"id": batch_id, "deleted": True}
    assert api.http.delete(path, headers=zeta).status_code == 404
    assert api.http.delete(path, headers=acme).status_code == 200, "a repeated call is as good"
    for method, place in (("GET", ""), ("GET", "/results"), ("DELETE", "")):
        assert api.http.request(method, f"/api/batches/{batch_id}{place}", headers=acme).status_code == 404


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
