"""A folder is written to by one command at a time, also where the operating system locks no files."""

import errno
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from accelerate import Accelerator
from filelock import FileLock

from pipeline.errors import FolderInUseError
from pipeline.runs.lock import locked

DIES_LOCKING = (
    "import os, sys; from filelock import SoftFileLock as L; lock = L(sys.argv[1]); lock.acquire(); os._exit(0)"
)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(params=[None, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=["locks", "nolck", "notsup", "nosys"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that locks files, or one of those that do not, each with another error."""
    if request.param is not None:
        without_locks(monkeypatch, request.param)


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    def flock(descriptor: int, operation: int) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.usefixtures("file_system")
def test_another_command_is_refused_and_named(tmp_path: Path, accelerator: Accelerator) -> None:
    with locked(tmp_path, accelerator):
        writer = json.loads((tmp_path / ".lock.json").read_text())
        with pytest.raises(FolderInUseError) as caught, locked(tmp_path, accelerator):
            pass
    assert caught.value.exit_code == 7
    typed = shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    assert re.fullmatch(
        rf"another command is writing into {tmp_path}: `{re.escape(typed)}`, process {os.getpid()} on host "
        rf"{socket.gethostname()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait for it, or take another folder",
        str(caught.value),
    )
    assert writer["process_id"] == os.getpid() and writer["since"].endswith("Z")
    with locked(tmp_path, accelerator):
        pass
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"], "nothing is left but the empty lock"


@pytest.mark.parametrize("written", ["", '{"command": "gen tr', "[]", '{"command": 3}', b"\xff\xfe"])
def test_a_writer_that_cannot_be_read_hides_no_lock(
    tmp_path: Path, accelerator: Accelerator, written: str | bytes
) -> None:
    path = tmp_path / ".lock.json"
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(FolderInUseError, match=rf"is writing into {tmp_path}; wait"),
        locked(tmp_path, accelerator),
    ):
        pass
    with locked(tmp_path, accelerator):
        assert json.loads(path.read_text())["process_id"] == os.getpid()


def dead_process() -> int:
    """The number of a process that was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_killed_command_is_not_named_as_the_one_that_writes(tmp_path: Path, accelerator: Accelerator) -> None:
    dead = {"command": "gen", "host": socket.gethostname(), "process_id": dead_process(), "since": "2026-01-01T00:00Z"}
    (tmp_path / ".lock.json").write_text(json.dumps(dead))
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(FolderInUseError, match=rf"is writing into {tmp_path}; wait"),
        locked(tmp_path, accelerator),
    ):
        pass


def test_without_locks_that_of_a_killed_command_is_taken_over(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / ".lock.marker"
    subprocess.run([sys.executable, "-c", DIES_LOCKING, str(marker)], check=True)
    assert marker.exists()
    without_locks(monkeypatch)
    with locked(tmp_path, accelerator):
        assert str(os.getpid()) in marker.read_text()
    assert not marker.exists()


@pytest.mark.parametrize("is_named", [True, False])
def test_without_locks_that_of_another_host_stands_until_it_is_deleted(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    marker = tmp_path / ".lock.marker"
    marker.write_text("4242\nnode17\n")
    if is_named:
        there = {"command": "gen sample", "host": "node17", "process_id": 4242, "since": "2026-01-02T03:04:05Z"}
        (tmp_path / ".lock.json").write_text(json.dumps(there))
    without_locks(monkeypatch)
    with pytest.raises(FolderInUseError) as caught, locked(tmp_path, accelerator):
        pass
    who, which = ("host node17", ": `gen sample`, process 4242 on host node17, since 2026-01-02 03:04:05 UTC")
    who, which = (who, which) if is_named else ("the command", "")
    assert str(caught.value) == (
        f"another command is writing into {tmp_path}{which}; wait for it, or take another folder; "
        f"if {who} is known to be dead, delete {marker}"
    )
    assert marker.read_text() == "4242\nnode17\n", "as it was"
    marker.unlink()
    with locked(tmp_path, accelerator):
        pass


def test_other_faults_of_the_system_are_not_taken_for_missing_locks(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked(tmp_path, accelerator):
        pass
    assert not (tmp_path / ".lock.marker").exists()


def test_what_fails_while_a_folder_is_prepared_frees_it(tmp_path: Path, accelerator: Accelerator) -> None:
    def fail() -> None:
        raise MemoryError

    with suppress(MemoryError), locked(tmp_path, accelerator, fail):
        pass
    with locked(tmp_path, accelerator):
        pass
