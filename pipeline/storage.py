"""Folders that are complete or not there: temporary name, manifest with sha256, fsync, rename.

Tensors are safetensors, the rest is JSON; nothing is pickled, and loading runs no code.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeGuard, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import CheckpointError, UsageError, describe

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"

JsonObject: TypeAlias = dict[str, object]  # whatever JSON can say; `validated` makes it a type of ours
T = TypeVar("T")


@dataclass(frozen=True)
class ListedFile:
    """What a manifest says of a file."""

    bytes: int
    sha256: str


def is_path(given: object) -> TypeGuard[str | Path]:
    """Whether this can be the path of a file: text, or a Path, without the NUL that no system allows."""
    return isinstance(given, str | Path) and "\0" not in str(given)


def _is_utf8(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def check_paths(**given: object) -> None:
    """Raise UsageError with all that can be no path of ours. None stands for one that was not given.

    Bytes that are no UTF-8 are refused too: the safetensors library writes files of such names, and opens none.
    """
    wrong = [
        f"{name} must be the path of a file or folder, text in UTF-8 or a Path; got {type(path).__name__}: {path!r:.60}"
        for name, path in given.items()
        if path is not None and not (is_path(path) and _is_utf8(str(path)))
    ]
    if wrong:
        raise UsageError("\n".join(wrong))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file, or the folder, in errors of the system that name none: those of writing, where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write into the yielded folder; it takes its name, with a manifest, only once all of it is on the disk."""
    with atomic_tree(path) as unfinished:
        yield unfinished
        write_manifest(unfinished, sorted(file.name for file in unfinished.iterdir()))


@contextmanager
def atomic_tree(path: Path) -> Iterator[Path]:
    """Write into the yielded folder, and bring what is written to the disk; at the end it takes its name, as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(UNFINISHED, f".{path.name}.", path.parent))
    try:
        with naming(path):
            yield unfinished
        unfinished.chmod(0o777 & ~_umask())
        _take_name(unfinished, path)
        sync(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write to the yielded path; the file takes its name only once it is complete, on the disk."""
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        with naming(path):
            yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def replaced_files(folder: Path, others: list[str]) -> Iterator[Path]:
    """Write into the yielded folder; its files replace those in `folder` and make a new manifest, with `others` there.

    Nothing is changed until all of them are on the disk. While names are exchanged there is no manifest.
    """
    unfinished = Path(tempfile.mkdtemp(UNFINISHED, ".files.", folder))
    try:
        with naming(folder):
            yield unfinished
        paths = {path.name: path for path in sorted(unfinished.iterdir())}
        write_json(unfinished / MANIFEST, _described({**paths, **{name: folder / name for name in others}}))
        (folder / MANIFEST).unlink(missing_ok=True)
        for name, path in paths.items():
            path.replace(folder / name)
        sync(folder)
        (unfinished / MANIFEST).replace(folder / MANIFEST)
        sync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder as a whole: it loses its name first, so that half of it never passes for all."""
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    path.rename(unfinished)
    shutil.rmtree(unfinished)


_OUR_FOLDERS = re.compile(r"\.((step|best)-\d+|files)(\.\w{8})?\.unfinished")
_OUR_FILES = re.compile(r"\..+\.unfinished|\.tmp\w{6}")  # the latter of the safetensors library


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed command left half written in a folder of ours, where no other command writes now."""
    for path in folder.glob(".*"):
        if path.is_dir() and _OUR_FOLDERS.fullmatch(path.name):
            shutil.rmtree(path)
        elif path.is_file() and _OUR_FILES.fullmatch(path.name):
            path.unlink()


def _take_name(unfinished: Path, path: Path) -> None:
    try:
        unfinished.rename(path)
    except OSError as error:
        if path.exists():
            raise FileExistsError(error.errno, "was written by somebody else meanwhile", str(path)) from error
        raise


def write_manifest(folder: Path, names: list[str]) -> None:
    """Bring these files to the disk and write down their sizes and hashes. The manifest makes a folder complete."""
    write_json(folder / MANIFEST, _described({name: folder / name for name in names}))
    sync(folder)


def _described(paths: Mapping[str, Path]) -> JsonObject:
    """What a manifest says of these files, once they are on the disk."""
    for path in paths.values():
        sync(path)
    return {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in paths.items()}


def read_manifest(folder: Path) -> dict[str, ListedFile]:
    """What the manifest of a folder says of its files, by name. Raises CheckpointError."""
    return validated(folder / MANIFEST, read_json(folder / MANIFEST), dict[str, ListedFile])


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file of the manifest is there and unchanged."""
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} holds no finished model (no {MANIFEST})")
    files = read_manifest(folder)
    if not files:
        raise CheckpointError(f"{folder / MANIFEST} lists no files; copy the folder again, or resume from a checkpoint")
    for name, expected in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; copy the folder again, or resume from a checkpoint")
        actual = sha256(path)
        if actual != expected.sha256:
            raise CheckpointError(
                f"{path} is damaged: sha256 {actual[:12]}, {path.stat().st_size} bytes; the manifest says "
                f"{expected.sha256[:12]}, {expected.bytes} bytes"
            )


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON under a temporary name, then rename."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> JsonObject:
    """A JSON object. Raises CheckpointError when it is missing or not one."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def validated(path: Path, content: JsonObject, kind: type[T]) -> T:
    """The content of a JSON file as a type of ours. Raises CheckpointError, which names the file."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a file of this kind: {describe(error)}") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, readable as the umask says (the library would make it private).

    Equal contents make equal bytes: the library writes metadata in an order that changes from process to process.
    """
    contents = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    try:
        save_file(contents, path, dict(metadata or {}))
    except SafetensorError as error:  # it hides the system's error, which most often is a full disk
        size = sum(value.nbytes for value in contents.values())
        raise OSError(None, f"{size:,} bytes of tensors could not be written ({error})", str(path)) from error
    _order_metadata(path)
    path.chmod(0o666 & ~_umask())


def _order_metadata(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file: 8 bytes of its length, then JSON that spaces fill up."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        ordered = {
            key: dict(sorted(value.items())) if key == "__metadata__" else value for key, value in header.items()
        }
        content = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(content) <= size, "the same JSON, as compact as the library writes it"
        file.seek(8)
        file.write(content.ljust(size))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises CheckpointError when it is missing or damaged."""
    with _open(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a safetensors file, whose tensors are not read. Raises CheckpointError when it is damaged."""
    with _open(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict


def load_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises CheckpointError when it is missing or damaged."""
    with _open(path) as file:
        return file.metadata() or {}


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def load_strictly(module: torch.nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file: every tensor there, none besides, all of the right shape."""
    try:
        module.load_state_dict(load_tensors(path), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its config.json: {error}") from error


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The hash of tensors by name: of names, types, shapes and values, in whatever file or order they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():  # an empty one cannot be seen as bytes
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
