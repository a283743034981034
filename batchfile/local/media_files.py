"""The files that requests of a local run name by their paths: where they are, and the digests of their bytes."""

import os
import stat
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

from batchfile.errors import InvalidRequest
from batchfile.local.inputs import Source
from batchfile.local.options import RunOptions
from batchfile.media.rules import MediaLimits, MediaRules

KEPT_MAX = 50_000  # digests of one plan that are kept, about 20 MB


def media_rules(options: RunOptions, source: Source, limits: MediaLimits) -> MediaRules:
    """A user's own requests may read everything that the user can, but paths only below one folder."""
    folder = options.media_folder or (source.path and str(Path(source.path).parent))
    return MediaRules(folder=None if folder is None else Path(folder), allow=None, limits=limits)


class FileDigests:
    """For one plan: reads each file once, unless it changes meanwhile."""

    def __init__(self, rules: MediaRules) -> None:
        self._rules = rules
        self._digest = lru_cache(maxsize=KEPT_MAX)(_digest)

    def __call__(self, source: str) -> bytes | None:
        """The SHA-256 of the file at this path; None if it cannot be read, or is above the limit: its request fails."""
        try:
            path = self._rules.file(source)
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > self._rules.limits.object_bytes:
                return None
            return self._digest(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except (InvalidRequest, OSError):
            return None


def _digest(path: str, *stamp: int) -> bytes:
    """`stamp`: of the file, so that another one is read again."""
    # Not blocking: a pipe that has just replaced the file would wait for its writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file_digest(file, "sha256").digest()
