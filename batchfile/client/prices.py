"""What hosted models would cost, by the package genai-prices. The only file that knows it; loaded when it is asked."""

from dataclasses import dataclass

from batchfile.errors import SettingsError, install_hint


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedPrice:
    """In US dollars. `is_batch`: by the provider's price for batches; else by its list price."""

    model: str
    provider: str
    input_usd: float
    max_output_usd: float
    is_batch: bool


def hosted_price(name: str, input_tokens: int, max_output_tokens: int) -> HostedPrice:
    """Of a model by its name, or `provider:name`. Raises: SettingsError where it is not known."""
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
    except LookupError as error:
        raise SettingsError(f"--against {name}: genai-prices knows no such model ({error})") from None
    return HostedPrice(
        model=batch.model.id,
        provider=batch.provider.id,
        input_usd=float(batch.input_price),
        max_output_usd=float(batch.output_price),
        is_batch=batch.total_price < listed.total_price,
    )
