"""Which batch an output gets: the one that is there, or a new one, wherever an earlier process was cut off."""

from dataclasses import replace
from pathlib import Path

import pytest

from batchfile import Ledger
from batchfile.errors import BatchDamaged, InvalidFile, OutputTaken, RecordNewer, SettingsError
from batchfile.inbox.documents import FileFacts
from batchfile.ledger import retention
from batchfile.ledger.cas import load
from batchfile.local.receipt import make_receipt
from batchfile.local.work import work
from batchfile.testing import EchoEngine, ManualClock
from tests.helpers.engine import EngineIdentity
from tests.helpers.ledger import BatchRecord, IdempotencyRecord, batches, encode, ending, keys
from tests.helpers.local import Opened, RunOptions, changes, inspect, local_run, lock_output, lock_path, open_batch
from tests.helpers.store import DirectoryStore

LINE = '{"custom_id":"r%d","params":{"messages":[{"role":"user","content":"hi"}]}}\n'


class Cut(BaseException):
    """The process ends here."""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(store=DirectoryStore(tmp_path / "store", fsync=False), clock=ManualClock())


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    (tmp_path / "in.jsonl").write_text("".join(LINE % n for n in range(10)))
    return RunOptions(output=str(tmp_path / "out.jsonl"), engine="echo", model="echo")


def _open(ledger: Ledger, options: RunOptions) -> Opened:
    folder = Path(options.output or "").parent
    return open_batch(ledger, inspect(str(folder / "in.jsonl")), options)


def _pointer(ledger: Ledger, options: RunOptions) -> IdempotencyRecord:
    found = load(ledger, keys.idempotency_key("output", options.output or ""), IdempotencyRecord)
    assert found is not None
    return found.record


def test_the_same_wish_finds_its_batch_again(ledger: Ledger, options: RunOptions) -> None:
    first, second = _open(ledger, options), _open(ledger, options)
    assert (first.is_new, second.is_new) == (True, False)
    assert first.batch.batch_id == second.batch.batch_id == _pointer(ledger, options).batch_id


@pytest.mark.parametrize("step", ["bring_in", "plan_input", "create"])
def test_a_create_that_was_cut_off_is_begun_anew_and_leaves_nothing(
    ledger: Ledger, options: RunOptions, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner = {"bring_in": local_run.inputs, "plan_input": local_run, "create": batches}[step]

    def cut(*_: object, **__: object) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, cut)
        with pytest.raises(Cut):
            _open(ledger, options)
    lost = _pointer(ledger, options).batch_id
    # An output that an even older run left does not stand in the way: the pointer says that it is ours.
    Path(options.output or "").write_text("old\n")
    opened = _open(ledger, options)
    assert opened.is_new
    assert opened.batch.batch_id != lost
    assert batches.read_batch(ledger, lost) is None
    left = [entry.key for entry in ledger.store.list(keys.batch_prefix(lost))]
    assert left == [keys.batch_key(lost)], "only the tombstone stays, until a janitor removes it"
    assert _open(ledger, options).batch.batch_id == opened.batch.batch_id


def test_a_create_that_was_cut_off_after_its_commit_is_continued(ledger: Ledger, options: RunOptions) -> None:
    opened = _open(ledger, options)
    key = keys.idempotency_key("output", options.output or "")
    ledger.store.put(key, encode(IdempotencyRecord(batch_id=opened.batch.batch_id, digest="")))
    again = _open(ledger, options)
    assert not again.is_new
    assert again.batch.batch_id == opened.batch.batch_id


def test_a_restart_with_a_refused_file_keeps_a_batch_that_was_cut_off_after_its_commit(
    ledger: Ledger, options: RunOptions
) -> None:
    opened = _open(ledger, options)
    key = keys.idempotency_key("output", options.output or "")
    ledger.store.put(key, encode(IdempotencyRecord(batch_id=opened.batch.batch_id, digest="")))
    file = Path(options.output or "").with_name("in.jsonl")
    requests = file.read_bytes()
    file.write_text("\n\n")
    with pytest.raises(InvalidFile):
        _open(ledger, replace(options, restart=True))
    file.write_bytes(requests)
    assert _open(ledger, options).batch.batch_id == opened.batch.batch_id


