"""What boto3 raises, as errors of ours: one table, and the answers of `s3_answers`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import botocore.exceptions as boto_errors
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as Urllib3Error

from batchfile.errors import StoreError, StoreUnavailable
from batchfile.store import s3_deadline
from batchfile.store.s3_answers import error_of_answer

# Errors from before or after an HTTP answer; the first that fits.
_BY_TYPE: tuple[tuple[type[Exception], type[StoreError], str], ...] = (
    (boto_errors.NoCredentialsError, StoreError, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (
        boto_errors.PartialCredentialsError,
        StoreError,
        "half the credentials: set both AWS_ACCESS_KEY_ID and its secret",
    ),
    (boto_errors.ParamValidationError, StoreError, "the store's name can not be used"),
    (boto_errors.HTTPClientError, StoreUnavailable, "the connection broke"),
    (boto_errors.ConnectionError, StoreUnavailable, "no connection to the store"),
    (boto_errors.IncompleteReadError, StoreUnavailable, "the answer was cut short"),
    (ResponseParserError, StoreUnavailable, "the answer cannot be read"),
    (Urllib3Error, StoreUnavailable, "the connection broke"),
    (boto_errors.BotoCoreError, StoreError, "the client could not make the request"),
    (ValueError, StoreError, "the store's address can not be used"),
)


@contextmanager
def translated(what: str, *, is_conditional: bool = False) -> Iterator[None]:
    s3_deadline.forget()
    try:
        yield
    except boto_errors.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise error_of_answer(what, status, code, is_conditional=is_conditional) from error
    except tuple(row[0] for row in _BY_TYPE) as error:
        limit_s = s3_deadline.cut_after_s()
        if limit_s is not None:
            message = f"{what}: broken off because it was not answered in whole within {limit_s:.0f} s ({error})"
            raise StoreUnavailable(message) from error
        kind, advice = next(row[1:] for row in _BY_TYPE if isinstance(error, row[0]))
        raise kind(f"{what}: {advice} ({error})") from error


# One of these is in each answer with a status of 2xx. Without it, something else has answered: a proxy on the way, a
# login page.
_WITNESSES: dict[str, tuple[str, ...]] = {
    "GetObject": ("ETag",),
    "HeadObject": ("ETag",),
    "PutObject": ("ETag",),
    "ListObjectsV2": ("Name", "KeyCount", "IsTruncated", "Contents"),
    "CreateMultipartUpload": ("UploadId",),
    "UploadPart": ("ETag",),
    "CompleteMultipartUpload": ("ETag",),
}


def must_be_an_answer(http_response: Any, parsed: Mapping[str, Any], model: Any, **_: Any) -> None:
    """A hook of botocore's, after each call. Raises: StoreUnavailable where it was not a store that answered."""
    witnesses = _WITNESSES.get(model.name, ())
    if witnesses and 200 <= http_response.status_code < 300 and not any(name in parsed for name in witnesses):
        kind = http_response.headers.get("Content-Type", "no content type")
        raise StoreUnavailable(
            f"{model.name} was answered {http_response.status_code} by something that is not an S3 store: "
            f"no {witnesses[0]}, {kind}. Look for a proxy or a login page between this process and the store"
        )


def bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')
