"""Parts of a turn other than its text, as OpenAI's, vLLM's and Anthropic's formats have them.

Each becomes text (documents whose text is in the request) or a reference to media, which is read later. Knows only what
a request says: whether it may read a source, and what is there, is decided where the request runs.
"""

import re
from base64 import b64decode
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from batchfile.lines.diagnostics import Diagnostic, Path, shown
from batchfile.lines.formats.shared import JOINT, Name, NoEffect, Strict, TextBlock, text_of
from batchfile.request_media import Media, MediaKind
from batchfile.types import Message

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*")
BASE64_CHARS_MIN = 80  # a path of that length has a dot, a hyphen or an underscore
_SCHEMES = ("data", "http", "https", "s3")
_DATA_URL = re.compile(r"data:([^;,]*)(;[^,]*)?,")
_BY_ID = "files are not referred to by ID; put the file into the request, or name its URL or path"
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/x-ndjson")
_NOT_TEXT = "documents of type {mime} cannot be read; only text can: extract the text of this document"


def _media(kind: MediaKind, source: str, detail: str | None = None) -> Media:
    """Raises: ValueError for a source of an unknown form, or one that cannot be of this kind."""
    source = source.strip()
    scheme = _SCHEME.match(source)
    if scheme is None:
        if len(source) >= BASE64_CHARS_MIN and _BASE64.fullmatch(source):
            raise ValueError(
                f"looks like base64 without the start of a data URL; put data:{kind}/TYPE;base64, before it"
            )
        return Media(kind=kind, source=source, detail=detail)
    if scheme[1].lower() not in _SCHEMES:
        raise ValueError(
            f"{shown(source)} cannot be read; use a data:, http(s): or s3: URL, or a path next to the input file"
        )
    if scheme[1].lower() != "data":
        return Media(kind=kind, source=source, detail=detail)
    if scheme[1] != "data":
        source = f"data:{source[scheme.end() :]}"
    if any(space in source for space in " \n\r\t"):  # base64 is often wrapped in lines
        source = "".join(source.split())
    head = _DATA_URL.match(source)
    if head is None or not (head[2] or "").lower().endswith(";base64"):
        raise ValueError("must be a data URL in base64, such as data:image/png;base64,iVBORw0...")
    return Media(kind=kind, source=source, mime=head[1].lower(), detail=detail)


def _document(media: Media) -> str | Media:
    """A document inside the request is read at once. Raises: ValueError if it is not text."""
    if media.mime and not media.mime.startswith(_TEXT_TYPES):
        raise ValueError(_NOT_TEXT.format(mime=media.mime))
    if not media.source.startswith("data:"):
        return media
    try:
        return b64decode(media.source.partition(",")[2], validate=True).decode("utf-8-sig")
    except ValueError:
        raise ValueError("is not text in UTF-8 and base64") from None


def _only_one(given: object, *keys: str) -> None:
    """Raises: ValueError where a file has several sources, of which only one could be read."""
    found = [key for key in keys if getattr(given, key)]
    if len(found) > 1:
        raise ValueError(f"has {' and '.join(found)}; keep one of them")


