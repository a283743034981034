"""Decodes images and recordings, within limits. Images need Pillow."""

import io
import warnings
import wave
from contextlib import suppress
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

from batchfile.errors import InvalidRequest, install_hint
from batchfile.media.bounds import TimedBytes, check_work, is_small_exif
from batchfile.media.rules import MediaRules

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_SHARE = 4  # the longest side, of that of a square with `pixels_max`: some models make every image a square
RATE_STEP, RATE_MIN, RATE_MAX = 25, 4_000, 384_000  # of a recording: other rates take long to convert, or much memory
WIDTH_MAX = 4  # bytes of a sample
MODEL_RATE = 16_000  # the rate of most models, to which a recording is converted
SAMPLE_BYTES = 4  # in memory, for a model
# Others may start programs, or are not images of one picture.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_NOT_IMAGE = f"is not an image in {', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """`frames`: samples in PCM as in a WAV file: little-endian, of `width` bytes, the channels in turn."""

    rate: int
    num_channels: int
    width: int
    frames: bytes

    @property
    def seconds(self) -> float:
        return len(self.frames) / (self.rate * self.num_channels * self.width)

    @property
    def memory(self) -> int:
        """Bytes for a model, about: the samples as read, and at the model's rate."""
        return int((len(self.frames) // self.width + self.seconds * MODEL_RATE) * SAMPLE_BYTES)


def open_image(data: bytes, rules: MediaRules = MediaRules()) -> "Image":  # noqa: B008 frozen
    """The image with its size known and its pixels not read yet. Raises: InvalidRequest."""
    try:
        from PIL import Image
    except ImportError:
        raise InvalidRequest(f"images need Pillow, which is not installed: {install_hint('media')}") from None
    warnings.filterwarnings("ignore", module="PIL")  # about damaged notes of cameras, and about sizes
    check_work(data, rules.limits.pixels)
    try:
        image = Image.open(TimedBytes(data), formats=IMAGE_FORMATS)
    except InvalidRequest:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise rules.above("has too many pixels", f"{rules.limits.pixels:,}", "pixels_max") from None
    except Exception as error:
        raise InvalidRequest(_NOT_IMAGE) from error
    if image.width * image.height > rules.limits.pixels:
        found = f"has {image.width:,} x {image.height:,} pixels"
        raise rules.above(found, f"{rules.limits.pixels:,}", "pixels_max")
    side_max = SIDE_SHARE * isqrt(rules.limits.pixels)
    if max(image.size) > side_max:
        found = f"has {image.width:,} x {image.height:,} pixels, which is too narrow"
        raise rules.above(found, f"{side_max:,} pixels on a side", "pixels_max")
    return image


def pixels_of(image: "Image") -> "Image":
    """The picture upright in RGB, on white where it is transparent, as vLLM's server reads it.

    Raises: InvalidRequest if its data is damaged.
    """
    from PIL import Image

    encoded = getattr(image, "fp", None)
    if isinstance(encoded, TimedBytes):
        encoded.restart()
    try:
        image.load()  # which closes the encoded bytes
        _turn_upright(image)
        if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
            picture = image.convert("RGBA")
            white = Image.new("RGB", picture.size, (255, 255, 255))
            white.paste(picture, mask=picture.getchannel("A"))
            return white
        return image if image.mode == "RGB" else _in_8_bits(image).convert("RGB")
    except InvalidRequest:
        raise
    except Exception as error:
        raise InvalidRequest(f"is a damaged image: {error}") from error


def _turn_upright(image: "Image") -> None:
    """Damaged notes of a camera leave the picture as it is."""
    from PIL import ImageOps

    with suppress(Exception):
        notes = image.info.get("exif", b"")
        hexadecimal = "".join(image.info.get("Raw profile type exif", "").split("\n")[3:])
        if is_small_exif(notes) and is_small_exif(bytes.fromhex(hexadecimal)):
            ImageOps.exif_transpose(image, in_place=True)


def _in_8_bits(image: "Image") -> "Image":
    """Pillow's own conversion makes all but the darkest greys of 16 bits white. Raises: InvalidRequest."""
    if image.mode in {"I", "F"}:
        raise InvalidRequest(
            "has pixels of 32 bits, whose brightness is not defined; convert it to 8 bits for each color"
        )
    return image.point(lambda grey: grey * (1 / 256)).convert("L") if image.mode.startswith("I;16") else image


def read_wav(data: bytes) -> Recording:
    """Raises: InvalidRequest."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            made: dict[str, Any] = {"rate": file.getframerate(), "num_channels": file.getnchannels()}
            recording = Recording(**made, width=file.getsampwidth(), frames=file.readframes(file.getnframes()))
    except (wave.Error, EOFError, ValueError) as error:
        why = str(error) or "it ends early"
        raise InvalidRequest(f"is not a recording in WAV (PCM), the only format that is decoded: {why}") from error
    if not recording.frames or not recording.rate:
        raise InvalidRequest("is a recording without samples")
    if recording.width > WIDTH_MAX:
        raise InvalidRequest(f"has samples of {8 * recording.width} bits; convert them to 16")
    if not RATE_MIN <= recording.rate <= RATE_MAX or recording.rate % RATE_STEP:
        raise InvalidRequest(
            f"has {recording.rate:,} samples per second; convert it to 16,000, or another multiple of {RATE_STEP} from "
            f"{RATE_MIN:,} to {RATE_MAX:,}"
        )
    return recording


def read_text(data: bytes) -> str:
    """Raises: InvalidRequest."""
    if data.startswith(b"%PDF"):
        raise InvalidRequest("is a PDF document, and only text can be read: extract the text of the document")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest("is not text in UTF-8") from error
    if "\0" in text:
        raise InvalidRequest("is not text in UTF-8")
    return text