def test_an_output_whose_batch_was_deleted_is_not_overwritten_unasked(ledger: Ledger, options: RunOptions) -> None:
    opened = _open(ledger, options)
    batches.end(ledger, opened.batch.batch_id, "canceled")
    ending.finish(ledger, opened.batch.batch_id, runner="r")
    retention.delete(ledger, opened.batch.batch_id)
    Path(options.output or "").write_text("results\n")
    with pytest.raises(OutputTaken):
        _open(ledger, options)
    assert _open(ledger, replace(options, restart=True)).is_new


def test_a_restart_removes_the_old_batch_whatever_its_state(ledger: Ledger, options: RunOptions) -> None:
    old = _open(ledger, options).batch.batch_id
    new = _open(ledger, replace(options, restart=True)).batch.batch_id
    assert new != old
    assert list(ledger.store.list(keys.batch_prefix(old))) == []
    assert [keys.index_batch_id(entry.key) for entry in ledger.store.list(keys.INDEX_PREFIX)] == [new]
    queue = ledger.store.list(keys.queue_prefix(local_run.POOL))
    assert [keys.queue_batch_id(entry.key) for entry in queue] == [new]


@pytest.mark.parametrize("data", [b"", b"\0" * 99, b'{"batch_id": "b'])
def test_a_restart_replaces_a_damaged_batch_and_nothing_else_does(
    ledger: Ledger, options: RunOptions, data: bytes
) -> None:
    old = _open(ledger, options).batch.batch_id
    ledger.store.put(keys.batch_key(old), data)
    with pytest.raises(
        BatchDamaged, match=r"batch\.json.*restore that object, or add --restart to run .*out\.jsonl from the start"
    ):
        _open(ledger, options)
    new = _open(ledger, replace(options, restart=True)).batch.batch_id
    assert list(ledger.store.list(keys.batch_prefix(old))) == []
    assert [keys.index_batch_id(entry.key) for entry in ledger.store.list(keys.INDEX_PREFIX)] == [new]
    queue = ledger.store.list(keys.queue_prefix(local_run.POOL))
    assert [keys.queue_batch_id(entry.key) for entry in queue] == [new]
    assert _open(ledger, options).batch.batch_id == new


def test_a_restart_replaces_a_damaged_pointer(ledger: Ledger, options: RunOptions) -> None:
    _open(ledger, options)
    ledger.store.put(keys.idempotency_key("output", options.output or ""), b"\0" * 9)
    with pytest.raises(BatchDamaged, match="add --restart"):
        _open(ledger, options)
    new = _open(ledger, replace(options, restart=True)).batch.batch_id
    assert _open(ledger, options).batch.batch_id == new


@pytest.mark.parametrize("newer", [b'"version":2}', b'"fold":1,"version":1}'])
def test_a_restart_never_replaces_a_batch_of_a_newer_version(ledger: Ledger, options: RunOptions, newer: bytes) -> None:
    old = _open(ledger, options).batch.batch_id
    found = ledger.store.get(keys.batch_key(old))
    assert found is not None
    data = found.data.replace(b'"version":1}', newer)
    ledger.store.put(keys.batch_key(old), data)
    with pytest.raises(RecordNewer, match="upgrade this process"):
        _open(ledger, replace(options, restart=True))
    found = ledger.store.get(keys.batch_key(old))
    assert found is not None
    assert found.data == data
    assert _pointer(ledger, options).batch_id == old


def test_a_refused_file_leaves_nothing(ledger: Ledger, options: RunOptions) -> None:
    Path(options.output or "").with_name("in.jsonl").write_text("\n\n")
    with pytest.raises(InvalidFile):
        _open(ledger, options)
    assert list(ledger.store.list("")) == []


