"""The table from a bucket's answers and a client's errors to ours."""

import botocore.exceptions as boto_errors
import pytest
from urllib3.exceptions import ProtocolError

from batchfile.errors import ObjectChanged, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable, StoreUnfit
from batchfile.store import s3_requests
from batchfile.store.s3_requests import NotModified, PastTheEnd, error_of_answer

READS = {
    301: StoreError,
    304: NotModified,
    400: StoreError,
    401: StoreError,
    403: StoreError,
    404: ObjectMissing,
    408: StoreUnavailable,
    409: StoreUnavailable,
    412: ObjectChanged,
    416: PastTheEnd,
    418: StoreError,
    429: StoreUnavailable,
    500: StoreUnavailable,
    502: StoreUnavailable,
    503: StoreUnavailable,
    504: StoreUnavailable,
}
CONDITIONAL_WRITES = {
    404: PreconditionFailed,
    409: PreconditionFailed,
    412: PreconditionFailed,
    500: PreconditionFailed,
}


@pytest.mark.parametrize(("status", "kind"), READS.items())
def test_a_status_has_its_error(status: int, kind: type[StoreError]) -> None:
    error = error_of_answer("a/b", status, "", is_conditional=False)
    assert type(error) is kind
    assert str(error).startswith("a/b: ")
    assert str(status) in str(error)


@pytest.mark.parametrize(("status", "kind"), (READS | CONDITIONAL_WRITES | {501: StoreUnfit}).items())
def test_a_conditional_write_reads_lost_races_differently(status: int, kind: type[StoreError]) -> None:
    assert type(error_of_answer("a/b", status, "", is_conditional=True)) is kind


@pytest.mark.parametrize("is_conditional", [False, True])
def test_a_missing_bucket_is_not_a_missing_object(is_conditional: bool) -> None:
    error = error_of_answer("a/b", 404, "NoSuchBucket", is_conditional=is_conditional)
    assert type(error) is StoreError


def every_error_of_the_client() -> list[type[Exception]]:
    found = [value for value in vars(boto_errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, boto_errors.BotoCoreError)]


@pytest.mark.parametrize("kind", every_error_of_the_client(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_client_becomes_ours(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "as the client says it")
    with pytest.raises(StoreError, match=r"a/b: .*as the client says it"), s3_requests.translated("a/b"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        boto_errors.ReadTimeoutError(endpoint_url="u"),
        boto_errors.ConnectTimeoutError(endpoint_url="u"),
        boto_errors.EndpointConnectionError(endpoint_url="u"),
        boto_errors.ConnectionClosedError(endpoint_url="u"),
        boto_errors.ResponseStreamingError(error="e"),
        boto_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        ProtocolError("e"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_broken_connection_is_unavailable(error: Exception) -> None:
    with pytest.raises(StoreUnavailable), s3_requests.translated("a/b"):
        raise error
