"""Estimates the time and cost of a file from a sample of it, the measurements of the pools' runners, and hosted prices.

The first requests are all counted, then every tenth, then every hundredth, so that a file of any size takes seconds.
A figure that was not measured is left out. The only file that uses genai-prices, which is imported on demand.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from batchfile.errors import InvalidFile, InvalidRequest, SettingsError, install_hint
from batchfile.ledger.records import HeartbeatRecord
from batchfile.lines.envelope import decode_envelope
from batchfile.lines.framing import NO_REQUEST, iter_lines
from batchfile.lines.parse import parse_request
from batchfile.local.receipt import Receipt, Speed
from batchfile.routing import route
from batchfile.types import Defaults, InputFormat, Request, RoutingTable

CHARS_PER_TOKEN = 4  # of English, about; other languages and code have fewer
STEP = 10
FULL_MAX = 10_000  # requests that are all counted; the next stretch is ten times as long
FILLED = 2  # times the slots of an engine: fewer requests do not show its speed
NO_DEFAULTS = Defaults()
FULL_MAX_TOKENIZED = 1_000  # a tokenizer takes about a millisecond a request


@dataclass(slots=True, kw_only=True)
class Sample:
    """`num_requests` is exact. The other figures are from `num_looked_at` requests, scaled to all.

    `num_bad` requests cannot run, and no other figure includes them. `pools`: requests by pool, where routing is known;
    `num_unrouted` have no pool. `max_output_tokens`: the sum of their limits.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedPrice:
    """A price in US dollars. `is_batch`: the provider's price for batches; else its list price."""

    model: str
    provider: str
    input_usd: float
    max_output_usd: float
    is_batch: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTime:
    """A pool's part of the work. `requests_per_s`: of its runners while they had work in the last minute, if any.

    `output_tokens_each`: the average of its runners' answers since they started. `waiting`: requests ahead of these.
    `request_s`: the time of one request, the median of the slowest runner. `busy_s`: for these requests alone;
    `until_s`: until they are done; neither is less than `request_s`.
    """

    pool: str
    num_requests: int
    num_runners: int
    waiting: int
    requests_per_s: float | None
    output_tokens_each: float | None
    request_s: float | None = None

    @property
    def busy_s(self) -> float | None:
        return self._takes_s(self.num_requests)

    @property
    def until_s(self) -> float | None:
        return self._takes_s(self.num_requests + self.waiting)

    def _takes_s(self, num: int) -> float | None:
        return None if self.requests_per_s is None else max(num / self.requests_per_s, self.request_s or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTime:
    """A run on this machine, in proportion to the one with this `receipt` and `speed`.

    `output_tokens`: at the earlier run's average, and within the limits of the requests. `work_s`: in proportion to
    these or to the bytes of the requests, whichever is more. `is_at_most`: that run had fewer requests, too few to fill
    the engine, so that each takes less time in a longer one.
    """

    receipt: Receipt
    speed: Speed
    output_tokens: int
    work_s: float
    is_at_most: bool

    @property
    def total_s(self) -> float:
        return self.speed.startup_s + self.work_s


def local_time(sample: Sample, receipt: Receipt) -> LocalTime:
    """`receipt`: one with a speed."""
    speed = receipt.speed
    assert speed is not None
    num = sample.num_requests - sample.num_bad
    output_tokens = min(num * speed.output_tokens / speed.requests, sample.max_output_tokens)
    share = output_tokens / speed.output_tokens if speed.output_tokens else num / speed.requests
    bytes_each = receipt.input.jsonl_bytes / receipt.input.requests
    share_of_bytes = sample.size_bytes / (bytes_each * speed.requests)
    return LocalTime(
        receipt=receipt,
        speed=speed,
        output_tokens=round(output_tokens),
        work_s=speed.busy_s * max(share, share_of_bytes),
        is_at_most=speed.requests < min(num, FILLED * speed.slots),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`tokenizer` None: tokens were estimated from characters. `times`: of the requests' pools; None: not asked for.
    `local`: of a run on this machine, if one was measured.

    `gpus`: of each pool, at `gpu_hour` dollars. `gpu_usd`: for these requests alone; None where a figure is unknown.
    """

    sample: Sample
    tokenizer: str | None
    times: list[PoolTime] | None
    expected_output_tokens: int | None
    gpu_hour: float | None
    gpus: int | None
    hosted: list[HostedPrice]
    local: LocalTime | None = None

    @property
    def gpu_usd(self) -> float | None:
        times = self.times or []
        busy = [time.busy_s for time in times if time.busy_s is not None]
        if self.local is not None:
            busy = [self.local.total_s]
        if not busy or len(busy) < len(times) or self.gpu_hour is None or self.gpus is None:
            return None
        return sum(busy) / 3600 * self.gpu_hour * self.gpus


def pool_times(sample: Sample, runners: Sequence[HeartbeatRecord], waiting: Mapping[str, int]) -> list[PoolTime]:
    """The times of the pools, by name."""
    return [_pool_time(pool, num, runners, waiting.get(pool, 0)) for pool, num in sorted(sample.pools.items())]


def expected_output_tokens(sample: Sample, times: Sequence[PoolTime]) -> int | None:
    """By the average length of the pools' answers so far; None where a pool has no answers yet."""
    total = 0.0
    for time in times:
        if time.output_tokens_each is None:
            return None
        total += time.num_requests * time.output_tokens_each
    return min(round(total), round(sample.max_output_tokens)) if times else None


def _pool_time(pool: str, num: int, runners: Sequence[HeartbeatRecord], waiting: int) -> PoolTime:
    own = [runner for runner in runners if runner.pool == pool]
    rate = sum(runner.requests_per_s for runner in own)
    answers = sum(runner.totals.succeeded for runner in own)
    tokens = sum(runner.totals.output_tokens for runner in own)
    return PoolTime(
        pool=pool,
        num_requests=num,
        num_runners=len(own),
        waiting=waiting,
        requests_per_s=rate or None,
        output_tokens_each=tokens / answers if answers else None,
        request_s=max((runner.latency_p50_s for runner in own if runner.latency_p50_s is not None), default=None),
    )


def read_sample(
    chunks: Iterable[bytes],
    *,
    routing: RoutingTable | None,
    stage: str | None,
    count: Callable[[Request], int] | None,
    full_max: int | None = None,
    defaults: Defaults = NO_DEFAULTS,
) -> Sample:
    """`count`: a request's input tokens; None: its characters by CHARS_PER_TOKEN. Raises: InvalidFile."""
    left = full = full_max or (FULL_MAX if count is None else FULL_MAX_TOKENIZED)
    found, weight, weights = Sample(), 1, 0
    for line in iter_lines(chunks):
        found.size_bytes = line.end
        if found.num_requests % weight == 0:
            found.num_looked_at += 1
            weights += weight
            _add(found, line.data or b"", weight, routing, stage, count or _by_characters, defaults)
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
    defaults: Defaults,
) -> None:
    try:
        envelope = decode_envelope(line)
        request = parse_request(envelope, defaults)
        tokens = count(request)
    except InvalidRequest:
        found.num_bad += weight
        return
    found.format = found.format or envelope.format
    found.input_tokens += weight * tokens
    if request.generates:
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


def hosted_price(name: str, input_tokens: int, max_output_tokens: int) -> HostedPrice:
    """The price of a model by its name, or `provider:name`. Raises: SettingsError where it is unknown."""
    try:
        from genai_prices import Usage, calc_price
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        raise SettingsError(f"--against needs the package genai-prices: {install_hint('prices')}") from None
    first, _, rest = name.partition(":")  # a model's own name may have a colon too
    is_provider = first in {provider.id for provider in get_snapshot().providers}
    provider, model = (first, rest) if is_provider else ("", name)
    usage = Usage(input_tokens=input_tokens, output_tokens=max_output_tokens)
    try:
        listed = calc_price(usage, model, provider_id=provider or None)
        batch = calc_price(usage, model, provider_id=provider or None, price_context={"processing": "batch"})
    except LookupError:
        raise SettingsError(
            f"--against {name}: genai-prices has no price for this model; use its name or provider:name"
        ) from None
    return HostedPrice(
        model=batch.model.id,
        provider=batch.provider.id,
        input_usd=float(batch.input_price),
        max_output_usd=float(batch.output_price),
        is_batch=batch.total_price < listed.total_price,
    )
