"""Media before they reach an engine: what may be read, what is decoded, and what is fetched once."""

import io
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from PIL import Image

from batchfile.errors import InvalidRequest
from batchfile.media import decode
from batchfile.media.cache import FAILURE_S, MediaCache
from batchfile.media.loader import DecodeGate, MediaLoader
from batchfile.media.rules import MediaLimits, MediaRules, OwnBucket, shown
from batchfile.request_media import Media, MediaUse
from batchfile.testing import ManualClock
from batchfile.types import Message, Request, Sampling
from tests.media_kit import bomb, media_server, png, wav

OWN = OwnBucket(name="own", inbox="state/inbox/acme/")
TENANT = MediaRules(
    tenant="acme", allow=("images.example", "other.example:8443", "s3://photos/public/", "s3://own"), own_bucket=OWN
)


@pytest.mark.parametrize(
    "source",
    [
        "https://images.example/a.png",
        "http://IMAGES.example:80/a.png?signature=1",
        "https://other.example:8443/a.png",
        "s3://photos/public/2026/a.png",
        "s3://own/state/inbox/acme/a.png",
    ],
)
def test_a_tenant_reads_what_its_settings_list(source: str) -> None:
    TENANT.check(source)


@pytest.mark.parametrize(
    "source",
    [
        "https://elsewhere.example/a.png",
        "https://images.example:8443/a.png",
        "https://other.example/a.png",
        "https://images.example@elsewhere.example/a.png",
        "https://images.example.elsewhere.example/a.png",
        "s3://photos/private/a.png",
        "s3://photos/publicity/a.png",
        "s3://photos/public/../private/a.png",
        "s3://photos/public/%2e%2e/private/a.png",
        "s3://photos/public/a.png?endpoint=http://elsewhere.example",
        "s3://own/state/batches/b/input",
        "s3://own/state/inbox/other/a.png",
    ],
)
def test_a_tenant_reads_nothing_else(source: str) -> None:
    with pytest.raises(InvalidRequest):
        TENANT.check(source)
    with pytest.raises(InvalidRequest):
        MediaRules(tenant="acme").check(source)


def test_a_service_reads_no_paths() -> None:
    with pytest.raises(InvalidRequest, match="only `batchfile run` reads paths"):
        TENANT.file("a.png")


def test_paths_stay_below_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "input"
    (root / "photos").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    rules = MediaRules(folder=root, allow=None)
    assert rules.file("photos/a.png") == root / "photos" / "a.png"
    assert rules.file("photos/../a.png") == root / "a.png"
    for source in ("../a.png", str(tmp_path / "a.png"), "link/a.png", "photos/../../a.png"):
        with pytest.raises(InvalidRequest, match="is not below"):
            rules.file(source)


def test_messages_show_no_credentials_and_no_signature() -> None:
    assert shown("https://user:secret@host/a.png?X-Signature=secret") == "https://host/a.png"
    assert shown("data:image/png;base64,AAAA") == "data:image/png;base64"


def test_images_become_rgb_on_white() -> None:
    clear = decode.pixels_of(decode.open_image(png(color=(255, 0, 0, 0), mode="RGBA")))
    assert (clear.mode, clear.size, clear.getpixel((0, 0))) == ("RGB", (4, 3), (255, 255, 255))
    grey = decode.pixels_of(decode.open_image(png(color=(7,), mode="L")))
    assert grey.getpixel((0, 0)) == (7, 7, 7)


