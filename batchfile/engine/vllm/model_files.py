"""What is in the files of a model, an adapter or a configuration, as a short text that is equal only for equal files.

A repository of a hub is its commit, and a file of a hub's cache the name of its blob. All other files count by their
bytes: large ones by some of them, because reading 140 GB takes minutes.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from batchfile.engine.identity import digest_of
from batchfile.engine.vllm.preflight import CONFIGS, cached_config, is_other_hub

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", *CONFIGS)

WHOLE_BYTES_MAX = 64 * 1024 * 1024  # a larger file counts by its size, its time, its beginning and pieces of it
_HEAD_BYTES = 4 * 1024 * 1024
_NUM_PIECES, _PIECE_BYTES = 256, 64 * 1024  # evenly over the file, the last one at its end: 20 MiB with the beginning
_FILES_MAX = 10_000  # a folder with more is not one of a model
_NOT_OF_THE_MODEL = (".md", ".lock")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def content_of(model: str, revision: str | None = None, names: Sequence[str] = CONFIGS) -> str | None:
    """The commit of a repository of a hub, or a digest of a file or of a folder's files; None where it is not on this
    machine. `names`: files of which a repository in the cache has one.

    Raises: OSError.
    """
    if "://" in model or is_other_hub():
        return None
    path = path_of(model)
    if path is None:
        cached = cached_config(model, revision, names)
        if cached is None:
            return None
        path = cached.parent
    if path.is_file():
        return digest_of(_bytes_of(path))
    path = path.resolve()
    if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name):
        return f"commit {path.name}"
    return digest_of(_bytes_in(path))


def path_of(text: str) -> Path | None:
    """The file or folder that a text names."""
    with suppress(OSError, ValueError, RuntimeError):  # too long, a null byte, an unknown user
        path = Path(text).expanduser()
        if text and path.exists():
            return path
    return None


def _bytes_in(folder: Path) -> Iterator[bytes]:
    """Raises: OSError."""
    for path in _files_in(folder):
        yield f"\0{path.relative_to(folder)}\0".encode(errors="surrogateescape")
        yield digest_of(_bytes_of(path)).encode()


def _files_in(folder: Path) -> list[Path]:
    """Sorted. Raises: OSError, also where it is not the folder of a model."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix not in _NOT_OF_THE_MODEL and path.is_file()]
        if len(found) > _FILES_MAX:
            raise OSError(f"{folder} has too many files for a model")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _bytes_of(path: Path) -> Iterator[bytes]:
    """What decides whether a file is the same."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        yield blob.name.encode()
        return
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if found.st_size <= WHOLE_BYTES_MAX:
            yield file.read()
            return
        yield f"{found.st_size} {found.st_mtime_ns}".encode()
        yield file.read(_HEAD_BYTES)
        for number in range(_NUM_PIECES):
            file.seek(number * (found.st_size - _PIECE_BYTES) // (_NUM_PIECES - 1))
            yield file.read(_PIECE_BYTES)
