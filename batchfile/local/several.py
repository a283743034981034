"""Runs several inputs into one folder: each is its own batch, all run with one engine. Knows no terminal."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from batchfile.errors import BatchDamaged, BatchfileError, InvalidFile, OutputTaken
from batchfile.ledger.records import BatchRecord
from batchfile.local import outputs
from batchfile.local.display import counted
from batchfile.local.engines import EngineChoice
from batchfile.local.folder import OutputPlan
from batchfile.local.inputs import opened
from batchfile.local.options import RunOptions
from batchfile.local.receipt import Receipt
from batchfile.local.session import Observer, Session, begin, completed, limits_of, work_on_all
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
            self.receipt = outputs.export(
                self.session.ledger, batch, self.output, say, gpu_hour=self.session.options.gpu_hour
            )
        except (BatchfileError, OSError) as error:
            self.error = error


def open_files(
    stack: ExitStack, settings: Settings, options: RunOptions, choice: EngineChoice, plan: OutputPlan, say: Say
) -> list[FileRun]:
    """Lock the folder, find or create the batch of each input, and write the results of those that have ended.

    An input that cannot be used gets an `error`. `options`: without input and output. Raises: OutputTaken where another
    process writes to the folder; SettingsError, StoreError.
    """
    options = completed(options, settings, choice)
    stack.enter_context(outputs.lock_folder(plan.folder))
    ledger = open_ledger(options.store or settings.store or str(Path(plan.folder) / STORE_FOLDER), settings)
    check = cache(partial(choice.check, say))  # once for all files
    files = [FileRun(input=target.input, output=target.output) for target in plan.targets]
    for file in files:
        try:
            with opened(file.input) as found:
                given = replace(options, input=file.input, output=file.output)
                source = prepared(found, given)
                outputs.check_format(file.output, source.table)
                outputs.check_unlocked(file.output)
                tell = partial(_say_of, say, file.input)
                file.session = begin(ledger, source, given, choice, check, tell, limits=limits_of(settings))
            if file.session.opened.batch.state == "ended":
                file.export(file.session.opened.batch, say)
        except (InvalidFile, OutputTaken, BatchDamaged) as error:
            file.error = error
            say(str(error))
    return files


def work_on_files(files: Sequence[FileRun], choice: EngineChoice, observer: Observer, *, grace_s: float) -> None:
    """Run the rest, and write the results of each input as soon as its batch ends. Raises: as `work`."""
    sessions = [file.session for file in files if file.session is not None]
    by_id = {file.session.opened.batch.batch_id: file for file in files if file.session is not None}
    if all(session.opened.batch.state == "ended" for session in sessions):
        return
    if any(not session.opened.is_new for session in sessions):
        num_done = sum(file.receipt is not None for file in by_id.values())
        observer.say(f"resuming: {num_done:,} of {counted(len(sessions), 'file')} are done")

    def end(batch: BatchRecord) -> None:
        by_id[batch.batch_id].export(batch, observer.say)

    work_on_all(sessions, choice, observer, end, grace_s=grace_s)


def _say_of(say: Say, name: str, text: str) -> None:
    say(f"{name}: {text}")
