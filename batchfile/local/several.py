"""Runs several inputs into one folder: each is its own batch, all run with one engine. Knows no terminal."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from batchfile.errors import BatchDamaged, BatchfileError, InvalidFile, OutputTaken
from batchfile.ledger.base import Ledger
from batchfile.ledger.records import BatchRecord
from batchfile.local import outputs
from batchfile.local.display import counted
from batchfile.local.engines import EngineChoice
from batchfile.local.folder import Plan
from batchfile.local.inputs import inspect
from batchfile.local.options import RunOptions
from batchfile.local.receipt import Receipt
from batchfile.local.run import open_batch
from batchfile.local.session import Observer, Session, completed, work_on_all
from batchfile.local.tables import prepared
from batchfile.open_ledger import STORE_FOLDER, open_ledger
from batchfile.settings import Settings

Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class FileRun:
    """One input of several. `receipt`: once its results are written; `error`: why there are none.

    Neither: the same command resumes it.
    """

    input: str
    output: str
    session: Session | None = None
    receipt: Receipt | None = None
    error: BatchfileError | OSError | None = None

    def export(self, batch: BatchRecord, say: Say) -> None:
        """Write the results of the ended batch, or note why that fails."""
        assert self.session is not None
        try:
            self.receipt = outputs.export(self.session.ledger, batch, self.output, say)
        except (BatchfileError, OSError) as error:
            self.error = error


def open_files(
    stack: ExitStack, settings: Settings, options: RunOptions, choice: EngineChoice, plan: Plan, say: Say
) -> list[FileRun]:
    """Lock the folder, find or create the batch of each input, and write the results of those that have ended.

    An input that cannot be used gets an `error`. `options`: without input and output. Raises: OutputTaken where another
    process writes to the folder; SettingsError, StoreError.
    """
    options = completed(options, settings, choice)
    stack.enter_context(outputs.lock_folder(plan.folder))
    url = options.store or settings.store or str(Path(plan.folder) / STORE_FOLDER)
    ledger = open_ledger(url, settings)
    check = cache(partial(choice.check, say))  # once for all files
    files = [FileRun(input=target.input, output=target.output) for target in plan.targets]
    for file in files:
        try:
            _open(ledger, url, replace(options, input=file.input, output=file.output), file, choice, check, say)
        except (InvalidFile, OutputTaken, BatchDamaged) as error:
            file.error = error
            say(str(error))
    return files


def work_on_files(files: Sequence[FileRun], choice: EngineChoice, observer: Observer, *, grace_s: float) -> None:
    """Run the rest, and write the results of each input as soon as its batch ends. Raises: as `work`."""
    opened = [(file, file.session) for file in files if file.session is not None]
    by_id = {session.opened.batch.batch_id: file for file, session in opened}
    num_done = sum(file.receipt is not None for file, _ in opened)
    if len(opened) == sum(session.opened.batch.state == "ended" for _, session in opened):
        return
    if any(not session.opened.is_new for _, session in opened):
        observer.say(f"resuming: {num_done:,} of {counted(len(opened), 'file')} are done")

    def end(batch: BatchRecord) -> None:
        by_id[batch.batch_id].export(batch, observer.say)

    work_on_all([session for _, session in opened], choice, observer, end, grace_s=grace_s)


def _open(
    ledger: Ledger,
    url: str,
    options: RunOptions,
    file: FileRun,
    choice: EngineChoice,
    check: Callable[[], None],
    say: Say,
) -> None:
    source = prepared(inspect(options.input), options)
    outputs.check_format(file.output, source.table)
    outputs.check_unlocked(file.output)
    opened = open_batch(ledger, source, options, before_plan=check, engine=choice.identity)
    for note in opened.notes:
        say(f"{file.input}: {note}")
    file.session = Session(
        options=options, ledger=ledger, source=source, opened=opened, path=file.output, store=url, is_kept=True
    )
    if opened.batch.state == "ended":
        file.export(opened.batch, say)
