"""What a file asks for, counted over a sample of its requests. Pure but for the reading. Knows no pool's speed.

The first requests all count, then every tenth, then every hundredth: whatever its size, a file takes seconds.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from batchfile.errors import InvalidFile, InvalidRequest
from batchfile.lines.envelope import decode_envelope
from batchfile.lines.framing import NO_REQUEST, iter_lines
from batchfile.lines.parse import parse_request
from batchfile.routing import route
from batchfile.types import Defaults, InputFormat, Request, RoutingTable

CHARS_PER_TOKEN = 4  # of English, about; other languages and code have fewer
STEP = 10
FULL_MAX = 10_000  # so many requests count each, and ten times as many in the next stretch
FULL_MAX_TOKENIZED = 1_000  # a tokenizer takes about a millisecond a request


@dataclass(slots=True, kw_only=True)
class Sample:
    """`num_requests` is exact. The rest is of `num_looked_at` requests, and scaled to all.

    `num_bad` can not be read, and no other figure holds them. `pools`: requests by pool, where routing is known;
    `num_unrouted` lead to none. `max_output_tokens`: what they allow at most.
    """

    num_requests: int = 0
    num_looked_at: int = 0
    size_bytes: int = 0
    format: InputFormat | None = None
    num_bad: float = 0
    num_unrouted: float = 0
    input_tokens: float = 0
    max_output_tokens: float = 0
    pools: Counter[str] = field(default_factory=Counter)

    @property
    def is_whole(self) -> bool:
        return self.num_looked_at == self.num_requests


def read_sample(
    chunks: Iterable[bytes],
    *,
    routing: RoutingTable | None,
    stage: str | None,
    count: Callable[[Request], int] | None,
    full_max: int | None = None,
) -> Sample:
    """`count`: a request's input tokens; None: its characters by CHARS_PER_TOKEN. Raises: InvalidFile."""
    left = full = full_max or (FULL_MAX if count is None else FULL_MAX_TOKENIZED)
    found, weight, weights = Sample(), 1, 0
    for line in iter_lines(chunks):
        found.size_bytes = line.end
        if found.num_requests % weight == 0:
            found.num_looked_at += 1
            weights += weight
            _add(found, line.data or b"", weight, routing, stage, count or _by_characters)
            left -= 1
            if not left:
                left, weight = full - full // STEP, weight * STEP
        found.num_requests += 1
    if not found.num_requests:
        raise InvalidFile(f"the file {NO_REQUEST}")
    return _scaled(found, found.num_requests / weights)


def _add(
    found: Sample,
    line: bytes,
    weight: int,
    routing: RoutingTable | None,
    stage: str | None,
    count: Callable[[Request], int],
) -> None:
    try:
        envelope = decode_envelope(line)
        request = parse_request(envelope, Defaults())
        tokens = count(request)
    except InvalidRequest:
        found.num_bad += weight
        return
    found.format = found.format or envelope.format
    found.input_tokens += weight * tokens
    if request.kind != "embedding":
        found.max_output_tokens += weight * request.sampling.max_tokens * request.sampling.num_choices
    if routing is None:
        return
    try:
        pool = route(routing, stage=stage, hint=envelope.hint, model=envelope.model)
    except InvalidRequest:
        found.num_unrouted += weight
    else:
        found.pools[pool] += weight


def _by_characters(request: Request) -> int:
    texts = [message.content for message in request.messages]
    if request.raw is not None:
        texts = [given for given in request.raw.inputs if isinstance(given, str)]
        tokens = sum(len(given) for given in request.raw.inputs if not isinstance(given, str))
        return tokens + sum(map(len, texts)) // CHARS_PER_TOKEN
    return sum(map(len, texts)) // CHARS_PER_TOKEN


def _scaled(found: Sample, factor: float) -> Sample:
    found.num_bad *= factor
    found.num_unrouted *= factor
    found.input_tokens *= factor
    found.max_output_tokens *= factor
    found.pools = Counter({pool: round(num * factor) for pool, num in found.pools.items()})
    return found
