"""Images drawn into a folder: every format, one part after another, interrupted and continued."""

import io
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import UsageError, generate, generate_files
from pipeline.config.sampling import Format
from pipeline.errors import CheckpointError, InterruptedRunError
from pipeline.sampling.request import REQUEST
from pipeline.sampling.samplers import CodeSampler
from pipeline.sampling.samples import Samples, bytes_on_disk, missing_parts, write_part
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
    assert sorted(contents) == [f"{index:06d}.png" for index in range(n)]
    images = [np.array(Image.open(io.BytesIO(contents[name]))) for name in sorted(contents)]
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("file_format", ["png", "zip", "safetensors"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_files_hold_the_images_of_generate(trained: Path, file_format: Format, batch_size: int | None) -> None:
    done = generate_files(trained, n=10, seed=3, out="new", format=file_format, batch_size=batch_size)
    expected = generate(trained, 10, seed=3)
    assert (done.n, done.new) == (10, 10)
    assert torch.equal(pixels_of(done.folder, 10, file_format), expected.images[:, 0])
    codes = [load_tensors(path) for path in sorted(done.folder.glob("codes/*.safetensors"))]
    assert len(codes) == (1 if batch_size is None else 3)
    assert torch.equal(torch.cat([part["level0"] for part in codes]), expected.codes[0])
    assert torch.equal(torch.cat([part["labels"] for part in codes]), expected.labels)  # type: ignore[arg-type]
    with Image.open(done.folder / "grid.png") as grid:
        assert np.array_equal(np.array(grid), np.array(expected.grid()))


OPTIONS: dict[str, Any] = {"seed": 2, "out": "new", "precision": "float64"}


def check(trained: Path, n: int, file_format: Format) -> None:
    """The folder holds images 0 to n - 1, whole, and nothing unfinished."""
    expected = generate(trained, n, seed=2, precision="float64")
    assert torch.equal(pixels_of(Path("new"), n, file_format), expected.images[:, 0])
    codes = torch.cat([load_tensors(path)["level0"] for path in sorted(Path("new/codes").iterdir())])
    assert torch.equal(codes, expected.codes[0])
    assert not list(Path("new").rglob("*.unfinished"))


def fail_at(calls: int, what: Callable[..., Any], action: Callable[[], object]) -> Callable[..., Any]:
    """`what`, but for one call that does `action` first."""
    counted = iter(range(1000))

    def replacement(*arguments: Any, **options: Any) -> Any:
        if next(counted) == calls:
            action()
        return what(*arguments, **options)

    return replacement


def power_failure() -> None:
    raise MemoryError("power failure")


@pytest.mark.parametrize("file_format", ["png", "zip", "safetensors"])
@pytest.mark.parametrize("call", range(4))
def test_a_run_that_died_while_writing_is_completed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, file_format: Format, call: int
) -> None:
    # Codes are written last: where they fail, a part's images are there without its codes.
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Samples, "save_codes", fail_at(call, Samples.save_codes, power_failure))
        generate_files(trained, n=11, batch_size=3, format=file_format, **OPTIONS)
    Path("new/.images-000003-000005.zip.unfinished").write_bytes(b"half")
    before = {path: path.read_bytes() for path in Path("new/codes").iterdir()}
    assert generate_files(trained, n=11, batch_size=5, format=file_format, **OPTIONS).new == 11 - sum(
        len(load_tensors(path)["level0"]) for path in before
    )
    assert {path: path.read_bytes() for path in before} == before
    check(trained, 11, file_format)


@pytest.mark.parametrize("file_format", ["png", "zip", "safetensors"])
def test_a_run_that_died_while_drawing_is_completed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, file_format: Format
) -> None:
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(CodeSampler, "sample", fail_at(2, CodeSampler.sample, power_failure))
        generate_files(trained, n=11, batch_size=3, format=file_format, **OPTIONS)
    assert generate_files(trained, n=11, batch_size=3, format=file_format, **OPTIONS).new == 5
    assert generate_files(trained, n=11, format=file_format, **OPTIONS).new == 0
    check(trained, 11, file_format)


def test_control_c_ends_after_the_part_and_the_same_call_goes_on(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def control_c() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="draws the 5 images left") as stopped:
        patch.setattr(CodeSampler, "sample", fail_at(1, CodeSampler.sample, control_c))
        generate_files(trained, n=11, batch_size=3, **OPTIONS)
    assert stopped.value.exit_code == 128 + signal.SIGINT
    assert generate_files(trained, n=11, **OPTIONS).new == 5
    check(trained, 11, "png")


