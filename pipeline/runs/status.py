"""RUN/status.json: how far the last command that worked on a run is, or how it ended; for launchers and terminals."""

import signal
import threading
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Never

from accelerate import Accelerator
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.errors import FolderInUseError, exit_code, was_stopped
from pipeline.reporting import Reporter
from pipeline.runs.layout import STATUS, RunFolder
from pipeline.runs.writer import Writer, as_json, now, read_writer, this_writer
from pipeline.storage import write_json

State = Literal["running", "finished", "stopped early", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))  # a later version may say more
class Status(Writer):
    """status.json. `since` is when the stage began; a training went on from `first_step`."""

    stage: str  # vqvae, vqvae/decoders/sharp, codes, prior/LEVEL or samples; prior for a command that came to no level
    state: State
    first_step: int | None = None
    step: int | None = None  # of trainings, when the metrics were logged last
    total_steps: int | None = None
    exit_code: int | None = None  # null while the command runs
    error: str | None = None  # the last line of what a command failed with
    updated: datetime

    @property
    def seconds_left(self) -> float | None:
        """What is left of a stage that runs at the rate it had so far."""
        if self.state != "running" or self.step is None or self.total_steps is None or self.first_step is None:
            return None
        if self.step <= self.first_step:
            return None
        took = (self.updated - self.since).total_seconds()
        left = took / (self.step - self.first_step) * (self.total_steps - self.step)
        return max(0.0, left - (now() - self.updated).total_seconds())


class StatusFile:
    """Keeps RUN/status.json while it is entered, and writes down how the command ended, whatever ended it.

    Only the main process writes; a file that cannot be written is named once, and stops nothing. That of another
    command that still runs on this host is left alone.
    """

    def __init__(self, run: Path, stage: str, accelerator: Accelerator, reporter: Reporter) -> None:
        self._run, self._accelerator, self._reporter = RunFolder(run), accelerator, reporter
        here = this_writer()
        self._status = Status(**asdict(here), stage=stage, state="running", updated=here.since)
        self._has_complained = False
        self._previous = ExitStack()  # brings the handlers of before back

    def __enter__(self) -> "StatusFile":
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if in_main_thread and signal.getsignal(number) is signal.SIG_DFL:  # else the process would just be gone
                self._previous.callback(signal.signal, number, signal.signal(number, _stop))
        return self

    def begin(self, stage: str, step: int | None = None, total_steps: int | None = None) -> None:
        """A stage is worked on from now on, whose folder is locked."""
        time = now()
        self._status = replace(
            self._status, stage=stage, since=time, first_step=step, step=step, total_steps=total_steps, updated=time
        )
        self._write()

    def reach(self, step: int) -> None:
        """So many steps are done."""
        self._status = replace(self._status, step=step, updated=now())
        self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._previous.close()
        if isinstance(error, FolderInUseError) or not self._run.contains_run():
            return  # another command's, or no run at all
        before = read_writer(self._run.path / STATUS, Status)
        if error is not None and exit_code(error) == 0 and before is not None and before.exit_code == 0:
            return  # there was nothing left to do: how the run came to its end stands
        self._status = replace(_ended(self._status, error), updated=now())
        self._write()

    def _write(self) -> None:
        path = self._run.path / STATUS
        if not self._accelerator.is_main_process or _is_anothers(path):
            return
        try:
            write_json(path, as_json(self._status))
        except OSError as error:
            if not self._has_complained and self._status.state == "running":  # at the end nothing may hide the outcome
                self._has_complained = True
                self._reporter.say(f"{path} cannot be written ({error.strerror or error}); the work goes on without it")


def _ended(status: Status, error: BaseException | None) -> Status:
    """The status of a command that ended with this error, or none."""
    code = 0 if error is None else exit_code(error)
    if error is None or code == 0:
        return replace(status, state="finished" if status.step == status.total_steps else "stopped early", exit_code=0)
    if was_stopped(error):
        return replace(status, state="interrupted", exit_code=code)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return replace(status, state="failed", exit_code=code, error=lines[-1])


def _stop(number: int, _frame: FrameType | None) -> Never:
    """Unwind, so that locks, temporary files and the status are put in order, and exit as a shell shows this signal."""
    raise SystemExit(128 + number)


def _is_anothers(path: Path) -> bool:
    """Whether another process of this host, that still runs, keeps this file."""
    there, here = read_writer(path, Status), this_writer()
    if there is None or there.state != "running" or there.process_id == here.process_id:
        return False
    return there.is_running() is True
