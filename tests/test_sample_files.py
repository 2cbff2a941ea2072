"""Images drawn into a folder: every format, one part after another, interrupted and continued."""

import io
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import UsageError, generate, generate_files
from pipeline.errors import CheckpointError, InterruptedRunError
from pipeline.generate import REQUEST
from pipeline.model import Drawer
from pipeline.samples import Format, Samples
from pipeline.storage import load_tensors


def pixels_of(folder: Path, n: int, file_format: Format) -> torch.Tensor:
    """The images of a folder of samples, (n, h, w), as its files have them."""
    if file_format == "safetensors":
        parts = [load_tensors(path)["images"] for path in sorted(folder.glob("images-*.safetensors"))]
        return torch.cat(parts)[:, 0]
    contents: dict[str, bytes] = {}
    for path in sorted(folder.glob("images-*.zip")):
        with zipfile.ZipFile(path) as archive:
            contents |= {name: archive.read(name) for name in archive.namelist()}
    if file_format == "png":
        contents = {path.name: path.read_bytes() for path in folder.glob("[0-9]*.png")}
    assert sorted(contents) == [f"{index:05d}.png" for index in range(n)]
    images = [np.array(Image.open(io.BytesIO(contents[name]))) for name in sorted(contents)]
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("file_format", ["png", "zip", "safetensors"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_files_hold_the_images_of_generate(trained: Path, file_format: Format, batch_size: int | None) -> None:
    done = generate_files(trained, n=10, seed=3, out="new", format=file_format, batch_size=batch_size)
    expected = generate(trained, 10, seed=3)
    assert (done.n, done.new) == (10, 10)
    assert torch.equal(pixels_of(done.folder, 10, file_format), expected.images[:, 0])
    codes = [load_tensors(path) for path in sorted(done.folder.glob("codes-*.safetensors"))]
    assert len(codes) == (1 if batch_size is None else 3)
    assert torch.equal(torch.cat([part["level0"] for part in codes]), expected.codes[0])
    assert torch.equal(torch.cat([part["labels"] for part in codes]), expected.labels)  # type: ignore[arg-type]
    with Image.open(done.folder / "grid.png") as grid:
        assert np.array_equal(np.array(grid), np.array(expected.grid()))


def interrupt_after(parts: int, monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    """Let the drawing of one more part be met by `how`."""
    draw, calls = Drawer.__call__, iter(range(100))

    def drawing(self: Drawer, indices: np.ndarray) -> Samples:
        if next(calls) == parts:
            how()
        return draw(self, indices)

    monkeypatch.setattr(Drawer, "__call__", drawing)


def power_failure() -> None:
    raise RuntimeError("power failure")


def control_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("file_format", ["png", "zip", "safetensors"])
@pytest.mark.parametrize(("how", "error"), [(power_failure, RuntimeError), (control_c, InterruptedRunError)])
def test_an_interrupted_run_draws_only_what_is_missing(
    trained: Path, monkeypatch: pytest.MonkeyPatch, file_format: Format, how: Any, error: type[Exception]
) -> None:
    options: dict[str, Any] = {"n": 11, "seed": 2, "out": "new", "format": file_format, "precision": "float64"}
    with monkeypatch.context() as patch, pytest.raises(error):
        interrupt_after(2, patch, how)
        generate_files(trained, batch_size=3, **options)
    folder = Path("new")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*-*")}
    assert before
    drawn = generate_files(trained, batch_size=5, **options).new  # in smaller or larger batches: the parts stay
    assert drawn == 11 - 3 * len([p for p in before if p.name.startswith("codes")])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    expected = generate(trained, 11, seed=2, precision="float64")
    assert torch.equal(pixels_of(folder, 11, file_format), expected.images[:, 0])
    assert generate_files(trained, **options).new == 0, "nothing is left to draw"
    assert not list(folder.glob(".*")), "nothing unfinished is left"


def test_more_images_of_a_seed_are_added(trained: Path) -> None:
    generate_files(trained, n=5, out="new", batch_size=2)
    assert generate_files(trained, n=9, out="new").new == 5  # images 5 to 8, and 4, whose part was not full
    assert torch.equal(pixels_of(Path("new"), 9, "png"), generate(trained, 9).images[:, 0])
    assert generate_files(trained, n=3, out="new").new == 0


def test_a_missing_picture_is_drawn_again(trained: Path) -> None:
    generate_files(trained, n=6, out="new", batch_size=2)
    Path("new/00003.png").unlink()
    Path("new/00004.png").write_bytes(b"")
    assert generate_files(trained, n=6, out="new").new == 4
    assert torch.equal(pixels_of(Path("new"), 6, "png"), generate(trained, 6).images[:, 0])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"temperature": 0.5}, "temperature 1.0, not 0.5"),
        ({"label": 1}, "label None, not 1"),
        ({"format": "zip"}, "format png, not zip"),
        ({"precision": "float64", "top_k": 2}, "top_k None, not 2; precision float32, not float64"),
    ],
)
def test_other_images_never_land_on_existing_files(trained: Path, other: dict[str, Any], difference: str) -> None:
    generate_files(trained, n=3, out="new")
    before = {path: path.read_bytes() for path in Path("new").iterdir()}
    with pytest.raises(UsageError, match=difference):
        generate_files(trained, n=3, out="new", **other)
    assert {path: path.read_bytes() for path in Path("new").iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(trained: Path) -> None:
    Path("mine").mkdir()
    Path("mine/00000.png").write_bytes(b"a picture of mine")
    with pytest.raises(UsageError, match="mine exists already, and holds no samples"):
        generate_files(trained, n=1, out="mine")
    Path("mine", REQUEST).write_text(json.dumps({"kind": "letter"}))
    with pytest.raises(CheckpointError, match="is not the request of samples"):
        generate_files(trained, n=1, out="mine")
    assert Path("mine/00000.png").read_bytes() == b"a picture of mine"


def test_seeds_and_classes_have_folders_of_their_own(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    folders = [generate_files(run, n=1, seed=seed, label=label).folder for seed in (0, 1) for label in (None, "1")]
    assert [folder.name for folder in folders] == ["seed-0", "seed-0-1", "seed-1", "seed-1-1"]
