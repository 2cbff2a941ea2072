"""No work is lost and nothing differs, whenever a command is killed or the disk is full.

    python -m benchmarks.crash [--kills 100] [--every 1] [--full-disk]

Both trainings, one that goes on with a finished model, encoding, sharpening, and drawing in each format, of tiny
models: each is killed (SIGKILL) at random moments, up to three times in a row, and at every change that it makes of
the disk (or at every n-th), with half of what was being written there; and resumed. With --full-disk there is no room
instead, at every change that needs some: once, or from then on until the command has failed, with 6 and a sentence
that names a file. In the end every file holds what it holds after an uninterrupted run: tensors, configurations, logs
(but for times), pictures.

Prints one JSON line per command: the changes of the disk, kills (or failures), resumes, how much was done again in all
and at most after one kill (steps of a training, images of a draw), temporary files left over, after how many kills the
model that was there before could not be opened until the command had gone on, and how many final states differ. Then
the sums. Exits with 1 where anything differs.
"""

import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import torch
from click.testing import Result

from pipeline.errors import GenError
from pipeline.runs.opening import open_run
from pipeline.sampling.samplers import CodeSampler
from pipeline.training.loop.trainer import Trainer
from tests.pipeline.faults import (
    Action,
    Change,
    FullDisk,
    Job,
    at_each_change,
    contents,
    gen,
    left_behind,
    make_bases,
    names_a_file,
)

_SHOWN = 5  # faults of a command that its line shows
_IN_A_ROW = 3


class Counters:
    """Numbers that a child counts and its parent reads, whatever becomes of the child."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, 16)).cast("q")

    @property
    def changes(self) -> int:
        """Changes of the disk so far."""
        return self._memory[0]

    @changes.setter
    def changes(self, value: int) -> None:
        self._memory[0] = value

    @property
    def done(self) -> int:
        """Steps of training, or images drawn."""
        return self._memory[1]

    @done.setter
    def done(self, value: int) -> None:
        self._memory[1] = value


class Whole(NamedTuple):
    """An uninterrupted run of a job."""

    contents: dict[str, str]
    changes: int
    done: int
    seconds: float


class Machine:
    """Runs jobs in children of this process, which has imported and warmed up everything; each can be killed."""

    def __init__(self, work: Path) -> None:
        self.work, self.counters = work, Counters()
        self.jobs = make_bases(work)

    def case(self, job: Job) -> Path:
        """A new folder for a job."""
        folder = self.work / "case"  # always of one name, as configurations have it in them
        shutil.rmtree(folder, ignore_errors=True)
        job.begin(folder, self.work)
        return folder

    def start(self, folder: Path, arguments: tuple[str, ...], action: Action) -> int:
        """The process that runs a command; it counts what it does."""
        self.counters.changes = self.counters.done = 0
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            with _counting(self.counters), at_each_change(folder, action):
                result = gen(folder, *arguments)
            if result.exit_code:
                os.write(sys.stderr.fileno(), f"{result.output}{result.exception!r}\n".encode())
            os._exit(result.exit_code)
        return child

    def count(self, _change: Change) -> None:
        """An action that counts alone."""
        self.counters.changes += 1

    def kill_at(self, number: int) -> Action:
        """An action that kills its process at the change of this number."""

        def action(change: Change) -> None:
            self.count(change)
            if self.counters.changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return action

    def whole(self, job: Job) -> Whole:
        """Run a job to its end."""
        folder, started = self.case(job), time.perf_counter()
        status = ended(self.start(folder, job.arguments, self.count))
        seconds = time.perf_counter() - started
        assert status == 0, f"{job.name} ended with {status}"
        return Whole(contents(folder / job.out), self.counters.changes, self.counters.done, seconds)


def ended(child: int) -> int:
    """The exit status of a child, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def _counting(counters: Counters) -> Iterator[None]:
    step, sample = Trainer.train_step, CodeSampler.sample

    def counted_step(self: Any, number: int) -> Any:
        counters.done += 1
        return step(self, number)

    def counted_sample(self: CodeSampler, images: Any) -> Any:
        counters.done += len(images)
        return sample(self, images)

    with patch.object(Trainer, "train_step", counted_step), patch.object(CodeSampler, "sample", counted_sample):
        yield


class Tally:
    """What is counted of a job."""

    def __init__(self, job: Job, whole: Whole) -> None:
        self.job, self.whole = job, whole
        self.counts = Counter[str]()
        self.greatest = 0
        self.faults: list[str] = []
        self.unnamed = Counter[str]()  # messages that name no file

    def check_before(self, folder: Path) -> None:
        """Count the model that was there before, where it cannot be opened."""
        if self.job.base:
            try:
                open_run(folder / "run", "vqvae")
            except GenError:
                self.counts["unusable_meanwhile"] += 1

    def check_failure(self, failed: Result, when: str) -> None:
        """What a command does that finds the disk full."""
        named = names_a_file(failed.output, self.job.out)
        self.counts.update({"failures": 1, "exit_6": failed.exit_code == 6, "named": named})
        if failed.exit_code != 6:
            self.counts["differences"] += 1
            self.faults.append(f"{when}: exit {failed.exit_code}, {failed.output[-200:]} {failed.exception!r}")
        elif not named:
            self.unnamed[failed.output.strip()] += 1

    def check_after(self, folder: Path, status: int, when: str) -> None:
        """Compare with the uninterrupted run."""
        there = contents(folder / self.job.out) if status == 0 else {}
        names = there.keys() | self.whole.contents.keys()
        differing = sorted(name for name in names if there.get(name) != self.whole.contents.get(name))
        self.counts["left_behind"] += len(left_behind(folder))
        if differing:
            self.counts["differences"] += 1
            self.faults.append(f"{when}: " + (f"ended with {status}" if status else ", ".join(differing)))

    def count_again(self, done: int) -> None:
        """What was done in excess of the uninterrupted run."""
        self.counts["done_again"] += done
        self.greatest = max(self.greatest, done)

    def line(self, kind: str) -> dict[str, object]:
        """As it is printed."""
        shown: dict[str, object] = {"faults": self.faults[:_SHOWN]} if self.faults else {}
        shown |= {"unnamed": dict(self.unnamed.most_common(_SHOWN))} if self.unnamed else {}
        names = ("kills", "failures", "survived", "exit_6", "named", "resumes", "done_again")
        return {
            "command": self.job.name,
            "at": kind,
            "changes": self.whole.changes,
            **{name: self.counts[name] for name in names if name in self.counts},
            "greatest": self.greatest,
            **{name: self.counts[name] for name in ("left_behind", "unusable_meanwhile", "differences")},
            **shown,
        }


