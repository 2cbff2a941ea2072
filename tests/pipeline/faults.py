"""Faults of the machine: what may happen at each change of the disk, such as to be killed, or to find it full; and the
commands that are to survive it."""

import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.cli.main import main
from pipeline.runs.layout import STATUS
from pipeline.storage import MANIFEST, UNFINISHED, load_tensors, tensors_sha256
from tests.tiny import shapes

_SYSTEM_CALLS = {"mkdir": "mkdir", "rename": "rename", "replace": "rename", "unlink": "remove", "rmdir": "remove"}
_ON_DESCRIPTORS = {"fsync": "fsync", "sendfile": "copy", "sync": "sync"}  # whose errors name no file
_MAY_FIND_A_FULL_DISK = ("open", "write", "save", "copy", "mkdir", "rename", "fsync")


class Change(NamedTuple):
    """A change of the disk that is about to be made, or half made; `path` is what the system would name in an error."""

    kind: str
    path: str = ""


Action = Callable[[Change], None]


@contextmanager
def at_each_change(folder: Path, action: Action) -> Iterator[None]:
    """Call `action` before each change that this process makes in a folder; where bytes are written, halfway through.

    What is buffered counts when it reaches the system, as it would. Safetensors files are written in place, as older
    versions of the library do.
    """
    with ExitStack() as stack:
        for name, kind in _SYSTEM_CALLS.items():
            stack.enter_context(patch.object(os, name, _before(kind, getattr(os, name), action, named=True)))
        for name, kind in _ON_DESCRIPTORS.items():
            stack.enter_context(patch.object(os, name, _before(kind, getattr(os, name), action, named=False)))
        stack.enter_context(patch.object(os, "open", _created(os.open, action)))
        opened = _opened(folder.resolve(), action)
        stack.enter_context(patch("builtins.open", opened))
        stack.enter_context(patch.object(io, "open", opened))
        stack.enter_context(patch("pipeline.storage.save_file", _saved(save_file, action)))
        yield


