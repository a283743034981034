"""What the requests of a service's tenants may read in addition to themselves, by its settings."""

from urllib.parse import urlsplit

from batchfile.inbox.keys import INBOX_PREFIX
from batchfile.ledger.records import BatchRecord
from batchfile.media.rules import MediaRules, OwnBucket
from batchfile.settings import Settings


def media_rules(settings: Settings, store_url: str, batch: BatchRecord) -> MediaRules:
    access = settings.media_of(batch.tenant)
    return MediaRules(
        tenant=batch.tenant,
        allow=access.allow,
        allow_private=access.allow_private,
        own_bucket=_own_bucket(store_url, batch.tenant),
        limits=access.limits,
    )


def _own_bucket(store_url: str, tenant: str) -> OwnBucket | None:
    parts = urlsplit(store_url)
    if parts.scheme != "s3":
        return None
    prefix = parts.path.strip("/")
    inbox = f"{prefix}/{INBOX_PREFIX}" if prefix else INBOX_PREFIX
    return OwnBucket(name=parts.netloc, inbox=f"{inbox}{tenant}/", query=parts.query)