def test_damaged_notes_of_a_camera_leave_a_picture_as_it_is() -> None:
    made = io.BytesIO()
    Image.new("RGB", (4, 3)).save(made, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode.pixels_of(decode.open_image(made.getvalue())).size == (4, 3)


def test_grey_of_16_bits_keeps_its_shades_and_32_bits_are_rejected() -> None:
    grey = Image.new("I;16", (3, 1))
    for at, value in enumerate((0, 0x4000, 0xFFFF)):
        grey.putpixel((at, 0), value)
    made = io.BytesIO()
    grey.save(made, "PNG")
    read = decode.pixels_of(decode.open_image(made.getvalue()))
    assert [read.getpixel((at, 0)) for at in range(3)] == [(0, 0, 0), (64, 64, 64), (255, 255, 255)]
    made = io.BytesIO()
    Image.new("F", (1, 1)).save(made, "TIFF")
    with pytest.raises(InvalidRequest, match="has pixels of 32 bits"):
        decode.pixels_of(decode.open_image(made.getvalue()))


def test_images_are_turned_upright() -> None:
    made, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (4, 3)).save(made, "JPEG", exif=exif)
    assert decode.pixels_of(decode.open_image(made.getvalue())).size == (3, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(), "pixels"),
        (b"<svg></svg>", "is not an image in PNG"),
        (b"", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
    ],
)
def test_what_is_not_an_image_to_read_is_named(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        decode.open_image(data)


def test_a_cut_image_is_damaged() -> None:
    made = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(made, "PNG")
    with pytest.raises(InvalidRequest, match="is a damaged image"):
        decode.pixels_of(decode.open_image(made.getvalue()[:-500]))


def test_a_recording_has_its_length() -> None:
    assert decode.read_wav(wav(seconds=0.5)).seconds == 0.5
    with pytest.raises(InvalidRequest, match="WAV"):
        decode.read_wav(b"ID3\x04")
    wide = bytearray(wav())
    wide[34] = 40
    with pytest.raises(InvalidRequest, match="has samples of 40 bits; convert them to 16"):
        decode.read_wav(bytes(wide))
    for rate in (1, 3_975, 16_001, 400_000):
        with pytest.raises(InvalidRequest, match=f"has {rate:,} samples per second; convert it to 16,000, or another"):
            decode.read_wav(wav(seconds=10 / rate, rate=rate))


def test_a_recording_counts_with_what_its_samples_take_in_memory() -> None:
    data = wav(seconds=2, rate=4_000)
    audio = Media(kind="audio", source=f"data:audio/wav;base64,{b64encode(data).decode()}")
    assert decode.read_wav(data).memory == 4 * 2 * (4_000 + 16_000)
    rules = MediaRules(allow=None, limits=MediaLimits(request_bytes=150_000))
    use = MediaUse(kinds=frozenset({"audio"}))
    with (
        pytest.raises(InvalidRequest, match=r"the media of the request take 176,0.. bytes of memory or more"),
        loaded(audio, rules=rules, use=use),
    ):
        pass


def test_documents_are_text() -> None:
    assert decode.read_text("\ufeffhällo".encode()) == "hällo"
    for data in (b"%PDF-1.7", b"\xff\xfe", b"a\0b"):
        with pytest.raises(InvalidRequest):
            decode.read_text(data)


def test_callers_at_once_share_one_fetch_and_later_ones_its_bytes() -> None:
    cache, may_end, fetched = MediaCache(), threading.Event(), list[str]()
    found: list[bytes] = []

    def fetch() -> bytes:
        fetched.append("a")
        may_end.wait(10)
        return b"x"

    threads = [threading.Thread(target=lambda: found.append(cache.get("a", fetch))) for _ in range(8)]
    for thread in threads:
        thread.start()
    may_end.set()
    for thread in threads:
        thread.join()
    assert cache.get("a", fetch) == b"x"
    assert (found, fetched) == ([b"x"] * 8, ["a"])


def test_the_cache_is_bounded_in_bytes_and_drops_the_oldest() -> None:
    cache = MediaCache(bytes_max=10)
    for key in "abab":
        cache.get(key, lambda: bytes(5))
    cache.get("c", lambda: bytes(5))
    assert cache.get("b", lambda: b"again") == bytes(5)
    assert cache.get("a", lambda: b"again") == b"again"


def test_a_failure_is_the_answer_for_a_minute() -> None:
    clock = ManualClock()
    cache = MediaCache(clock=clock)

    def fail() -> bytes:
        raise InvalidRequest("no such image", "media_unavailable")

    with pytest.raises(InvalidRequest):
        cache.get("a", fail)
    with pytest.raises(InvalidRequest, match="no such image") as error:
        cache.get("a", lambda: b"x")
    assert error.value.type == "media_unavailable"
    clock.sleep(FAILURE_S + 1)
    assert cache.get("a", lambda: b"x") == b"x"


def test_decoding_waits_for_room_and_a_larger_image_than_all_room_is_decoded_alone() -> None:
    held = [60]
    gate = DecodeGate(lambda: held[0], lambda: False, bytes_max=100)
    entered: list[int] = []

    def decode_one(size: int) -> None:
        with gate.room(size):
            entered.append(size)

    for size in (50, 500):
        thread = threading.Thread(target=decode_one, args=(size,))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        held[0] = 50
        thread.join(10)
        held[0] = 60
    assert entered == [50, 500]


def request_with(*media: Media) -> Request:
    turn = Message("user", "look", parts=("look", *media))
    return Request(custom_id="r", messages=(turn,), sampling=Sampling(max_tokens=1))


@contextmanager
def loaded(*media: Media, rules: MediaRules, use: MediaUse) -> Iterator[Message]:
    with MediaLoader(nullcontext).load(request_with(*media), rules, use) as found:
        yield found.request.messages[0]


ANYWHERE = MediaRules(allow=None)
DECODED = MediaUse(kinds=frozenset({"image", "audio"}))


def test_another_batch_reads_an_object_again() -> None:
    with media_server() as server:
        loader = MediaLoader(nullcontext)
        request = request_with(Media(kind="image", source=f"{server.url}/a.png"))
        for batch_id in ("one", "one", "two"):
            with loader.load(request, ANYWHERE, DECODED, batch_id):
                pass
        assert server.asked == {"/a.png": 2}


LIMITED = MediaRules(
    tenant="acme", allow=None, limits=MediaLimits(object_bytes=100, pixels=20, request_bytes=300, objects=2)
)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([png()] * 2, None),
        ([png()] * 3, r"has 3 images, recordings and documents; the limit is 2 \(media\.acme\.objects_max\)$"),
        ([png(7, 3)], r"has 7 x 3 pixels.*media\.acme\.pixels_max"),
        (
            [png(5, 4)] * 2,
            r"take 3\d\d bytes of memory or more; .* 300 bytes .media\.acme\.request_bytes_max",
        ),
        (
            [png(20, 1)],
            r"20 x 1 pixels, which is too narrow; the limit is 16 pixels on a side .media\.acme\.",
        ),
        ([png() + bytes(100)], r"too large; the limit is 100 bytes \(media\.acme\.object_bytes_max\)$"),
    ],
)
def test_the_limits_of_a_tenant(images: list[bytes], message: str | None) -> None:
    media = [Media(kind="image", source=f"data:image/png;base64,{b64encode(data).decode()}") for data in images]
    refused = pytest.raises(InvalidRequest, match=message) if message else nullcontext()
    with refused, loaded(*media, rules=LIMITED, use=DECODED):
        pass