def _before(kind: str, function: Callable[..., Any], action: Action, *, named: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        if kind != "mkdir" or not os.path.lexists(arguments[0]):
            action(Change(kind, os.fspath(arguments[0]) if named else ""))
        return function(*arguments, **options)

    return called


def _created(function: Callable[..., int], action: Action) -> Callable[..., int]:
    def called(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT and not os.path.lexists(path):
            action(Change("open", os.fspath(path)))
        return function(path, flags, *arguments, **options)

    return called


class _HalfWritten(io.FileIO):
    """A file of which half of what is written is there when `action` is called."""

    def __init__(self, path: str, mode: str, action: Action) -> None:
        super().__init__(path, mode)
        self._action = action

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        written = super().write(view[:half]) if half else 0
        self._action(Change("write"))
        return written + super().write(view[half:])


def _opened(folder: Path, action: Action) -> Callable[..., Any]:
    original = io.open

    def called(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        is_ours = isinstance(file, str | os.PathLike) and folder in Path(os.path.abspath(file)).parents  # noqa: PTH100
        is_probe = "opener" in options  # of tempfile, to see whether a file could be made
        if not is_ours or is_probe or not set(mode) & set("wax+"):
            return original(file, mode, buffering, *rest, **options)
        action(Change("open", os.fspath(file)))
        raw = _HalfWritten(os.fspath(file), mode.replace("b", "").replace("t", ""), action)
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, *rest, **options)

    return called


def _saved(function: Callable[..., None], action: Action) -> Callable[..., None]:
    def called(tensors: Any, path: Path, metadata: Any) -> None:
        function(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        try:
            action(Change("save", str(path)))
        except OSError as error:  # as the library has it
            reason = f"I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(f"Error while serializing: {reason}") from error
        function(tensors, path, metadata)

    return called


class FullDisk:
    """An action: the disk is full at the change of this number, and at all after it or not `from_then_on`.

    `changes` counts those that need room.
    """

    def __init__(self, number: int, *, from_then_on: bool) -> None:
        self.number, self.from_then_on, self.changes = number, from_then_on, 0

    def __call__(self, change: Change) -> None:
        if change.kind not in _MAY_FIND_A_FULL_DISK:
            return
        self.changes += 1
        if self.changes == self.number or (self.from_then_on and self.changes > self.number > 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *filter(None, [change.path]))


class Job(NamedTuple):
    """A command on a copy of the run `base`, if any, as `run`; `again` is what goes on with it."""

    name: str
    base: str | None
    arguments: tuple[str, ...]
    again: tuple[str, ...]
    out: str  # the folder that it writes into

    def begin(self, folder: Path, bases: Path) -> None:
        """Make a new folder to run in."""
        folder.mkdir()
        if self.base:
            shutil.copytree(bases / self.base / "run", folder / "run")


_SIZE = "--hidden 8 --batch-size 8 --precision float32 --checkpoints 3 --evaluations 3 --keep 1 --quiet"
_VQVAE = f"train-vqvae --out run {_SIZE} --residual-blocks 1 --residual-channels 4 --num-codes 12 --code-dim 4"
_PRIOR = f"train-prior run --force {_SIZE} --layers 2 --head 8 --first-kernel 3 --average-decay 0.9"


def jobs(pictures: Path) -> list[Job]:
    """The commands that write: trainings of both stages, one that goes on, encoding, sharpening, and drawing in each
    format."""
    resume = ("--resume", "auto")
    vqvae = (*_VQVAE.split(), "--data", str(pictures), "--steps", "6")
    prior = tuple(_PRIOR.split())
    further = ("train-vqvae", "--out", "run", "--quiet", "--steps", "9", *resume)
    sharpen = ("sharpen", "run", "--steps", "6", "--checkpoints", "3", "--average-decay", "0.9", "--quiet")
    made = [
        Job("train-vqvae", None, vqvae, (*vqvae, *resume), "run"),
        Job("train-vqvae, further", "stage1", further, further, "run"),
        Job("train-prior", "coded", (*prior, "--steps", "6"), (*prior, "--steps", "6", *resume), "run"),
        Job("encoding", "stage1", (*prior, "--steps", "1"), (*prior, "--steps", "1", *resume), "run"),
        Job("sharpen", "whole", sharpen, (*sharpen, *resume), "run"),
    ]
    for file_format in ("png", "zip", "safetensors"):
        draw = tuple(f"sample run --out new --n 7 --batch-size 3 --quiet --format {file_format}".split())
        made.append(Job(f"sample, {file_format}", "whole", draw, draw, "new"))
    return made


def gen(folder: Path, *arguments: str) -> Result:
    """Run a command in a folder; codes lie in several shards."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with patch("pipeline.training.inputs.extract.SHARD_BYTES", 96):
            return CliRunner().invoke(main, arguments)
    finally:
        os.chdir(before)


def make_bases(folder: Path) -> list[Job]:
    """Pictures, and the runs that jobs begin from, in a new folder. Returns the jobs."""
    images, labels = shapes(24)
    pictures = folder / "pictures"
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = pictures / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image[0])).save(path)
    made = jobs(pictures)
    vqvae, _, prior, *_ = made
    for name, before, arguments in (("stage1", "", vqvae.arguments), ("whole", "stage1", prior.arguments)):
        (folder / name).mkdir()
        if before:
            shutil.copytree(folder / before / "run", folder / name / "run")
        result = gen(folder / name, *arguments)
        assert result.exit_code == 0, result.output
    shutil.copytree(folder / "whole", folder / "coded", ignore=shutil.ignore_patterns("prior"))
    return made


def contents(folder: Path) -> dict[str, str]:
    """What the files of a folder hold, less what may differ between equal runs: times, and the order of metadata."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in files.items() if path.name != STATUS}  # which says when and by whom
    return {name: _content(path) for name, path in kept.items() if not any(map(_is_hidden, Path(name).parts))}


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _content(path: Path) -> str:
    if path.suffix == ".safetensors":
        return tensors_sha256(load_tensors(path))
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([{key: line[key] for key in line if key != "images_per_second"} for line in lines])
    if path.name == MANIFEST:
        return json.dumps(sorted(json.loads(path.read_text())))
    if path.name == "index.json":
        index = json.loads(path.read_text())
        return json.dumps([index["identity"], [[s["maps"] for s in part] for part in index["parts"].values()]])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_a_file(message: str, folder: str) -> bool:
    """Whether a message names this folder, or something in it."""
    return re.search(rf"(^|[\s:'`/]){folder}($|[\s/'`])", message, re.MULTILINE) is not None


def left_behind(folder: Path) -> list[str]:
    """Temporary files and folders that nobody has removed."""
    hidden = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    return [name for name in hidden if name.endswith(UNFINISHED) or name.startswith((".step-", ".best-", ".tmp"))]
