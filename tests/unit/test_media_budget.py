"""The bytes of media that a process holds while it fetches and decodes, counted and not measured."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchfile.errors import InvalidRequest
from batchfile.media.budget import FetchBudget, NoRoom, ObjectRoom
from batchfile.media.cache import Key, MediaCache
from batchfile.media.loader import MediaLoader
from batchfile.media.rules import MediaLimits, MediaRules
from batchfile.request_media import Media, MediaUse
from batchfile.types import Message, Request, Sampling
from tests.media_kit import media_server, png

DECODED = MediaUse(kinds=frozenset({"image"}))
OBJECT = 10_000
PADDED = png() + bytes(OBJECT - len(png()))
LIMITS = MediaLimits(object_bytes=2 * OBJECT, request_bytes=10 * OBJECT)


def request_for(*sources: str) -> Request:
    parts = tuple(Media(kind="image", source=source) for source in sources)
    return Request(custom_id="r", messages=(Message("user", "", parts=parts),), sampling=Sampling(max_tokens=1))


def photos(folder: Path, number: int) -> list[str]:
    names = [f"{one}.png" for one in range(number)]
    for name in names:
        (folder / name).write_bytes(PADDED)
    return names


def test_a_request_ends_as_soon_as_its_encoded_bytes_are_above_its_limit(tmp_path: Path) -> None:
    budget, rules = FetchBudget(OBJECT), MediaRules(folder=tmp_path, allow=None, limits=LIMITS)
    loader = MediaLoader(nullcontext, budget=budget)
    refused = pytest.raises(InvalidRequest, match="bytes of memory or more; the limit is 100,000 bytes")
    with refused, loader.load(request_for(*photos(tmp_path, 60)), rules, DECODED):
        pass
    assert budget.peak <= LIMITS.request_bytes + LIMITS.object_bytes
    with budget.share() as share:
        assert share.fits(OBJECT), "all of it was given back"


def test_requests_at_once_share_one_budget(tmp_path: Path) -> None:
    """All of them end, and together they hold at most the budget and one request."""
    budget, rules = FetchBudget(3 * OBJECT), MediaRules(folder=tmp_path, allow=None, limits=LIMITS)
    loader = MediaLoader(nullcontext, MediaCache(bytes_max=0), budget)
    names, loaded = photos(tmp_path, 20), list[int]()

    def load(at: int) -> None:
        request = request_for(*(names[(at + step) % len(names)] for step in range(5)))
        with loader.load(request, rules, DECODED) as found:
            loaded.append(len(found.media))

    threads = [threading.Thread(target=load, args=(at,)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert loaded == [5] * 16
    assert budget.peak <= 3 * OBJECT + 5 * OBJECT + LIMITS.object_bytes


def test_the_room_is_given_back_before_the_engine_gets_the_request(tmp_path: Path) -> None:
    budget = FetchBudget(OBJECT)
    rules = MediaRules(folder=tmp_path, allow=None, limits=LIMITS)
    loader = MediaLoader(nullcontext, budget=budget)
    with loader.load(request_for(*photos(tmp_path, 3)), rules, DECODED), budget.share() as other:
        assert other.fits(OBJECT)


def test_one_request_may_go_beyond_and_the_others_do_not_wait_with_an_open_connection() -> None:
    budget = FetchBudget(100)
    with budget.share() as first, budget.share() as second:
        first.take(150)
        assert first.fits(200)
        with pytest.raises(NoRoom) as error:
            ObjectRoom(second, 0).need(70)
        assert error.value.size == 70
        first.resize(20)
        assert second.fits(70)
        assert not second.fits(90)


def test_an_object_that_has_no_room_is_fetched_again_when_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchfile.media.loader.FIRST_BYTES", 10)
    budget = FetchBudget(100)
    with media_server() as server, budget.share() as other:
        other.take(80)
        assert other.fits(150)
        other.resize(80)  # and it may still go beyond

        class Cache(MediaCache):
            def get(self, key: Key, fetch: Callable[[], bytes]) -> bytes:
                try:
                    return super().get(key, fetch)
                except NoRoom:
                    other.resize(0)
                    raise

        loader = MediaLoader(nullcontext, Cache(), budget)
        with loader.load(request_for(f"{server.url}/a.png"), MediaRules(allow=None), DECODED) as found:
            assert len(found.media) == 1
        assert server.asked == {"/a.png": 2}


def test_a_name_that_is_never_resolved_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchfile.media.sources.FETCH_S", 0.1)
    is_over = threading.Event()
    monkeypatch.setattr("batchfile.media.sources.connect", lambda *_, **__: is_over.wait())
    loader = MediaLoader(nullcontext)
    try:
        with (
            pytest.raises(InvalidRequest, match=r"took longer than 0\.1 s") as error,
            loader.load(request_for("http://images.example/a.png"), MediaRules(allow=None), DECODED),
        ):
            pass
    finally:
        is_over.set()
    assert error.value.type == "media_unavailable"


def test_a_bucket_that_is_slow_is_given_up_after_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchfile.media.sources.FETCH_S", 0.0)
    read: list[int] = []

    def stream(*_: object) -> Iterator[bytes]:
        for number in range(100):
            read.append(number)
            yield bytes(10)

    monkeypatch.setattr("batchfile.media.sources.open_store", lambda *_, **__: SimpleNamespace(stream=stream))
    loader = MediaLoader(nullcontext)
    with (
        pytest.raises(InvalidRequest, match="took longer than 0 s") as error,
        loader.load(request_for("s3://photos/a.png"), MediaRules(allow=None), DECODED),
    ):
        pass
    assert (error.value.type, read) == ("media_unavailable", [0])