def test_more_images_of_a_seed_are_added_and_those_there_left_alone(trained: Path) -> None:
    generate_files(trained, n=5, batch_size=2, **OPTIONS)
    Path("new/000001.png").write_bytes(b"retouched")
    before = {path: path.read_bytes() for path in Path("new").rglob("*.*") if path.name != "grid.png"}
    assert generate_files(trained, n=300, **OPTIONS).new == 295
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in Path("new/codes").iterdir())[3:] == [
        "000005-000260.safetensors",
        "000261-000299.safetensors",
    ]
    assert generate_files(trained, n=3, **OPTIONS).new == 0
    Path("new/000001.png").unlink()
    Image.fromarray(generate(trained, 2, seed=2, precision="float64").images[1, 0].numpy()).save("new/000001.png")
    check(trained, 300, "png")


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 14), st.integers(1, 5))
def test_missing_parts_and_written_ones_are_all_images_once(written: list[bool], n: int, size: int) -> None:
    there = [range(index, index + 1) for index, is_there in enumerate(written) if is_there]
    missing = missing_parts(there, n, size)
    assert all(0 < len(part) <= size for part in missing)
    drawn = sorted(index for part in missing for index in part)
    assert drawn == [index for index in range(n) if index >= len(written) or not written[index]]


def test_a_folder_is_filled_by_one_command_at_a_time(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another() -> None:
        with pytest.raises(UsageError, match="another command is writing into new"):
            generate_files(trained, n=11, **OPTIONS)

    monkeypatch.setattr(CodeSampler, "sample", fail_at(1, CodeSampler.sample, another))
    generate_files(trained, n=6, batch_size=3, **OPTIONS)
    check(trained, 6, "png")


def test_a_picture_that_was_deleted_is_drawn_again(trained: Path) -> None:
    there = generate_files(trained, n=5, batch_size=2, **OPTIONS)
    before = (there.folder / "000002.png").read_bytes()
    (there.folder / "000002.png").unlink()
    assert generate_files(trained, n=5, batch_size=2, **OPTIONS).new == 2, "the part that it belongs to"
    assert (there.folder / "000002.png").read_bytes() == before


def test_more_are_drawn_where_one_was_deleted_and_none_twice(trained: Path) -> None:
    there = generate_files(trained, n=5, **OPTIONS)
    (there.folder / "000002.png").unlink()
    assert generate_files(trained, n=8, **OPTIONS).new == 8
    assert generate_files(trained, n=8, **OPTIONS).new == 0
    assert torch.equal(
        pixels_of(there.folder, 8, "png"), generate(trained, 8, seed=2, precision="float64").images[:, 0]
    )
    assert [path.name for path in there.folder.glob("codes/*")] == ["000000-000007.safetensors"]


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
    before = {path: path.read_bytes() for path in Path("new").iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=difference):
        generate_files(trained, n=3, out="new", **other)
    assert {path: path.read_bytes() for path in Path("new").iterdir() if path.is_file()} == before


def test_a_folder_of_something_else_is_left_alone(trained: Path) -> None:
    Path("mine").mkdir()
    Path("mine/000000.png").write_bytes(b"a picture of mine")
    with pytest.raises(UsageError, match="mine exists already, and has no request"):
        generate_files(trained, n=1, out="mine")
    Path("mine", REQUEST).write_text(json.dumps({"format_version": 7, "kind": "letter"}))
    with pytest.raises(CheckpointError, match=r"request\.json is not a file of this kind"):
        generate_files(trained, n=1, out="mine")
    assert Path("mine/000000.png").read_bytes() == b"a picture of mine"


def test_seeds_and_classes_have_folders_of_their_own(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    folders = [generate_files(run, n=1, seed=seed, label=label).folder for seed in (0, 1) for label in (None, "1")]
    assert [folder.name for folder in folders] == ["seed-0", "seed-0-1", "seed-1", "seed-1-1"]


@pytest.mark.parametrize("file_format", ["png", "zip", "safetensors"])
def test_noise_that_png_cannot_compress_takes_no_more_of_the_disk_than_estimated(
    tmp_path: Path, file_format: Format
) -> None:
    """Checked before anything is drawn, of images that nobody has seen."""
    (tmp_path / "codes").mkdir()
    images, codes = torch.randint(256, (2, 1, 512, 512)).byte(), (torch.zeros(2, 8, 8, dtype=torch.int16),)
    write_part(tmp_path, range(2), Samples(images, codes, None), file_format)
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 2 * images[0].nbytes < taken < 2 * bytes_on_disk(images[0].nbytes + codes[0][0].nbytes, file_format)
