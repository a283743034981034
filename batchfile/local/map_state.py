"""Where `batchfile.map` keeps its runs: a folder for each prompt and model, and in it one for each set of rows.

The outer one has the store of these runs, unless that is elsewhere; an inner one has its rows as JSONL. Knows no table
and no engine.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from batchfile.errors import SettingsError
from batchfile.local.engines import CACHE_FOLDER, CACHE_VARIABLE
from batchfile.open_ledger import STORE_FOLDER
from batchfile.store.files import translated

KEPT_S = 30 * 86400  # how long the cache keeps a run that is not used
ANSWERS = "answers"  # names the output of a run; nothing is written there
_PREFIX = "map-"
_ROWS_PREFIX = "rows-"
_VERSION = 1  # of the requests that are made of rows: another one makes new runs
_MARK = "last-used"


@dataclass(frozen=True, slots=True)
class MapState:
    """`root`: an existing folder; `url`: of the stores, or None for a store in the folder of each run."""

    root: Path
    url: str | None

    @contextmanager
    def written(self, lines: Iterable[bytes]) -> Iterator["RowsFile"]:
        """The lines in a file that is removed at the end, unless it was moved. Raises: InvalidFile, StoreError."""
        fd, path = tempfile.mkstemp(prefix=_PREFIX, suffix=".unfinished", dir=self.root)
        digest, num = hashlib.sha256(), 0
        try:
            with translated(path), open(fd, "wb") as file:
                for line in lines:
                    digest.update(line)
                    file.write(line)
                    num += 1
            yield RowsFile(path=path, sha256=digest.hexdigest(), num=num)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def folder(self, identity: dict[str, Any], rows: dict[str, Any]) -> Path:
        """The folder of the run with this identity and these rows, which counts as used now."""
        outer = self.root / (_PREFIX + _digest([_VERSION, identity]))
        folder = outer / (_ROWS_PREFIX + _digest(rows))
        for path in (outer, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            (path / _MARK).touch()
        return folder

    def store_of(self, folder: Path) -> str:
        outer = folder.parent
        if self.url is None:
            return str(outer / STORE_FOLDER)
        place, sign, options = self.url.partition("?")
        return f"{place.rstrip('/')}/{outer.name}{sign}{options}"


@dataclass(frozen=True, slots=True)
class RowsFile:
    path: str
    sha256: str
    num: int

    def move_to(self, folder: Path) -> Path:
        """The file of an earlier call stays: it has the same rows, and its batch refers to it."""
        target = folder / "rows.jsonl"
        if not target.exists():
            os.replace(self.path, target)
        return target


def open_state(store: str | os.PathLike[str] | None) -> MapState:
    """`store` None: the user's cache, from which runs that were not used for KEPT_S are removed.

    Raises: SettingsError where the folder cannot be written.
    """
    url = os.fspath(store) if store is not None and "://" in os.fspath(store) else None
    is_cache = store is None or url is not None
    root = Path(_cache_folder() / "map" if is_cache else os.path.expanduser(os.fspath(store or "")))
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise SettingsError(f"store: {root} cannot be written: {error.strerror}; pass another folder") from None
    if is_cache:
        _remove_unused(root, time.time() - KEPT_S)
    return MapState(root.resolve(), url)


def _cache_folder() -> Path:
    """As the XDG base directory specification has it, unless batchfile's own cache is set."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    folder = os.environ.get(CACHE_VARIABLE) or (f"{xdg}/batchfile" if xdg else CACHE_FOLDER)
    return Path(folder).expanduser()


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:32]


def _remove_unused(root: Path, before: float) -> None:
    for path in [*root.glob(f"{_PREFIX}*"), *root.glob(f"{_PREFIX}*/{_ROWS_PREFIX}*")]:
        with suppress(OSError):
            marked = path / _MARK if (path / _MARK).exists() else path
            if marked.stat().st_mtime >= before:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