class _Part(Strict):
    """A part that is not only text. `read` gives what it contains, in order."""

    def read(self) -> tuple[str | Media, ...]:
        """Raises: ValueError."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _is_readable(self) -> "_Part":
        self.read()
        return self


class InputText(_Part):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        return (self.text,)


class RefusalPart(_Part):
    """What a model said instead of an answer, in history."""

    type: Literal["refusal"]
    refusal: str

    def read(self) -> tuple[str | Media, ...]:
        return (self.refusal,)


class ImageUrl(Strict):
    url: Name
    detail: str | None = None


class ImageUrlPart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl | Name
    uuid: NoEffect = None
    prompt_cache_breakpoint: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        given = self.image_url
        url, detail = (given, None) if isinstance(given, str) else (given.url, given.detail)
        return (_media("image", url, detail),)


class InputImagePart(_Part):
    type: Literal["input_image"]
    image_url: Name | None = None
    detail: str | None = None
    file_id: str | None = None
    prompt_cache_breakpoint: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        if self.image_url is None:
            raise ValueError(_BY_ID if self.file_id else "needs image_url")
        _only_one(self, "image_url", "file_id")
        return (_media("image", self.image_url, self.detail),)


class InputAudio(Strict):
    data: Name
    format: Name


class InputAudioPart(_Part):
    type: Literal["input_audio"]
    input_audio: InputAudio
    uuid: NoEffect = None
    prompt_cache_breakpoint: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        return (_media("audio", f"data:audio/{self.input_audio.format};base64,{self.input_audio.data}"),)


class AudioUrl(Strict):
    url: Name


class AudioUrlPart(_Part):
    type: Literal["audio_url"]
    audio_url: AudioUrl | Name
    uuid: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        given = self.audio_url
        return (_media("audio", given if isinstance(given, str) else given.url),)


class File(Strict):
    file_data: str | None = None
    file_url: Name | None = None
    filename: str | None = None
    file_id: str | None = None

    def read(self) -> tuple[str | Media, ...]:
        source = self.file_data or self.file_url
        if source is None:
            raise ValueError(_BY_ID if self.file_id else "needs file_data or file_url")
        _only_one(self, "file_data", "file_url", "file_id")
        if self.file_data is not None and not source.startswith("data:"):
            source = f"data:;base64,{source}"
        text = _document(_media("document", source))
        if isinstance(text, str):
            return (JOINT.join(filter(None, (self.filename, text))),)
        return (self.filename, text) if self.filename else (text,)


class FilePart(_Part):
    type: Literal["file"]
    file: File
    prompt_cache_breakpoint: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        return self.file.read()


class InputFilePart(_Part, File):
    type: Literal["input_file"]
    detail: NoEffect = None
    prompt_cache_breakpoint: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        return File.read(self)


class Base64Source(Strict):
    type: Literal["base64"]
    media_type: Name
    data: Name


class UrlSource(Strict):
    type: Literal["url"]
    url: Name


class PathSource(Strict):
    """Of the native format only."""

    type: Literal["path"]
    path: Name


class FileSource(Strict):
    type: Literal["file"]
    file_id: str

    @model_validator(mode="after")
    def _is_refused(self) -> "FileSource":
        raise ValueError(_BY_ID)


class TextSource(Strict):
    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class ImageBlock(_Part):
    """Anthropic's image."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource | PathSource | FileSource, Field(discriminator="type")]
    cache_control: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        return (_media("image", _source_of(self.source)),)


class ContentSource(Strict):
    type: Literal["content"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


class DocumentBlock(_Part):
    """Anthropic's document. Its title and context are part of the text that the model reads."""

    type: Literal["document"]
    source: Annotated[
        Base64Source | UrlSource | PathSource | FileSource | TextSource | ContentSource, Field(discriminator="type")
    ]
    title: str | None = None
    context: str | None = None
    cache_control: NoEffect = None
    citations: NoEffect = None

    def read(self) -> tuple[str | Media, ...]:
        about = tuple(text for text in (self.title, self.context) if text)
        if isinstance(self.source, TextSource):
            return (*about, self.source.data)
        if isinstance(self.source, ContentSource):
            return about + read_parts(self.source.content)
        return (*about, _document(_media("document", _source_of(self.source))))


def _source_of(source: Any) -> str:
    if isinstance(source, Base64Source):
        return f"data:{source.media_type};base64,{source.data}"
    if isinstance(source, PathSource):
        if _SCHEME.match(source.path):
            raise ValueError(f"{shown(source.path)} is not a path relative to the input file")
        return source.path
    return str(source.url)


OpenAIPart = Annotated[
    TextBlock
    | InputText
    | RefusalPart
    | ImageUrlPart
    | InputImagePart
    | InputAudioPart
    | AudioUrlPart
    | FilePart
    | InputFilePart,
    Field(discriminator="type"),
]


def read_parts(content: Any) -> tuple[str | Media, ...]:
    """The texts and media of a turn's content, in order."""
    if isinstance(content, str):
        return (content,)
    found: list[str | Media] = []
    for part in content:
        found += (part.text,) if isinstance(part, TextBlock) else part.read() if isinstance(part, _Part) else ()
    return tuple(found)


def spoken(role: Any, content: Any, name: str | None = None) -> Message:
    """A turn of text and media: with `parts` if there is any of the latter. Texts are joined as everywhere."""
    if isinstance(content, str):
        return Message(role, content, name=name)
    for part in content:  # not `all`, which takes longer: most turns are of text
        if type(part) is not TextBlock:
            break
    else:
        return Message(role, text_of(content), name=name)
    parts = read_parts(content)
    text = JOINT.join([part for part in parts if isinstance(part, str)])
    has_media = any(isinstance(part, Media) for part in parts)
    return Message(role, text, name=name, parts=parts if has_media else ())


def misplaced_media(turns: list[Any], root: str) -> list[Diagnostic]:
    """Media in a turn that is not the user's: no chat template shows it there."""
    found = []
    for n, turn in enumerate(turns):
        if turn.role == "user" or not isinstance(turn.content, list):
            continue
        for at, part in enumerate(turn.content):
            if isinstance(part, _Part) and any(isinstance(one, Media) for one in part.read()):
                place: Path = (root, "messages", n, "content", at)
                found.append(Diagnostic(place, f"{part.type} belongs in a user turn", "Move it there."))  # type: ignore[attr-defined]
    return found
