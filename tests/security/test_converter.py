"""A file that kills its reader kills a process that does nothing else, and is then told so in plain words."""

import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchfile.errors import ConverterKilled, InvalidFile
from tests.helpers.lines import convert, converter, open_lines, parquet, parquet_lines

MIB = 1024 * 1024


def table(prompts: list[str], **options: Any) -> bytes:
    file = io.BytesIO()
    rows = {"custom_id": [str(n) for n in range(len(prompts))], "prompt": prompts}
    pq.write_table(pa.table(rows), file, compression="zstd", **options)
    return file.getvalue()


def converted(data: bytes) -> bytes:
    return b"".join(convert("a.parquet", "parquet", io.BytesIO(data)))


def test_values_that_no_request_can_have_are_refused_by_the_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two values of 500 MB, which take 16 kB in the file."""
    monkeypatch.setattr(parquet, "ROW_BYTES_MAX", 4 * MIB)
    path = tmp_path / "a.parquet"
    path.write_bytes(table(["x" * 5 * MIB, "y" * 5 * MIB], use_dictionary=False))
    assert path.stat().st_size < 16_000
    with pytest.raises(InvalidFile, match=r"column prompt has 10,\d{3},\d{3} bytes in the 2 rows of row group 0"):
        list(parquet_lines(str(path)))
    path.write_bytes(table(["x" * 5 * MIB, "y", "z"], use_dictionary=False))
    assert b"".join(parquet_lines(str(path))).count(b"\n") == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system limits address space")
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_one_value_that_the_footer_does_not_tell_of_ends_the_child_and_not_this_process(
    monkeypatch: pytest.MonkeyPatch, use_dictionary: bool
) -> None:
    monkeypatch.setattr(converter, "MEMORY_BYTES_MAX", 48 * MIB)
    data = table(["x" * 64 * MIB, *["y"] * 99], use_dictionary=use_dictionary)
    with pytest.raises(InvalidFile, match=r"a.parquet: takes more than 48 MiB of memory to read"):
        converted(data)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system limits address space")
def test_a_value_that_many_rows_name_needs_memory_for_each_and_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the footer a row has a few bytes: the value is in a dictionary."""
    prompts = pa.DictionaryArray.from_arrays(pa.array([0] * 3200, pa.int32()), pa.array(["x" * 8 * MIB]))
    file = io.BytesIO()
    pq.write_table(pa.table({"custom_id": ["a"] * 3200, "prompt": prompts}), file)
    monkeypatch.setattr(converter, "MEMORY_BYTES_MAX", 128 * MIB)
    with pytest.raises(InvalidFile, match="takes more than 128 MiB of memory"):
        converted(file.getvalue())


def test_rows_as_large_as_a_request_may_be_are_read_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "MEMORY_BYTES_MAX", 512 * MIB)  # half of what the API's manifest gives it
    prompts = ["x" * 15 * MIB] * 12
    data = table(prompts, use_dictionary=False, data_page_size=1, write_batch_size=1)
    sizes = [len(chunk) for chunk in convert("a.parquet", "parquet", io.BytesIO(data))]
    assert sum(sizes) > 12 * 15 * MIB
    assert max(sizes) <= MIB


def dying(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    command = [sys.executable, "-c", f"import os, resource, signal\n{textwrap.dedent(code)}"]
    monkeypatch.setattr(converter, "_command", lambda *args: command)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            InvalidFile,
            "crashed the process reading it .signal 11., so the file",
        ),
        ("os.abort()", InvalidFile, "of memory to read"),
        ("os._exit(3)", InvalidFile, r"exit status 3"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", InvalidFile, "too much time"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ConverterKilled, "was killed .signal 9., perhaps because"),
        ("os.write(1, b'L' + bytes(7) + bytes([9]) + b'half'); os._exit(0)", InvalidFile, "exit status 0"),
    ],
)
def test_each_way_in_which_the_child_ends_has_its_words(
    monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception], said: str
) -> None:
    dying(monkeypatch, code)
    with pytest.raises(error, match=said):
        converted(table(["a"]))


def test_a_child_that_does_nothing_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    dying(monkeypatch, "os.kill(os.getpid(), signal.SIGSTOP)")
    monkeypatch.setattr(converter, "SILENT_S_MAX", 0.2)
    monkeypatch.setattr(converter, "BEAT_S", 0.05)
    beats: list[int] = []
    with pytest.raises(InvalidFile, match="made no progress"):
        list(convert("a.parquet", "parquet", io.BytesIO(table(["a"])), beat=lambda: beats.append(1)))
    assert beats, "a lease is renewed meanwhile"


def test_the_childs_time_is_its_own_cpu_time(tmp_path: Path) -> None:
    code = """
        from batchfile.lines import converter_child
        converter_child.CPU_S_MAX = 1
        converter_child._limit_time()
        while True:
            pass
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == -signal.SIGXCPU


def test_an_error_of_the_stream_is_raised_as_it_is() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "on purpose")

    with pytest.raises(OSError, match="on purpose"):
        list(convert("a.parquet", "parquet", Failing(b"PAR1" * 100)))


def test_no_child_stays_and_none_has_the_secrets_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    dying(monkeypatch, "v = 'AWS_SECRET_ACCESS_KEY' in os.environ; os._exit(4 if v else 5)")
    with pytest.raises(InvalidFile, match="exit status 5"):
        converted(table(["a"]))
    monkeypatch.undo()
    chunks = convert("a.parquet", "parquet", io.BytesIO(table(["x" * MIB] * 20)))
    before = set(psutil.Process().children())
    next(chunks)
    (child,) = set(psutil.Process().children()) - before
    chunks.close()  # type: ignore[attr-defined]
    assert not child.is_running()


def test_pyarrow_is_not_loaded_where_a_file_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(table(["hello"]))
    assert b"hello" in b"".join(open_lines(str(path), "parquet", None))
    code = f"""
        import sys
        from batchfile.lines.file_formats import open_lines
        assert b"hello" in b"".join(open_lines({str(path)!r}, "parquet", None))
        assert "pyarrow" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[2])
    assert done.returncode == 0


def test_a_process_with_many_open_files_converts_too() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 2048:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2048, limits[0]), limits[1]))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert converted(table(["hello"])).count(b"\n") == 1
    finally:
        for fd in files:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
