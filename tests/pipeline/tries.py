"""Tries of what may end in any way, each in a process of its own, and what is counted of them."""

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import psutil

from pipeline.cli.main import main as gen_command
from pipeline.errors import GenError, exit_code
from tests.pipeline.faults import gen, make_bases

COUNTED = ("tried", "accepted", "refused", "tracebacks", "hangs", "changed")

_SECONDS, _BYTES = 20, 4 * 2**30  # of computing
_LONGEST = 120  # seconds, computing or not: other programs take their part of the machine
_SHOWN = 8  # faults that a line shows
_TRACEBACK = 1  # the exit status of what no sentence was said of


class Outcome(NamedTuple):
    """How a process ended: its exit status (a signal's number below zero), what it said, and by how much it grew."""

    status: int
    output: str
    errors: str
    growth: int


class Machine:
    """Runs each try in a child of this process, which has imported everything; with a run to try it on.

    The folders of tries with a fault are kept in `kept`, where that is given.
    """

    def __init__(self, work: Path, kept: Path | None = None) -> None:
        self.work, self.case, self._kept = work, work / "case", kept
        self._own = psutil.Process()
        os.environ["GEN_CACHE"] = str(work / "cache")
        make_bases(work)
        (work / "stage1" / "run").rename(work / "unlearned")
        whole = work / "whole"
        _lay_out(whole, work / "pictures")
        drawn, measured = "sample run --n 2 --batch-size 2 --quiet", "evaluate run --n 1 --quiet"
        for command in (drawn, measured, "encode pictures --run run --quiet"):
            result = gen(whole, *command.split())
            assert result.exit_code == 0, result.output

    def begin(self, *, stage1_alone: bool = False) -> Path:
        """A new folder to try something in."""
        shutil.rmtree(self.case, ignore_errors=True)
        shutil.copytree(self.work / "whole", self.case)
        if stage1_alone:
            shutil.rmtree(self.case / "run")
            shutil.copytree(self.work / "unlearned", self.case / "run")
        return self.case

    def outcome(self, work: Callable[[], int]) -> Outcome:
        """What becomes of a piece of work, which gives an exit status."""
        sys.stdout.flush()
        limit, names = self._own.memory_info().vms + _BYTES, (self.work / "stdout", self.work / "stderr")
        child = os.fork()
        if child == 0:
            for number, name in enumerate(names, 1):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            (self.work / "before").write_text(str(psutil.Process().memory_info().rss))  # less than its parent has
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LONGEST)
            resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS + 1))
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os._exit(_status_of(work))
        _, status, usage = os.wait4(child, 0)
        output, errors = (name.read_text(errors="replace") for name in names)
        growth = max(0, usage.ru_maxrss * 1024 - int((self.work / "before").read_text()))
        return Outcome(os.waitstatus_to_exitcode(status), output, errors, growth)

    def keep(self, folder: Path) -> None:
        """Keep the folder of a try for whoever reads of its fault."""
        if self._kept is not None:
            self._kept.mkdir(parents=True, exist_ok=True)
            there = self._kept / f"{len(list(self._kept.iterdir())):03d}"
            shutil.copytree(folder, there)
            click.echo(f"kept in {there}", err=True)


def _status_of(work: Callable[[], int]) -> int:
    """The exit status that a process of this work alone would have."""
    try:
        status = work()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except GenError as error:
        click.echo(f"gen: error: {error}", err=True)
        status = error.exit_code
    except OSError as error:  # of the system, which every function may raise that is given a path
        if error.filename is None:
            traceback.print_exc()
        click.echo(f"gen: error: {error.strerror}: {error.filename}", err=True)
        status = exit_code(error)
    except BaseException:
        traceback.print_exc()
        status = _TRACEBACK
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return _TRACEBACK
    return status


def _lay_out(folder: Path, images: Path) -> None:
    """What values of options name: a folder of images, one image, a folder of none, a text."""
    shutil.copytree(images, folder / "pictures")
    shutil.copyfile(min(images.rglob("*.png")), folder / "picture.png")
    (folder / "folder").mkdir()
    (folder / "text.txt").write_text("some text\n")


def command(folder: Path, arguments: list[str]) -> Callable[[], int]:
    """The work of a command in a folder."""

    def work() -> int:
        os.chdir(folder)
        gen_command.main(arguments, prog_name="gen")
        return 0

    return work


class Tally:
    """What is counted of a command, a function, or a kind of file."""

    def __init__(self, name: str) -> None:
        self.name, self.counts, self.started = name, Counter[str](), time.perf_counter()
        self.growth = self.longest = 0
        self.faults = Counter[str]()

    def add(self, outcome: Outcome, tried: str) -> bool:
        """Count how a try ended; returns whether it was accepted."""
        said = outcome.output + outcome.errors
        self.growth = max(self.growth, outcome.growth)
        kind = "tracebacks"
        if outcome.status in (-signal.SIGALRM, -signal.SIGXCPU):
            kind = "hangs"
        elif outcome.status == 0 and "Traceback" not in said:
            kind = "accepted"
        elif 2 <= outcome.status <= 7 and "gen: error: " in outcome.errors and "Traceback" not in said:
            kind = "refused"
            self.longest = max(self.longest, len(outcome.errors))
        self.counts.update({"tried": 1, kind: 1})
        if kind in ("hangs", "tracebacks"):
            where = [line.strip() for line in said.splitlines() if line.strip().startswith("File ")][-1:]
            self.fault(f"{kind} {outcome.status}: {said.strip()[-200:]} {where}", tried)
        return kind == "accepted"

    def fault(self, what: str, tried: str) -> None:
        """Remember a fault; equal ones once."""
        if what not in self.faults:
            click.echo(f"{self.name}: {tried[:300]!r}: {what}", err=True)
        self.faults[what] += 1

    def line(self) -> dict[str, object]:
        """As it is printed."""
        shown = {"faults": dict(self.faults.most_common(_SHOWN))} if self.faults else {}
        return {
            "on": self.name,
            **{name: self.counts[name] for name in COUNTED},
            "growth_mib": round(self.growth / 2**20),
            "longest": self.longest,
            "seconds": round(time.perf_counter() - self.started, 1),
            **shown,
        }
