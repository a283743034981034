"""Files dropped into a bucket with the AWS command line, or into a directory, and what comes back: planned, run by the
echo engine, collected, checked line by line.

Two API processes and three runners over one store, all of them janitors that race for the files. Prints how fast the
large file was planned and what memory each kind of process took at its peak (VmHWM, with all that it maps).
Run: `python tests/bench/inbox.py --lines 1000000` for one large file, `--lines 0 --files 200` for many small ones,
`--store directory` for a directory, `--server seaweedfs` for another S3 server.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.chaos.servers import BUCKET, KEYS, SERVERS, Server  # noqa: E402

LINE_BYTES = 1024
SMALL_LINES = 5
POOL = "mistral"
LARGE, FIXED, MANY = f"{POOL}/large.jsonl", f"{POOL}/fixed.jsonl", f"{POOL}/many"
MEMORY_MIB_MAX = 300.0
PLAN_MB_S_MIN = 100.0
FULL_LINES = 1_000_000


class Place(Protocol):
    """The store as someone sees it who only puts files into it and takes files out. `look_s`: between two looks."""

    url: str
    look_s: float

    def drop(self, source: Path, path: str) -> None:
        """A file, or a folder of files, to `inbox/{path}`."""

    def collect(self, path: str, target: Path) -> Path:
        """What came of `inbox/{path}`, which is a file or a folder, all in `target`."""

    def names(self, prefix: str) -> list[str]: ...


class Bucket:
    """Files go in and out with the AWS command line. It takes a second to start, so looks are ours."""

    look_s = 1.0

    def __init__(self, server: Server) -> None:
        self._client = server.client()
        self.url = f"s3://{BUCKET}/inbox-bench?endpoint={server.url}"
        self._root = f"s3://{BUCKET}/inbox-bench"
        places = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        self._environ = {**os.environ, **KEYS, **places, "AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1"}

    def drop(self, source: Path, path: str) -> None:
        more = ["--recursive"] if source.is_dir() else []
        self._aws("cp", str(source), f"{self._root}/inbox/{path}", *more)

    def collect(self, path: str, target: Path) -> Path:
        folder, _, name = path.rpartition("/")
        self._aws(
            "sync", f"{self._root}/outbox/{folder}", str(target / folder), "--exclude", "*", "--include", f"{name}*"
        )
        return target / path

    def names(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"inbox-bench/{prefix}")
        return [row["Key"].removeprefix("inbox-bench/") for page in pages for row in page.get("Contents", [])]

    def close(self) -> None:
        self._client.close()

    def _aws(self, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("aws")), "s3", *arguments, "--only-show-errors"]
        done = subprocess.run(command, env=self._environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"`{' '.join(command)}` failed: {done.stderr[-2000:]}")


class Folder:
    """A directory as the store: files come in by a rename, as `mv` does it."""

    look_s = 1.0

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root

    def drop(self, source: Path, path: str) -> None:
        target = self._root / "inbox" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        os.utime(target.parent)

    def collect(self, path: str, target: Path) -> Path:
        folder, _, name = path.rpartition("/")
        (target / folder).mkdir(parents=True, exist_ok=True)
        for found in (self._root / "outbox" / folder).glob(f"{name}*"):
            if found.is_dir():
                shutil.copytree(found, target / folder / found.name)
            else:
                shutil.copy(found, target / folder / found.name)
        return target / path

    def names(self, prefix: str) -> list[str]:
        found = (self._root / prefix).rglob("*")
        return [path.relative_to(self._root).as_posix() for path in found if path.is_file()]


class Service:
    """Processes over one store; `peak_mib`: by kind, the most that one of them had in memory."""

    def __init__(self, folder: Path, url: str, *, apis: int = 2, runners: int = 3) -> None:
        self.peak_mib: dict[str, float] = {}
        self._folder = folder
        self._commands = [["api", "--host", "127.0.0.1", "--port", "0"]] * apis
        self._commands += [["runners", "--pool", POOL, "--engine", "echo", "--metrics-port", "0"]] * runners
        self._url = url
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._look)

    def __enter__(self) -> "Service":
        environ = {**os.environ, **KEYS, "PYTHONPATH": str(ROOT), "BATCHFILE_CONFIG": ""}
        for number, command in enumerate(self._commands):
            with (self._folder / f"{command[0]}-{number}.log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *command, "--store", self._url],
                        cwd=self._folder,
                        env=environ,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.join()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()

    def _look(self) -> None:
        while not self._stop.wait(0.25):
            for process, command in zip(self._processes, self._commands, strict=True):
                with suppress(psutil.Error):
                    parent = psutil.Process(process.pid)
                    kind = "supervisor" if command[0] == "runners" else "api"
                    self._note(kind, parent)
                    for child in parent.children(recursive=True):
                        self._note("runner", child)

    def _note(self, kind: str, process: psutil.Process) -> None:
        with suppress(OSError, IndexError):
            text = Path(f"/proc/{process.pid}/status").read_text()
            mib = int(text.split("VmHWM:")[1].split()[0]) / 1024
            self.peak_mib[kind] = max(self.peak_mib.get(kind, 0.0), mib)


@dataclass
class Row:
    """What was found; `problems` is empty where all is as it must be."""

    lines: int = 0
    files: int = 0
    rubbish: int = 0
    batches: int = 0
    mb: float = 0.0
    plan_mb_s: float = 0.0
    drop_s: float = 0.0
    run_s: float = 0.0
    total_s: float = 0.0
    succeeded: int = 0
    errored: int = 0
    fixed: int = 0
    peak_mib: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.problems.append(f"{what}: {found!r} instead of {wanted!r}")


def request_line(number: int, line_bytes: int) -> bytes:
    head = f'{{"custom_id":"lead_{number:08d}_email","params":{{"messages":[{{"role":"user","content":"'
    tail = '"}],"max_tokens":16,"temperature":0.2}}\n'
    text = f"Lead {number} asks about pricing for their team and wants an answer this week. " * (line_bytes // 64)
    return (head + text[: max(1, line_bytes - len(head) - len(tail))] + tail).encode()


def write_large(path: Path, lines: int, rubbish_every: int) -> None:
    """The first of every `rubbish_every` lines is cut off in its middle; 0: none is."""
    with path.open("wb", buffering=1 << 20) as file:
        for number in range(lines):
            line = request_line(number, LINE_BYTES)
            file.write(line[:100] + b"\n" if is_rubbish(number, rubbish_every) else line)


def is_rubbish(number: int, rubbish_every: int) -> bool:
    return rubbish_every > 0 and number % rubbish_every == 0


def write_many(folder: Path, files: int) -> None:
    folder.mkdir()
    for number in range(files):
        rows = (request_line(number * SMALL_LINES + k, 200) for k in range(SMALL_LINES))
        (folder / f"f{number:04d}.jsonl").write_bytes(b"".join(rows))


def play(
    place: Place,
    folder: Path,
    *,
    lines: int,
    files: int,
    rubbish_every: int = 100,
    apis: int = 2,
    wait_s: float = 120.0,
) -> Row:
    """Drop, run, collect, check; then mend what could not be read and drop that again."""
    row = Row(lines=lines, files=files, rubbish=-(-lines // rubbish_every) if rubbish_every else 0)
    began_at = time.monotonic()
    if files:
        write_many(folder / "many", files)
        place.drop(folder / "many", MANY)
    if lines:
        write_large(folder / "large.jsonl", lines, rubbish_every)
        row.mb = (folder / "large.jsonl").stat().st_size / 1e6
        shutil.copy(folder / "large.jsonl", folder / "sent.jsonl")
        at = time.monotonic()
        place.drop(folder / "large.jsonl", LARGE)
        row.drop_s = time.monotonic() - at
    out = folder / "out"
    with Service(folder, place.url, apis=apis) as service:
        at = time.monotonic()
        wanted = [f"{MANY}/f{number:04d}.jsonl" for number in range(files)] + ([LARGE] if lines else [])
        wait_for(place, wanted, folder, wait_s)
        row.run_s = time.monotonic() - at
        if files:
            check_many(row, place.collect(MANY, out), files)
        if lines:
            check_large(row, place.collect(LARGE, out), folder / "sent.jsonl", rubbish_every)
        if row.rubbish:
            fix(out / f"{LARGE}.errors.jsonl", folder / "fixed.jsonl")
            place.drop(folder / "fixed.jsonl", FIXED)
            wait_for(place, [FIXED], folder, wait_s)
            counts = json.loads(Path(f"{place.collect(FIXED, out)}.receipt.json").read_text())["counts"]
            row.fixed = counts["succeeded"]
            row.expect("fixed lines that succeeded", row.fixed, row.rubbish)
        row.batches = len(place.names("index/"))
        row.expect("batches", row.batches, files + bool(lines) + bool(row.rubbish))
    row.peak_mib = {kind: round(mib, 1) for kind, mib in sorted(service.peak_mib.items())}
    row.total_s = time.monotonic() - began_at
    for kind, mib in row.peak_mib.items():
        if mib > MEMORY_MIB_MAX:
            row.problems.append(f"{kind} took {mib} MiB")
    return row


def wait_for(place: Place, paths: list[str], folder: Path, wait_s: float) -> None:
    """Until each has its receipt."""
    deadline = time.monotonic() + wait_s
    missing = {f"outbox/{path}.receipt.json" for path in paths}
    while missing:
        if time.monotonic() > deadline:
            logs = "\n".join(f"{log}:\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.log")))
            raise SystemExit(f"no receipt for {len(missing)} files, {min(missing)} among them\n{logs}")
        time.sleep(place.look_s)
        missing -= set(place.names("outbox/"))


def check_many(row: Row, folder: Path, files: int) -> None:
    """Each file is one batch with its own answers."""
    ids = set()
    for number in range(files):
        stem = folder / f"f{number:04d}.jsonl"
        receipt = json.loads(Path(f"{stem}.receipt.json").read_text())
        ids.add(receipt["batch_id"])
        lines = Path(f"{stem}.results.jsonl").read_bytes().splitlines()
        answers = [json.loads(line)["custom_id"] for line in lines]
        wanted = [f"lead_{number * SMALL_LINES + k:08d}_email" for k in range(SMALL_LINES)]
        row.expect(f"answers of {stem.name}", answers, wanted)
    row.expect("batches of small files", len(ids), files)


def check_large(row: Row, stem: Path, sent: Path, rubbish_every: int) -> None:
    receipt = json.loads(Path(f"{stem}.receipt.json").read_text())
    row.expect("counts", receipt["counts"]["succeeded"], row.lines - row.rubbish)
    row.succeeded, row.errored = receipt["counts"]["succeeded"], receipt["counts"]["errored"]
    row.plan_mb_s = round(row.mb / max(receipt["planned_at"] - receipt["created_at"], 1e-3), 1)
    results = Path(receipt["results"]["path"]).name
    row.expect("digest of the input", receipt["input"]["sha256"], digest_of(sent))
    row.expect("digest of the results", receipt["results"]["sha256"], digest_of(stem.parent / results))
    if row.rubbish:
        row.expect("digest of the errors", receipt["errors"]["sha256"], digest_of(Path(f"{stem}.errors.jsonl")))
    wrong = 0
    with (stem.parent / results).open("rb") as answers:
        for number, (answer, _) in enumerate(zip_longest(answers, range(row.lines))):
            result = json.loads(answer or b"{}")
            custom_id = f"lead_{number:08d}_email"
            is_errored = is_rubbish(number, rubbish_every)
            wanted = (result.get("custom_id"), "errored") if is_errored else (custom_id, "succeeded")
            wrong += (result.get("custom_id"), result.get("status")) != wanted
    row.expect("lines that are wrong, or not where they should be", wrong, 0)


def fix(errors: Path, target: Path) -> None:
    """Each line that was cut off, as it should have been."""
    with target.open("wb") as file, errors.open("rb") as lines:
        for line in lines:
            number = int(line.split(b"lead_", 1)[1][:8])
            file.write(request_line(number, LINE_BYTES))


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(kind: str, folder: Path, server_kind: str = SERVERS[0]) -> Iterator[Place]:
    """A place of its own: `s3` with a server that lives as long, or `directory`."""
    with ExitStack() as stack:
        if kind == "directory":
            yield Folder(folder / "store")
            return
        (folder / "server").mkdir()
        server = Server(server_kind, folder / "server")
        server.start()
        stack.callback(server.kill)
        server.wait()
        server.make_bucket()
        bucket = Bucket(server)
        stack.callback(bucket.close)
        yield bucket


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("s3", "directory"), default="s3")
    parser.add_argument("--server", choices=SERVERS, default=SERVERS[0])
    parser.add_argument("--lines", type=int, default=FULL_LINES)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--rubbish-every", type=int, default=0, help="of so many lines one can not be read")
    parser.add_argument("--apis", type=int, default=2)
    parser.add_argument("--wait-s", type=float, default=1800.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchfile-bench-") as name:
        folder = Path(name)
        with opened(args.store, folder, args.server) as place:
            row = play(
                place,
                folder,
                lines=args.lines,
                files=args.files,
                rubbish_every=args.rubbish_every,
                apis=args.apis,
                wait_s=args.wait_s,
            )
    told: dict[str, Any] = {"bench": "inbox", "store": args.store if args.store == "directory" else args.server}
    told |= {key: round(value, 1) if isinstance(value, float) else value for key, value in vars(row).items()}
    print(json.dumps(told))
    # A small file is dominated by what every batch costs: only the full size is judged for its speed.
    is_fast = args.lines < FULL_LINES or row.plan_mb_s >= PLAN_MB_S_MIN
    return 0 if not row.problems and is_fast else 1


if __name__ == "__main__":
    sys.exit(main())
