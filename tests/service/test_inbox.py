"""Files dropped with the AWS command line into a real S3 server, or moved into a directory; real API processes and
runners race for them. The scenario and its checks are the bench's, at a small size.
"""

from pathlib import Path

import pytest

from tests.bench.inbox import opened, play

WAIT_S = 600.0  # a busy machine with two cores takes minutes


@pytest.mark.timeout(2 * WAIT_S)
@pytest.mark.parametrize(("kind", "apis"), [("s3", 1), ("directory", 2)])
def test_dropped_files_become_a_batch_each_and_rubbish_runs_once_it_is_mended(
    tmp_path: Path, kind: str, apis: int
) -> None:
    """API processes and three runners, janitors all; 20,000 lines, 1 % of them cut off, and 40 small files beside them.

    Answers are in the order of the input, digests are right, every process stays under 300 MiB, and the errors file
    runs to its end after it was mended and dropped again.
    """
    with opened(kind, tmp_path) as place:
        row = play(place, tmp_path, lines=20_000, files=40, apis=apis, wait_s=WAIT_S)
    assert row.problems == []
    assert (row.succeeded, row.errored, row.mended, row.batches) == (19_800, 200, 200, 42)
    assert set(row.peak_mib) == {"api", "runner", "supervisor"}