def kill_at_changes(machine: Machine, tally: Tally, every: int) -> None:
    """Kill at each change, or at every n-th, and go on once."""
    job, whole = tally.job, tally.whole
    for number in range(1, whole.changes + 1, every):
        folder = machine.case(job)
        status = ended(machine.start(folder, job.arguments, machine.kill_at(number)))
        assert status == -signal.SIGKILL, f"{job.name} ended with {status} before change {number}"
        done = machine.counters.done
        tally.check_before(folder)
        status = ended(machine.start(folder, job.again, machine.count))
        tally.counts.update({"kills": 1, "resumes": 1})
        tally.count_again(done + machine.counters.done - whole.done if status == 0 else 0)
        tally.check_after(folder, status, f"killed at change {number}")


def kill_at_random(machine: Machine, tally: Tally, kills: int, rng: random.Random) -> None:
    """Kill at random moments, up to three times in a row, then go on to the end."""
    job, whole = tally.job, tally.whole
    while tally.counts["kills"] < kills:
        folder, arguments, done, in_a_row = machine.case(job), job.arguments, 0, 0
        wanted = rng.randint(1, min(_IN_A_ROW, kills - tally.counts["kills"]))
        while in_a_row < wanted:
            child = machine.start(folder, arguments, machine.count)
            time.sleep(rng.uniform(0, whole.seconds))
            os.kill(child, signal.SIGKILL)
            if (status := ended(child)) != -signal.SIGKILL:  # it was faster
                done += machine.counters.done
                break
            done, arguments, in_a_row = done + machine.counters.done, job.again, in_a_row + 1
            tally.check_before(folder)
        else:
            status = ended(machine.start(folder, job.again, machine.count))
            done += machine.counters.done
        if in_a_row:
            tally.counts.update({"kills": in_a_row, "resumes": in_a_row})
            tally.count_again(done - whole.done if status == 0 else 0)
            tally.check_after(folder, status, "killed at random")


def fill_the_disk(machine: Machine, tally: Tally, every: int) -> None:
    """Let the disk be full at each change, or at every n-th: once, and from then on until the command has ended."""
    job, counting = tally.job, FullDisk(0, from_then_on=False)
    folder = machine.case(job)
    with at_each_change(folder, counting):
        gen(folder, *job.arguments)
    for from_then_on in (False, True):
        for number in range(1, counting.changes + 1, every):
            folder = machine.case(job)
            with at_each_change(folder, FullDisk(number, from_then_on=from_then_on)):
                failed = gen(folder, *job.arguments)
            when = f"full at change {number}{' and on' if from_then_on else ''}"
            if failed.exit_code == 0:  # something else was tried, such as by zipfile
                tally.counts["survived"] += 1
            else:
                tally.check_failure(failed, when)
                tally.check_before(folder)
                tally.counts["resumes"] += 1
            status = failed.exit_code and gen(folder, *job.again).exit_code
            tally.check_after(folder, status, when)


@click.command()
@click.option("--kills", default=100, show_default=True, help="At random moments, over all commands.")
@click.option("--every", default=1, show_default=True, help="Of the changes of the disk every n-th; 0: none.")
@click.option("--full-disk", is_flag=True, help="There is no room, instead of kills.")
@click.option("--only", help="The command of this name alone.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, every: int, full_disk: bool, only: str | None, seed: int) -> None:
    """Measure and print."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what has used a GPU cannot be forked
    torch.set_num_threads(1)
    total, greatest = Counter[str](), 0
    with tempfile.TemporaryDirectory() as work:
        machine = Machine(Path(work).resolve())
        chosen = [job for job in machine.jobs if only in (None, job.name)]
        runs = {job.name: machine.whole(job) for job in chosen}
        works: dict[str, Callable[[Tally], None]] = {}
        if full_disk:
            works["no room"] = lambda tally: fill_the_disk(machine, tally, every)
        else:
            each, rng = -(-kills // len(chosen)), random.Random(seed)  # noqa: S311 - no secret
            works["random moments"] = lambda tally: kill_at_random(machine, tally, each, rng)
            works |= {"changes": lambda tally: kill_at_changes(machine, tally, every)} if every else {}
        for kind, work_on in works.items():
            for job in chosen:
                tally = Tally(job, runs[job.name])
                work_on(tally)
                print(json.dumps(tally.line(kind)), flush=True)
                total, greatest = total + tally.counts, max(greatest, tally.greatest)
    print(json.dumps({"command": "all", **total, "greatest": greatest, "differences": total["differences"]}))
    sys.exit(total["differences"] > 0)


if __name__ == "__main__":
    main()
