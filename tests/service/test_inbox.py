"""Files dropped with the AWS command line into a real S3 server, or moved into a directory; real API processes and
runners race for them. The scenario and its checks are the bench's, at a small size.
"""

from pathlib import Path

import pytest

from tests.bench.inbox import opened, play

WAIT_S = 600.0  # a busy machine with two cores takes minutes


SIZES = [
    pytest.param("directory", 2, 10_000, 20, id="directory"),
    pytest.param("s3", 1, 2_000, 10, marks=pytest.mark.long, id="s3"),
    pytest.param("s3", 1, 20_000, 40, marks=pytest.mark.long, id="s3-large"),
]


@pytest.mark.timeout(2 * WAIT_S)
@pytest.mark.parametrize(("kind", "apis", "lines", "files"), SIZES)
def test_dropped_files_become_a_batch_each_and_rubbish_runs_once_it_is_fixed(
    tmp_path: Path, kind: str, apis: int, lines: int, files: int
) -> None:
    """API processes and three runners, janitors all; a large file, 1 % of its lines cut off, and small ones beside.

    Answers are in the order of the input, digests are right, every process stays under 300 MiB, and the errors file
    runs to its end after it was fixed and dropped again.
    """
    with opened(kind, tmp_path) as place:
        row = play(place, tmp_path, lines=lines, files=files, apis=apis, wait_s=WAIT_S)
    assert row.problems == []
    bad = lines // 100
    assert (row.succeeded, row.errored, row.fixed, row.batches) == (lines - bad, bad, bad, files + 2)
    assert set(row.peak_mib) == {"api", "runner", "supervisor"}
