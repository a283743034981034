"""Counts what is in a file of requests, in one pass and in bounded memory. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.lines.envelope import decode_envelope
from batchfile.lines.framing import NO_REQUEST, iter_lines
from batchfile.lines.parse import parse_request
from batchfile.lines.prefixes import SharedPrefixes
from batchfile.types import Defaults, Request

VALUES_MAX = 1000  # of a counter; further ones are counted together
NATIVE = "params"  # the "endpoint" of native lines


@dataclass(slots=True, kw_only=True)
class Extent:
    """A sum over requests, and the largest one."""

    total: int = 0
    longest: int = 0

    def add(self, num: int) -> None:
        self.total += num
        self.longest = max(self.longest, num)


@dataclass(slots=True, kw_only=True)
class FileStats:
    """`num_requests` counts every line that is not blank; `num_bad` of them cannot run and are in no other figure.

    Counters are of requests. `endpoints`: by their url, or `params`; `models`: those that name one. A key None: further
    values. `chars`: of text in prompts; `tokens`: None without a tokenizer; `output_tokens_max`: the sum of the limits,
    of defaults too.
    """

    num_requests: int = 0
    num_bad: int = 0
    size_bytes: int = 0
    endpoints: Counter[str | None] = field(default_factory=Counter)
    models: Counter[str | None] = field(default_factory=Counter)
    chars: Extent = field(default_factory=Extent)
    tokens: Extent | None = None
    output_tokens_max: int = 0
    prefixes: SharedPrefixes = field(default_factory=SharedPrefixes)


def read_stats(
    chunks: Iterable[bytes], name: str, defaults: Defaults, count: Callable[[Request], list[int]] | None = None
) -> FileStats:
    """`name`: of the file, for messages. `count`: the tokens of a request's prompt, or of each of its inputs.

    Raises: InvalidFile without any request.
    """
    found = FileStats(tokens=None if count is None else Extent())
    for line in iter_lines(chunks):
        found.num_requests += 1
        found.size_bytes = line.end
        try:
            envelope = decode_envelope(line.data or b"")
            request = parse_request(envelope, defaults)
            nums = [] if count is None else count(request)
        except InvalidRequest:
            found.num_bad += 1
            continue
        _add(found.endpoints, envelope.url if envelope.format == "openai" else NATIVE)
        if request.model is not None:
            _add(found.models, request.model)
        _add_request(found, request)
        if found.tokens is not None:
            found.tokens.add(sum(nums))
    if not found.num_requests:
        raise InvalidFile(f"{name}: {NO_REQUEST}")
    return found


def _add(counter: Counter[str | None], value: str | None) -> None:
    counter[value if value in counter or len(counter) < VALUES_MAX else None] += 1


def _add_request(found: FileStats, request: Request) -> None:
    sampling = request.sampling
    if request.generates:
        found.output_tokens_max += sampling.max_tokens * sampling.num_choices
    if request.raw is not None:
        texts = [given for given in request.raw.inputs if isinstance(given, str)]
        if request.kind == "completion" and texts:
            found.prefixes.add(texts[0])
    else:
        texts = [message.content for message in request.messages]
        offered = "" if request.tools is None else repr(request.tools.offered)
        found.prefixes.add(offered + "".join([f"\0{turn.role}\0{turn.content}" for turn in request.messages]))
    found.chars.add(sum(map(len, texts)))
