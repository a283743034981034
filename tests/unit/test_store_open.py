"""From what a person types to a store."""

import subprocess
import sys
from pathlib import Path

import pytest

from batchfile import open_store
from batchfile.errors import SettingsError
from batchfile.store.open import local_path
from batchfile.testing import MemoryStore
from tests.helpers.settings import load_settings
from tests.helpers.store import DirectoryStore, existing_ledger


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "file://localhost{}"])
def test_a_directory_is_named_by_its_path(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a store"
    store = open_store(form.format(path))
    assert isinstance(store, DirectoryStore)
    assert store.url == str(path)


@pytest.mark.parametrize("name", [".batchfile", "./here", "with:colon", "./with:colon", "file:relative"])
def test_a_relative_path_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(open_store(name).url).parent == tmp_path


def test_a_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/store").url == str(tmp_path / "store")


def test_a_store_opens_again_by_its_own_url(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a", b"1")
    assert [entry.key for entry in open_store(store.url).list("")] == ["a"]


def test_memory_is_a_new_store_each_time() -> None:
    store = open_store("memory:")
    store.put("a", b"1")
    assert isinstance(store, MemoryStore)
    assert open_store("memory:").get("a") is None


def test_opening_a_directory_does_not_load_the_s3_client(tmp_path: Path) -> None:
    code = "import sys; from batchfile.store.open import open_store as o; o(sys.argv[1]); print('boto3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "~/a store", "file:~/a store"])
def test_a_store_that_exists_is_found_by_every_form_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "a store"
    with pytest.raises(SettingsError, match="no such directory"):
        existing_ledger(form.format(path), load_settings())
    path.mkdir()
    assert existing_ledger(form.format(path), load_settings()).store.url == str(path)


@pytest.mark.parametrize("url", ["memory:", "s3://bucket/prefix", "s3:bucket", "http://here/there"])
def test_what_is_no_directory_has_no_local_path(url: str) -> None:
    assert local_path(url) is None
