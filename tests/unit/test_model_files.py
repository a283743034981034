"""Is a model there, and may we read it? Against a model hub on this machine that answers as the real one does."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from batchfile.engine.vllm.preflight import check_model, commit_of, model_facts
from batchfile.errors import SettingsError

CONFIG = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
CHECK = """
import sys
from batchfile.engine.vllm.preflight import check_model, commit_of
from batchfile.errors import SettingsError
for given in sys.argv[1:]:
    model, _, revision = given.partition("@")
    try:
        check_model(model, revision or None)
        print(commit_of(model, revision or None) or "found")
    except SettingsError as error:
        print(error)
"""
FETCH = "import sys, huggingface_hub; huggingface_hub.hf_hub_download(sys.argv[1], 'config.json')"
needs_hub = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="comes with vLLM")


class Hub(BaseHTTPRequestHandler):
    """`/OWNER/NAME/resolve/REVISION/config.json`: the owner's name, or its revision, says what is answered."""

    def do_HEAD(self) -> None:
        _, owner, _, _, revision, *_ = self.path.split("/")
        status, code = {
            "gated": (403, "GatedRepo"),
            "nobody": (401, "RepoNotFound"),
            "mistral": (404, "EntryNotFound"),
            "secret": (403, ""),
            "broken": (500, ""),
            "gone": (404, "RevisionNotFound"),
        }.get(revision if revision == "gone" else owner, (200, ""))
        body = json.dumps(CONFIG).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 200:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body) if status == 200 else 0))
        self.end_headers()
        if self.command == "GET" and status == 200:
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def environ(hub: str, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hub"), "HOME": str(folder), "PATH": "/usr/bin:/bin"} | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "no_proxy": "127.0.0.1",
    }


def check(model: str, *more: str, hub: str, folder: Path, program: str = CHECK) -> str:
    """What `program` prints: a line for each model."""
    done = subprocess.run(
        [sys.executable, "-c", program, model, *more],
        env=environ(hub, folder),
        capture_output=True,
        text=True,
        check=True,
        timeout=1200,
    )
    return done.stdout.strip()


ANSWERS = {
    "good/model": "found",
    "good/model@v1.1": "found",
    "good/model@gone": "model 'good/model' has no revision 'gone' on its hub; name a branch, a tag or a commit of it",
    "mistral/model": "found",
    "gated/model": "model 'gated/model' is gated: accept its terms",
    "nobody/model": "model 'nobody/model': it is not a directory here, and the model hub has no such model, or",
    "secret/model": "model 'secret/model': the model hub answered 403; log in",
    "broken/model": "model 'broken/model' is not on this machine and the model hub answered 500: try again later",
    "not a name": "model 'not a name' is neither a directory on this machine nor a model hub name such as owner/model",
}


@needs_hub
def test_each_answer_of_a_hub_is_one_line(hub: str, tmp_path: Path) -> None:
    lines = check(*ANSWERS, hub=hub, folder=tmp_path).splitlines()
    for line, start in zip(lines, ANSWERS.values(), strict=True):
        assert line.startswith(start)


@pytest.mark.slow
@needs_hub
def test_a_model_that_was_fetched_before_needs_no_hub(hub: str, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    assert "the model hub cannot be reached" in check("good/model", hub=nowhere, folder=tmp_path)
    check("good/model", hub=hub, folder=tmp_path, program=FETCH)
    assert check("good/model", hub=nowhere, folder=tmp_path) == "0" * 40, "the commit"
    assert "the model hub cannot be reached" in check("good/model@v1.1", hub=nowhere, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="without vLLM that is what is said")
def test_a_run_with_a_wrong_model_ends_before_it_reads_its_file(hub: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("not JSON\n")
    done = subprocess.run(
        [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", "out.jsonl", "--model", "nobody/model"],
        cwd=tmp_path,
        env=environ(hub, tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 2
    assert "the model hub has no such model" in done.stderr
    assert not (tmp_path / ".batchfile").exists()


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the directory does not exist"):
        check_model(str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match=r"has no config\.json"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"cut off')
    with pytest.raises(SettingsError, match=r"config\.json cannot be read"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_model(str(tmp_path))
    with pytest.raises(SettingsError, match=r"revision 'v1': the model .* is a directory"):
        check_model(str(tmp_path), "v1")


def test_a_folder_of_the_hubs_cache_is_a_commit(tmp_path: Path) -> None:
    commit = tmp_path / "models--o--m" / "snapshots" / ("a1" * 20)
    commit.mkdir(parents=True)
    assert commit_of(str(commit)) == "a1" * 20
    assert commit_of(str(tmp_path)) is None


def test_a_model_under_an_address_is_left_to_vllm() -> None:
    check_model("s3://bucket/model")


def test_what_the_files_say_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "a.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 20)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * 30)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 40)
    found = model_facts(str(tmp_path))
    assert (found.dtype, found.is_quantized, found.weight_bytes) == ("bfloat16", False, 30)
    nested = {"text_config": {"dtype": "float16"}, "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    found = model_facts(str(tmp_path))
    assert (found.dtype, found.is_quantized) == ("float16", True)
    assert model_facts("owner/never-fetched").weight_bytes is None