def test_everything_that_changed_is_said(options: RunOptions) -> None:
    old = options.identity(
        "1", EngineIdentity({"the model": "echo", "the quantization": "", "the template": "sha256:1"})
    )
    other = replace(options, model="other", temperature=0.7, limit=3)
    new = other.identity("1", EngineIdentity({"the model": "other", "the quantization": "fp8", "the tokenizer": "x"}))
    assert changes(old, new) == [
        "the model was 'echo' and is 'other' now",
        "--limit was not given and is 3 now",
        "the default temperature was not given and is 0.7 now",
        "the quantization was not given and is 'fp8' now",
        "the template has changed",
        "the tokenizer was not given and is 'x' now",
    ]
    assert changes(old, options.identity("2")) == ["the input has changed"], "an unknown engine is no difference"


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("", "Rate {{ x }}", "--prompt was not given and is 'Rate {{ x }}' now"),
        ("One\n{{ x }}", "Two", r"--prompt was 'One\n{{ x }}' and is 'Two' now"),
        ("a" * 80 + "b", "a" * 80 + "cd", f"--prompt was '…{'a' * 20}b' and is '…{'a' * 20}cd' now"),
        ("a" * 80, "b", f"--prompt was '{'a' * 60}…' and is 'b' now"),
        ("a" * 500 + "b", "a" * 500 + "c", "--prompt has changed"),
        ("a" * 500, "b", f"--prompt was '{'a' * 60}…' and is 'b' now"),
    ],
)
def test_of_long_values_the_part_that_differs_is_said(options: RunOptions, was: str, now: str, told: str) -> None:
    old, new = (replace(options, prompt=prompt or None).identity("1") for prompt in (was, now))
    assert changes(old, new) == [told]


def test_a_flag_that_changed_is_said(options: RunOptions) -> None:
    old, new = options.identity("1"), replace(options, parse_control_tokens=True).identity("1")
    assert changes(old, new) == ["--parse-control-tokens was not given and is given now"]
    assert changes(new, old) == ["--parse-control-tokens was given and is not given now"]


def test_an_output_is_locked_while_it_is_worked_on_whatever_the_store(tmp_path: Path) -> None:
    output = str(tmp_path / "out.jsonl")
    with lock_output(output), pytest.raises(OutputTaken, match="another batchfile process"), lock_output(output):
        pass
    with lock_output(output), lock_output(str(tmp_path / "other.jsonl")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_with_the_longest_name_has_a_lock_of_its_own(tmp_path: Path) -> None:
    outputs = [str(tmp_path / (letter * 249 + ".jsonl")) for letter in "ab"]
    with lock_output(outputs[0]), lock_output(outputs[1]):
        Path(outputs[0]).touch()
        with pytest.raises(OutputTaken), lock_output(outputs[0]):
            pass


def test_a_lock_that_a_killed_run_left_is_taken_and_removed(tmp_path: Path) -> None:
    output = str(tmp_path / "out.jsonl")
    Path(lock_path(output)).touch()
    with lock_output(output):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_stands_where_the_lock_goes_is_not_followed(tmp_path: Path) -> None:
    output = str(tmp_path / "out.jsonl")
    Path(lock_path(output)).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match=r"its lock .*\.out\.jsonl\.lock cannot be opened"), lock_output(output):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_receipt_has_the_versions_of_the_engine_and_the_commits_of_its_models(
    ledger: Ledger, options: RunOptions
) -> None:
    batch, commits = _open(ledger, options).batch, {"org/m": "a1" * 20}

    def build() -> EchoEngine:
        engine = EchoEngine()
        engine.info = replace(engine.info, version="9.9", commits=commits)
        return engine

    ended: list[BatchRecord] = []
    work(ledger, [batch.batch_id], build, "runner", lambda runner: None, ended.append)
    receipt = make_receipt(ended[0], FileFacts(path="out.jsonl", sha256="", bytes=0, lines=10), None)
    assert (receipt.engine.version, receipt.engine.commits) == ("9.9", commits)