def test_a_document_by_url_becomes_text_in_its_place() -> None:
    with media_server({"/a.txt": b"some words"}) as server:
        document = Media(kind="document", source=f"{server.url}/a.txt")
        with loaded(document, rules=ANYWHERE, use=MediaUse()) as turn:
            assert turn == Message("user", "look\n\nsome words")


def test_an_engine_without_a_kind_refuses_it_before_it_is_fetched() -> None:
    image = Media(kind="image", source="http://127.0.0.1:1/a.png")
    with pytest.raises(InvalidRequest, match="does not take images"), loaded(image, rules=ANYWHERE, use=MediaUse()):
        pass


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("short", "ended 99,9.. bytes early"),
        ("long", "is too large; the limit is 20 MiB"),
        ("inside", "redirects to 127.0.0.1, which has a private address"),
        ("metadata", r"redirects to 169\.254\.169\.254, which has a private address"),
        ("malformed", "redirects to .http://.1/a.png., which is not an http address"),
        ("bomb", "pixels"),
        ("page", "is not an image"),
        ("nowhere", "media_unavailable|cannot be fetched"),
    ],
)
@pytest.mark.slow
def test_a_server_that_misbehaves_gives_a_reason(fault: str, message: str) -> None:
    with media_server() as server:
        image = Media(kind="image", source=f"{server.url}/fault/{fault}")
        with pytest.raises(InvalidRequest, match=message) as error, loaded(image, rules=ANYWHERE, use=DECODED):
            pass
        assert str(error.value).startswith(f'"{server.url}/fault/{fault}": ')


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchfile.media.sources.FETCH_S", 0.3)
    with media_server() as server:
        image = Media(kind="image", source=f"{server.url}/fault/hang")
        with pytest.raises(InvalidRequest, match=r"longer than 0\.3 s"), loaded(image, rules=ANYWHERE, use=DECODED):
            pass


def test_a_server_that_never_ends_its_tls_handshake_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchfile.media.sources.FETCH_S", 0.3)
    is_over = threading.Event()

    def drip() -> None:
        """A record of 16 KiB, a byte now and then."""
        with suppress(OSError):
            client, _ = listener.accept()
            with client:
                client.sendall(b"\x16\x03\x03\x40\x00")
                while not is_over.wait(0.02):
                    client.sendall(b"\x02")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        image = Media(kind="image", source=f"https://127.0.0.1:{listener.getsockname()[1]}/a.png")
        with pytest.raises(InvalidRequest, match=r"longer than 0\.3 s"), loaded(image, rules=ANYWHERE, use=DECODED):
            pass
        is_over.set()
        thread.join()


def test_spaces_and_other_letters_in_a_url_are_encoded() -> None:
    with media_server({"/a%20%C3%BC%20b.png": png()}) as server:
        for path in ("a ü b.png", "a%20%C3%BC%20b.png"):
            with loaded(Media(kind="image", source=f"{server.url}/{path}?ü"), rules=ANYWHERE, use=DECODED):
                pass
        assert server.asked == {"/a%20%C3%BC%20b.png": 2}


@pytest.mark.parametrize("path", ["/fault/moved", "/fault/busy"])
def test_a_redirect_on_the_same_server_and_a_busy_one_are_followed(path: str) -> None:
    with (
        media_server() as server,
        loaded(Media(kind="image", source=f"{server.url}{path}"), rules=ANYWHERE, use=DECODED) as turn,
    ):
        [_, image] = turn.parts
        assert isinstance(image, Media)
        assert image.decoded.size == (4, 3)


def test_a_private_address_is_not_read_for_a_tenant() -> None:
    with media_server() as server:
        place = server.url.removeprefix("http://")
        image = Media(kind="image", source=f"{server.url}/a.png")
        rules = MediaRules(tenant="acme", allow=(place,))
        with pytest.raises(InvalidRequest, match="private address"), loaded(image, rules=rules, use=DECODED):
            pass
        assert not server.asked
        with loaded(image, rules=MediaRules(tenant="acme", allow=(place,), allow_private=True), use=DECODED):
            assert server.asked == {"/a.png": 1}
