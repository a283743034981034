"""Why a model cannot be loaded: what is tried again, and what is a wrong setting for good."""

import errno
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from batchfile.engine.vllm.preflight import not_loaded
from batchfile.errors import EngineDead, SettingsError

hub_client = pytest.importorskip("huggingface_hub")

MODEL = "org/model"
CLOSED = "http://127.0.0.1:9"


class Hub:
    """A model hub on loopback that answers everything with `status`."""

    def __init__(self) -> None:
        hub = self
        self.status, self.code = 200, ""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(hub.status)
                if hub.code:
                    self.send_header("X-Error-Code", hub.code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    one = Hub()
    yield one
    one.close()


def failure(url: str) -> Exception:
    """What the hub's own client raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 whatever it is, it is what is asked about
        hub_client.HfApi(endpoint=url, token=False).model_info(MODEL, timeout=5.0)
    return caught.value


def wrapped(error: Exception) -> Exception:
    """As transformers and vLLM do it: two errors of their own around it, the second one inside a validation."""

    class Config(BaseModel):
        model: str

        @field_validator("model")
        @classmethod
        def check(cls, name: str) -> str:
            try:
                try:
                    raise error
                except Exception as first:
                    raise OSError(f"Can't load {name}") from first
            except OSError as second:
                raise ValueError(f"Invalid repository ID or local directory: {name}") from second

    with pytest.raises(ValueError, match="Invalid repository ID") as caught:
        Config(model=MODEL)
    return caught.value


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["plain", "wrapped"])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_hub_that_cannot_answer_now_is_tried_again(
    hub: Hub, status: int, wrap: Callable[[Exception], Exception]
) -> None:
    hub.status = status
    found = not_loaded(wrap(failure(hub.url)), MODEL)
    assert isinstance(found, EngineDead)
    assert "is unavailable now (its hub " in str(found)


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["plain", "wrapped"])
def test_a_hub_that_cannot_be_reached_is_tried_again(tmp_path: Path, wrap: Callable[[Exception], Exception]) -> None:
    assert isinstance(not_loaded(wrap(failure(CLOSED)), MODEL), EngineDead)
    with pytest.raises(hub_client.errors.LocalEntryNotFoundError) as caught:
        hub_client.hf_hub_download(MODEL, "config.json", cache_dir=tmp_path, local_files_only=True)
    assert isinstance(not_loaded(wrap(caught.value), MODEL), EngineDead)


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["plain", "wrapped"])
@pytest.mark.parametrize(("status", "code"), [(404, "RepoNotFound"), (404, "RevisionNotFound"), (403, "GatedRepo")])
def test_a_model_that_the_hub_does_not_have_or_give_is_a_wrong_setting(
    hub: Hub, status: int, code: str, wrap: Callable[[Exception], Exception]
) -> None:
    hub.status, hub.code = status, code
    found = not_loaded(wrap(failure(hub.url)), MODEL)
    assert isinstance(found, SettingsError), found
    assert MODEL in str(found)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_volume_that_fails_is_tried_again(number: int) -> None:
    found = not_loaded(wrapped(OSError(number, "no")), "/models/m")
    assert isinstance(found, EngineDead)


def test_a_volume_that_is_not_mounted_yet_is_tried_again(tmp_path: Path) -> None:
    missing = ValueError("Invalid repository ID or local directory")
    assert isinstance(not_loaded(missing, str(tmp_path / "org" / "model")), EngineDead), "its mount point is empty"
    (tmp_path / "another").mkdir()
    assert isinstance(not_loaded(missing, str(tmp_path / "org" / "model")), SettingsError), "mounted, and not there"
    (tmp_path / "org").mkdir()
    assert isinstance(not_loaded(missing, str(tmp_path / "org" / "model")), EngineDead), "a mount point of its own"


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unexpected keyword argument 'max_num_seq'"),
        ValueError("the model's context is 4096, max_model_len is 8192"),
        ImportError("no module named flash_attn"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
def test_what_another_start_does_not_change_is_a_wrong_setting(error: Exception) -> None:
    assert isinstance(not_loaded(error, MODEL), SettingsError)


def test_what_is_neither_is_tried_again() -> None:
    assert isinstance(not_loaded(RuntimeError("CUDA out of memory"), MODEL), EngineDead)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SettingsError("a"), EngineDead("b")])
def test_what_is_decided_already_stays(raised: Any) -> None:
    assert not_loaded(raised, MODEL) is raised
