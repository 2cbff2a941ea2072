"""What reaches the disk, and in which order: no name comes before its content, and no manifest before all it lists."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import load, train_vqvae
from pipeline.runs.validation import Metrics, read_validation
from pipeline.sampling.samples import Samples, write_part
from pipeline.storage import (
    UNFINISHED,
    atomic_file,
    atomic_folder,
    remove_folder,
    replaced_files,
    save_tensors,
    verify,
    write_json,
)
from pipeline.training.loop.checkpoint import StepRecord, TrainingState, discard_after, save_best, save_checkpoint
from pipeline.training.loop.optimization import AdamW
from tests.tiny import TINY_VQVAE, shapes

IMAGES, TARGETS = shapes()
Event = tuple[str, str, str]  # what, of which name, and its content (sync) or new name (rename)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every fsync, rename and removal, in order: ("sync", path, what a file holds by then or a folder lists)."""
    happened: list[Event] = []
    opened: dict[int, Path] = {}
    real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in ("open", "fsync", "sync")}

    def open_and_remember(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor: int = real["open"](path, *arguments, **options)
        if options.get("dir_fd") is None:
            opened[descriptor] = Path(os.fsdecode(path))
        return descriptor

    def fsync(descriptor: int) -> None:
        path = opened[descriptor]
        held = ",".join(sorted(file.name for file in path.iterdir())) if path.is_dir() else path.read_bytes().hex()
        happened.append(("sync", str(path), held))
        real["fsync"](descriptor)

    def renaming(name: str) -> Callable[..., None]:
        move = getattr(os, name)

        def rename(source: Any, target: Any, **options: Any) -> None:
            happened.append(("rename", str(source), str(target)))
            move(source, target, **options)

        return rename

    rmtree = shutil.rmtree

    def remove(path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path).exists():
            happened.append(("remove", str(path), ""))
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_and_remember)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "sync", lambda: happened.append(("sync all", "", "")))
    monkeypatch.setattr(os, "rename", renaming("rename"))
    monkeypatch.setattr(os, "replace", renaming("replace"))
    monkeypatch.setattr(shutil, "rmtree", remove)
    return happened


def positions(events: list[Event], what: str, path: Path | str, detail: str | None = None) -> list[int]:
    """Where in the order something happened to a path."""
    return [
        index
        for index, (kind, name, more) in enumerate(events)
        if (kind, name) == (what, str(path)) and detail in (None, more)
    ]


def renamed_to(events: list[Event], path: Path) -> tuple[int, Path]:
    """When a path took its name, for the last time, and from which other."""
    index = max(index for index, (kind, _, target) in enumerate(events) if (kind, target) == ("rename", str(path)))
    return index, Path(events[index][1])


def assert_durable_file(events: list[Event], path: Path) -> int:
    """The whole content was on the disk before the name, and the name soon after. Returns when it had its name."""
    renamed, unfinished = renamed_to(events, path)
    content = path.read_bytes().hex()
    assert any(kind == "sync" and more == content for kind, _, more in events[:renamed]), "content before name"
    assert unfinished.is_relative_to(path.parent), "a rename within a folder, which happens at once or not at all"
    assert [i for i in positions(events, "sync", path.parent) if i > renamed], "then the name"
    return renamed


def assert_durable_folder(events: list[Event], folder: Path) -> int:
    """All files before the manifest, this before the folder's name, which is on the disk. Returns when it was."""
    renamed, unfinished = renamed_to(events, folder)
    names = set(json.loads((folder / "manifest.json").read_text()))
    assert names == {path.name for path in folder.iterdir()} - {"manifest.json"}
    manifest, _ = renamed_to(events[:renamed], unfinished / "manifest.json")
    for name in names:
        content = (folder / name).read_bytes().hex()
        assert positions(events[:manifest], "sync", unfinished / name, content), f"{name} before the manifest"
    written = (folder / "manifest.json").read_bytes().hex()
    assert any(more == written for kind, _, more in events[:manifest] if kind == "sync"), "its content before its name"
    listed = ",".join(sorted([*names, "manifest.json"]))
    assert [i for i in positions(events[:renamed], "sync", unfinished, listed) if i > manifest], "names before name"
    after = [index for index in positions(events, "sync", folder.parent) if index > renamed]
    assert after, "then the folder's own name"
    return after[0]


