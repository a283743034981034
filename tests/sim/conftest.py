"""Where a test simulates, the library's threads are strands."""

from collections.abc import Iterator

import pytest

from tests.sim.green import installed


@pytest.fixture
def simulated() -> Iterator[None]:
    with installed():
        yield
