"""What a bucket's HTTP answers mean: the one table from status and code to our errors. Knows no client."""

from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable, StoreUnfit
from batchfile.store.conformance import FIT_STORES


class NotModified(StoreError):
    """HTTP 304: the object still has the etag that was given."""


class PastTheEnd(StoreError):
    """HTTP 416: the range begins at or after the end of the object."""


# HTTP status -> error, what to do.
_BY_STATUS: dict[int, tuple[type[StoreError], str]] = {
    301: (StoreError, "the bucket is in another region: give it (?region=...)"),
    304: (NotModified, "not modified"),
    307: (StoreError, "the bucket is in another region: give it (?region=...)"),
    401: (StoreError, "the credentials were not accepted: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    403: (
        StoreError,
        "access was denied: check the credentials, the machine's clock, and that they allow "
        "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
    ),
    404: (ObjectMissing, "not found"),
    408: (StoreUnavailable, "the store did not answer in time"),
    409: (StoreUnavailable, "another operation was under way"),
    412: (ObjectChanged, "the object is not the one that was pinned any more"),
    416: (PastTheEnd, "the range begins after the end of the object"),
    429: (StoreUnavailable, "the store asks for fewer requests"),
    500: (StoreUnavailable, "the store had an error inside"),
    502: (StoreUnavailable, "the store could not be reached through its gateway"),
    503: (StoreUnavailable, "the store is busy or down"),
    504: (StoreUnavailable, "the store did not answer its gateway in time"),
}
# What else these mean as the answer to a conditional write (some servers give a lost race 409 or 500).
_LOST = (PreconditionFailed, "the condition of the write does not hold, or its race was lost")
_BY_STATUS_CONDITIONAL: dict[int, tuple[type[StoreError], str]] = {
    404: _LOST,
    409: _LOST,
    412: _LOST,
    500: _LOST,
    501: (StoreUnfit, f"the store has no conditional writes. {FIT_STORES}"),
}
# Codes that say more than their status.
_BY_CODE: dict[str, tuple[type[StoreError], str]] = {
    "NoSuchBucket": (StoreError, "the bucket does not exist: create it or correct its name"),
    "RequestTimeout": (StoreUnavailable, "the store waited too long for the request"),
    "SlowDown": (StoreUnavailable, "the store asks for fewer requests"),
}


def error_of_answer(what: str, status: int, code: str, *, is_conditional: bool) -> StoreError:
    """The error for an HTTP answer that was no success. `code` is the one in S3's XML, or empty."""
    found = _BY_CODE.get(code) or (_BY_STATUS_CONDITIONAL.get(status) if is_conditional else None)
    kind, advice = found or _BY_STATUS.get(status, (StoreError, "the store refused the request"))
    return kind(f"{what}: {advice} (HTTP {status} {code})")
