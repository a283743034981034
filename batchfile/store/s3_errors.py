"""What boto3 raises, as errors of ours: one table, and the answers of `s3_answers`."""

from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions as boto_errors
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as Urllib3Error

from batchfile.errors import StoreError, StoreUnavailable
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
    try:
        yield
    except boto_errors.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise error_of_answer(what, status, code, is_conditional=is_conditional) from error
    except tuple(row[0] for row in _BY_TYPE) as error:
        kind, advice = next(row[1:] for row in _BY_TYPE if isinstance(error, row[0]))
        raise kind(f"{what}: {advice} ({error})") from error


def bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')
