"""What the tests of the S3 store share: a store behind a proxy that spoils answers."""

from collections.abc import Iterator
from copy import copy
from typing import Any

import pytest

from tests.helpers.store_s3 import S3Store, s3

BUCKET = "contract"


@pytest.fixture(scope="module")
def clients(spoiled: Any) -> Iterator[S3Store]:
    found = S3Store(BUCKET, endpoint_url=spoiled.url)
    yield found
    found.close()


@pytest.fixture
def store(proxy: Any, clients: S3Store, folder: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setattr(s3, "READ_PAUSE_S", 0.001)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.001)
    found = copy(clients)  # making clients is slow; each test gets a prefix of its own instead
    found._prefix = f"{folder}/"
    return found


class Once:
    """The given fault for the next request of a method, then none."""

    def __init__(self, method: str, *faults: object) -> None:
        self._method = method
        self._faults = list(faults)

    def __call__(self, method: str, path: str, headers: dict[str, str]) -> object:
        return self._faults.pop(0) if method == self._method and self._faults else "pass"


def read(store: S3Store, key: str, start: int = 0, end: int | None = None, match: str | None = None) -> bytes:
    return b"".join(store.stream(key, start, end, match=match))
