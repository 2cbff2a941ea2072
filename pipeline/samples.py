"""Generated images: in memory, and as the files of a folder that grows a part at a time."""

import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from pipeline import images as pictures
from pipeline.codes import CodeMaps, load_codes, save_codes
from pipeline.errors import CheckpointError, UsageError
from pipeline.storage import atomic_file, atomic_folder, save_tensors
from stage1_vqvae import Codes

GRID_IMAGES = 64  # images shown in grid.png
GRID = "grid.png"

Format = Literal["png", "zip", "safetensors"]


@dataclass(frozen=True)
class Samples:
    """Generated images, uint8 (n, channels, height, width), their codes, and labels (n,) where there are classes."""

    images: UInt8[Tensor, "n c h w"]
    codes: Codes
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...] = ()
    vqvae_sha256: str = ""  # of the weights that the codes mean something to

    def __len__(self) -> int:
        return len(self.images)

    def to_pil(self) -> list[Image.Image]:
        """The images as PIL images."""
        return [pictures.to_pil(image) for image in self.images.numpy()]

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one, in a square by default."""
        return pictures.grid(self.images.numpy(), columns or math.ceil(len(self) ** 0.5))

    def save(self, folder: str | Path) -> Path:
        """Write 00000.png ..., grid.png (the first 64) and codes.safetensors into a new folder.

        Raises UsageError when there is something of that name already.
        """
        path = Path(folder)
        if path.exists():
            raise UsageError(f"{path} exists already; choose another --out or another --seed")
        with atomic_folder(path) as unfinished:
            for index, image in enumerate(self.to_pil()):
                image.save(unfinished / picture_name(index))
            save_grid(unfinished, self.images)
            self.save_codes(unfinished / "codes.safetensors")
        return path

    def save_codes(self, path: Path) -> None:
        """Write the code maps and labels, with the hash of the weights that they belong to."""
        save_codes(path, CodeMaps(self.codes, self.labels), {"vqvae_sha256": self.vqvae_sha256})


def join(parts: Sequence[Samples]) -> Samples:
    """Samples of one model, one after another."""
    first = parts[0]
    codes = tuple(torch.cat(level) for level in zip(*(part.codes for part in parts), strict=True))
    labels = None if first.labels is None else torch.cat([part.labels for part in parts if part.labels is not None])
    return Samples(torch.cat([part.images for part in parts]), codes, labels, first.class_names, first.vqvae_sha256)


def picture_name(index: int) -> str:
    """The file of image `index`; in order by name up to a hundred thousand images."""
    return f"{index:05d}.png"


def save_grid(folder: Path, images: UInt8[Tensor, "n c h w"]) -> None:
    """Write the first images as one picture."""
    shown = images[:GRID_IMAGES].numpy()
    with atomic_file(folder / GRID) as unfinished:
        pictures.grid(shown, math.ceil(len(shown) ** 0.5)).save(unfinished, format="png")


def _codes_file(folder: Path, part: int) -> Path:
    return folder / f"codes-{part:05d}.safetensors"


def _images_file(folder: Path, part: int, suffix: Format) -> Path:
    return folder / f"images-{part:05d}.{suffix}"


def write_part(folder: Path, part: int, first: int, samples: Samples, file_format: Format) -> None:
    """Write images `first`, `first` + 1, ... as the files of a part; its codes come last, and make it complete."""
    _WRITERS[file_format](folder, part, first, samples)
    with atomic_file(_codes_file(folder, part)) as unfinished:
        samples.save_codes(unfinished)


def _write_png(folder: Path, _part: int, first: int, samples: Samples) -> None:
    for index, image in enumerate(samples.to_pil(), first):
        with atomic_file(folder / picture_name(index), durable=False) as unfinished:
            image.save(unfinished, format="png")


def _write_zip(folder: Path, part: int, first: int, samples: Samples) -> None:
    with (
        atomic_file(_images_file(folder, part, "zip")) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive,  # PNG is compressed already
    ):
        for index, image in enumerate(samples.to_pil(), first):
            with archive.open(picture_name(index), "w") as entry:
                image.save(entry, format="png")


def _write_safetensors(folder: Path, part: int, _first: int, samples: Samples) -> None:
    labels = {} if samples.labels is None else {"labels": samples.labels}
    with atomic_file(_images_file(folder, part, "safetensors")) as unfinished:
        save_tensors(unfinished, {"images": samples.images, **labels})


_WRITERS: dict[Format, Callable[[Path, int, int, Samples], None]] = {
    "png": _write_png,
    "zip": _write_zip,
    "safetensors": _write_safetensors,
}


def is_written(folder: Path, part: int, first: int, count: int, file_format: Format) -> bool:
    """Whether a part is complete with at least `count` images."""
    try:
        codes = load_codes(_codes_file(folder, part))
    except CheckpointError:
        return False
    pictures_of_part = (
        [folder / picture_name(first + index) for index in range(count)]
        if file_format == "png"
        else [_images_file(folder, part, file_format)]
    )
    return len(codes) >= count and all(path.is_file() and path.stat().st_size for path in pictures_of_part)


def first_codes(folder: Path, count: int) -> Codes:
    """The codes of up to `count` images from the first on."""
    levels: list[Codes] = []
    part = 0
    while sum(len(codes[0]) for codes in levels) < count and _codes_file(folder, part).is_file():
        levels.append(load_codes(_codes_file(folder, part)).levels)
        part += 1
    return tuple(torch.cat(level)[:count] for level in zip(*levels, strict=True))