def test_a_file_has_its_name_only_once_it_is_on_the_disk(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "a.json").write_text("before")
    with atomic_file(tmp_path / "a.json") as unfinished:
        unfinished.write_text("half")
        unfinished.write_text("whole")
    assert_durable_file(events, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "whole"
    write_json(tmp_path / "b.json", {"x": 1})
    assert_durable_file(events, tmp_path / "b.json")


def test_a_folder_has_its_name_only_once_all_of_it_is_on_the_disk(tmp_path: Path, events: list[Event]) -> None:
    with atomic_folder(tmp_path / "folder") as unfinished:
        save_tensors(unfinished / "a.safetensors", {"x": torch.arange(3.0)})
        (unfinished / "b.json").write_text("{}")
    assert_durable_folder(events, tmp_path / "folder")


def a_state(step: int) -> TrainingState:
    task = nn.ModuleDict({"network": nn.Linear(2, 3)})
    optimizer = AdamW(task.parameters())
    task["network"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainingState(task, optimizer, None, StepRecord(9, step, Metrics({"nmse": 0.5}), step))


@pytest.mark.parametrize("kind", ["step", "best"])
def test_an_older_checkpoint_is_removed_only_once_the_new_one_is_on_the_disk(
    tmp_path: Path, events: list[Event], kind: str
) -> None:
    for step in (1, 2):
        if kind == "step":
            save_checkpoint(tmp_path, a_state(step), keep=1)
        else:
            save_best(tmp_path, a_state(step))
    written = assert_durable_folder(events, tmp_path / f"{kind}-000000002")
    removed, _ = renamed_to(events, tmp_path / f".{kind}-000000001{UNFINISHED}")
    assert removed > written
    assert [path.name for path in tmp_path.iterdir()] == [f"{kind}-000000002"]


def test_a_finished_model_has_its_manifest_only_once_all_files_are_on_the_disk(
    tmp_path: Path, events: list[Event]
) -> None:
    stage = tmp_path / "run" / "vqvae"
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, "steps": 2})
    manifest = assert_durable_file(events, stage / "manifest.json")
    names = set(json.loads((stage / "manifest.json").read_text()))
    assert names == {"config.json", "model.safetensors", "validation.json", "split.safetensors"}
    for name in names:
        content = (stage / name).read_bytes().hex()
        assert any(kind == "sync" and more == content for kind, _, more in events[:manifest]), name
    load(tmp_path / "run")


def test_while_a_model_is_replaced_there_is_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of new weights and an old configuration would otherwise pass for whole; and until all of the new one is
    on the disk, the old one stays."""
    stage, replace = tmp_path / "run" / "vqvae", Path.replace
    there: dict[str, bool] = {}

    def replacing(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".files.") and target.parent == stage:
            there[target.name] = (stage / "manifest.json").exists()
        return replace(self, target)

    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, "steps": 2})
    monkeypatch.setattr(Path, "replace", replacing)
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, resume="auto", steps=3)
    names = ["config.json", "model.safetensors", "validation.json", "manifest.json"]
    assert there == dict.fromkeys(names, False) and list(there)[-1] == "manifest.json"
    assert (stage / "manifest.json").exists() and not list(stage.glob(".files.*"))


def test_a_model_stays_until_all_of_the_next_one_is_on_the_disk(tmp_path: Path) -> None:
    """Once, a longer training on a full disk left a finished model without its manifest."""
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, "steps": 2})
    stage = tmp_path / "run" / "vqvae"
    before = {path.name: path.read_bytes() for path in stage.glob("*.*") if path.is_file()}
    with pytest.raises(OSError, match="No space left"), replaced_files(stage, []) as unfinished:
        (unfinished / "model.safetensors").write_bytes(b"new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert {path.name: path.read_bytes() for path in stage.glob("*.*") if path.is_file()} == before
    verify(stage)


def test_what_a_killed_command_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, "steps": 2})
    stage = tmp_path / "run" / "vqvae"
    left = [stage / "checkpoints" / f".step-000000003.abcdefgh{UNFINISHED}", stage / f".files.abcdefgh{UNFINISHED}"]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    left += [stage / f".config.json{UNFINISHED}", stage / ".tmpAb12Cd"]
    for file in left[2:]:
        file.write_bytes(b"half")
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, resume="auto", steps=3)
    assert not [path for path in left if path.exists()]


def test_best_weights_that_were_half_removed_are_not_taken_for_whole(tmp_path: Path) -> None:
    """Once, a training that resumed beside such a folder failed in the end for want of the file."""
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, "steps": 4, "evaluations": 1})
    stage = tmp_path / "run" / "vqvae"
    [best] = (stage / "checkpoints").glob("best-*")
    for path in (best / "model.safetensors", stage / "manifest.json"):
        path.unlink()
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, resume="auto")
    verify(stage)
    assert read_validation(stage).step == 4


def test_a_folder_loses_its_name_before_any_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rmtree = tmp_path / "step-000000001", shutil.rmtree
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"whole")
    removed: list[Path] = []

    def removing(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            removed.append(path)
            assert not folder.exists()
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", removing)
    remove_folder(folder)
    assert len(removed) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", ["png", "zip", "safetensors"])
def test_codes_say_that_images_are_there_only_once_these_are_on_the_disk(
    tmp_path: Path, events: list[Event], file_format: Any
) -> None:
    (tmp_path / "codes").mkdir()
    images, codes = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), (torch.zeros(2, 1, 1, dtype=torch.int16),)
    write_part(tmp_path, range(5, 7), Samples(images, codes, None), file_format)
    written = assert_durable_file(events, tmp_path / "codes" / "000005-000006.safetensors")
    if file_format == "png":
        assert (tmp_path / "000005.png").exists() and (tmp_path / "000006.png").exists()
    else:
        assert assert_durable_file(events, tmp_path / f"images-000005-000006.{file_format}") < written


def test_a_checkpoint_that_a_run_resumes_from_stays_where_it_is(tmp_path: Path) -> None:
    """Should the power fail again before the next one is written, it is all there is."""
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, a_state(step), keep=9)
    assert [path.name for path in discard_after(tmp_path, 2)] == ["step-000000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000002"]
