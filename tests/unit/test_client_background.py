"""The event loop of callers that are not async."""

from contextlib import AsyncExitStack

import pytest

from batchfile.client.http import LoopThread
from batchfile.errors import BatchfileError


def test_what_is_asked_after_its_end_is_told_so() -> None:
    """An iterator that was half read may be collected then; the coroutine warns of nothing."""

    async def ask() -> int:
        return 1

    thread = LoopThread(AsyncExitStack())
    assert thread.run(ask()) == 1
    thread.close()
    with pytest.raises(BatchfileError, match="the connection is closed; connect again"):
        thread.post(ask())
