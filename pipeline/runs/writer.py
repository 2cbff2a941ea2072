"""The command that writes into a folder: which one, on which host, as which process, and whether it still runs."""

import os
import shlex
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pipeline.errors import CheckpointError
from pipeline.storage import JsonObject, read_json, validated

_CLOCKS_DIFFER = 60  # seconds by which a process may seem to have begun after what it wrote


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))  # a later version may say more
class Writer:
    """A command at work: as it was typed, its host and process, and since when (UTC)."""

    command: str
    host: str
    process_id: int = Field(gt=0)
    since: datetime

    def in_words(self) -> str:
        """Which, where, and since when."""
        since = self.since.astimezone(UTC)
        return f"`{self.command}`, process {self.process_id} on host {self.host}, since {since:%Y-%m-%d %H:%M:%S} UTC"

    def is_running(self) -> bool | None:
        """Whether the process is still there; None where only its own host could say."""
        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.process_id)
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            begun = float(process.create_time())  # of another process, if the number has been given out anew
        except psutil.NoSuchProcess:
            return False
        return not is_zombie and begun < self.since.timestamp() + _CLOCKS_DIFFER


WriterT = TypeVar("WriterT", bound=Writer)


def this_writer() -> Writer:
    """This process, as of now."""
    is_gen = Path(sys.argv[0]).name == "gen"  # else a script, or `python -m pipeline` under a launcher
    arguments = ["gen", *sys.argv[1:]] if is_gen else [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    return Writer(command=shlex.join(arguments), host=socket.gethostname(), process_id=os.getpid(), since=now())


def now() -> datetime:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def as_json(writer: Writer) -> JsonObject:
    """What a file about it holds, with times by ISO 8601."""
    content: JsonObject = TypeAdapter(type(writer)).dump_python(writer, mode="json")
    return content


def read_writer(path: Path, kind: type[WriterT]) -> WriterT | None:
    """What `as_json` wrote; None where there is nothing, or nothing that could be understood."""
    try:
        return validated(path, read_json(path), kind)
    except (CheckpointError, OSError):
        return None
