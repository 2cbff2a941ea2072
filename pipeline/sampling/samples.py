"""Generated images: in memory, and as the files of a folder that grows a part at a time."""

import io
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from pipeline.config.sampling import GRID_IMAGES, Format
from pipeline.data import pixels
from pipeline.data.codes.maps import CodeMaps, join_levels, load_codes, save_codes
from pipeline.errors import UsageError
from pipeline.storage import atomic_file, atomic_folder, naming, remove_unfinished, save_tensors, sync
from stage1_vqvae import Codes

GRID = "grid.png"
CODES = "codes"
_SYNCED_AT_A_TIME = 8
_FILE_BYTES = 2**13  # of a file besides its content: PNG's own, its name, a last block that is not full
_ZIPPED_BYTES = 256  # of a picture in a .zip besides its pixels


@dataclass(frozen=True, repr=False)
class Samples:
    """Generated images, uint8 (n, channels, height, width), their codes, and labels (n,) where there are classes."""

    images: UInt8[Tensor, "n c h w"]
    codes: Codes
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...] = ()
    codes_sha256: str = ""  # of the tensors that decide what codes mean

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        grids = " + ".join(" x ".join(map(str, level.shape[1:])) for level in self.codes)
        classes = "without classes" if self.labels is None else f"of {len(self.class_names)} classes"
        return f"Samples({len(self):,} images of {size}, codes of {grids}, {classes})"

    def to_pil(self) -> list[Image.Image]:
        """The images as PIL images."""
        return [pixels.to_pil(image) for image in self.images.numpy()]

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one, in a square by default."""
        return pixels.grid(self.images.numpy(), columns or math.ceil(len(self) ** 0.5))

    def save(self, folder: str | Path) -> Path:
        """Write 000000.png ..., grid.png (the first 64) and codes.safetensors into a new folder.

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
        """Write the code maps and labels, with the hash of what decides their meaning."""
        save_codes(path, CodeMaps(self.codes, self.labels), {"codes_sha256": self.codes_sha256})


def join(parts: Sequence[Samples]) -> Samples:
    """Samples of one model, one after another."""
    first = parts[0]
    codes = join_levels(part.codes for part in parts)
    labels = None if first.labels is None else torch.cat([part.labels for part in parts if part.labels is not None])
    return Samples(torch.cat([part.images for part in parts]), codes, labels, first.class_names, first.codes_sha256)


def picture_name(index: int) -> str:
    """The file of image `index`."""
    return f"{index:06d}.png"


def save_grid(folder: Path, images: UInt8[Tensor, "n c h w"]) -> None:
    """Write the first images as one picture."""
    shown = images[:GRID_IMAGES].numpy()
    with atomic_file(folder / GRID) as unfinished:
        pixels.grid(shown, math.ceil(len(shown) ** 0.5)).save(unfinished, format="png")


def codes_file(folder: Path, part: range) -> Path:
    """The codes of a part."""
    return folder / CODES / f"{part.start:06d}-{part.stop - 1:06d}.safetensors"


def _images_file(folder: Path, part: range, file_format: Format) -> Path:
    return folder / f"images-{part.start:06d}-{part.stop - 1:06d}.{file_format}"


def write_part(folder: Path, part: range, samples: Samples, file_format: Format) -> None:
    """Write the images of these indices; their codes come last, and say that the images are there."""
    _WRITERS[file_format](folder, part, samples)
    with atomic_file(codes_file(folder, part)) as unfinished:
        samples.save_codes(unfinished)


def _write_png(folder: Path, part: range, samples: Samples) -> None:
    # Under their own names at once: a part without codes is drawn again.
    paths = [folder / picture_name(index) for index in part]
    for path, image in zip(paths, samples.to_pil(), strict=True):
        with naming(path):
            image.save(path, format="png")
    with ThreadPoolExecutor(_SYNCED_AT_A_TIME) as pool:  # a disk brings several files home in one go
        list(pool.map(sync, paths))
    sync(folder)


def _write_zip(folder: Path, part: range, samples: Samples) -> None:
    with (
        atomic_file(_images_file(folder, part, "zip")) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive,  # PNG is compressed already
    ):
        for index, image in zip(part, samples.to_pil(), strict=True):
            content = io.BytesIO()
            image.save(content, format="png")
            archive.writestr(
                zipfile.ZipInfo(picture_name(index)), content.getvalue()
            )  # of no date: equal runs, equal files


def _write_safetensors(folder: Path, part: range, samples: Samples) -> None:
    labels = {} if samples.labels is None else {"labels": samples.labels}
    with atomic_file(_images_file(folder, part, "safetensors")) as unfinished:
        save_tensors(unfinished, {"images": samples.images, **labels})


_WRITERS: dict[Format, Callable[[Path, range, Samples], None]] = {
    "png": _write_png,
    "zip": _write_zip,
    "safetensors": _write_safetensors,
}


def bytes_on_disk(bytes_per_image: int, file_format: Format) -> int:
    """An upper estimate for an image and its codes, whose pixels may be such that PNG does not compress them."""
    besides: dict[Format, int] = {"png": _FILE_BYTES, "zip": _ZIPPED_BYTES, "safetensors": 0}
    return bytes_per_image + bytes_per_image // 8 + besides[file_format]


def written_parts(folder: Path, file_format: Format) -> list[range]:
    """The indices of the images of each finished part, in order."""
    there = {path.name for path in folder.glob("*")}

    def is_whole(part: range) -> bool:
        if file_format == "png":
            return all(picture_name(index) in there for index in part)
        return _images_file(folder, part, file_format).name in there

    return sorted(filter(is_whole, _coded_parts(folder)), key=lambda part: part.start)


def _coded_parts(folder: Path) -> list[range]:
    names = (re.fullmatch(r"(\d{6,})-(\d{6,})\.safetensors", path.name) for path in (folder / CODES).glob("*"))
    return [range(int(name[1]), int(name[2]) + 1) for name in names if name]


def remove_partial(folder: Path, file_format: Format) -> None:
    """Remove what a command that was killed left behind: files half written, and images whose codes are missing; and
    codes whose images a person has deleted, so that these are drawn again."""
    for there in (folder, folder / CODES):
        remove_unfinished(there)
    whole = written_parts(folder, file_format)
    for part in _coded_parts(folder):
        if part not in whole:
            codes_file(folder, part).unlink()
    for path in folder.glob("images-*"):
        if not (folder / CODES / f"{path.stem.removeprefix('images-')}.safetensors").is_file():
            path.unlink()


def missing_parts(written: Sequence[range], n: int, size: int) -> list[range]:
    """What is missing of images 0 to n - 1, in parts of `size` images at most; finished parts stay as they are.

    >>> missing_parts([range(2, 4)], n=9, size=3)
    [range(0, 2), range(4, 7), range(7, 9)]
    """
    ends = [0, *(part.stop for part in written)]
    starts = [*(part.start for part in written), n]
    gaps = [range(end, min(start, n)) for end, start in zip(ends, starts, strict=True)]
    return [gap[first : first + size] for gap in gaps for first in range(0, len(gap), size)]


def first_codes(folder: Path, parts: Sequence[range], count: int) -> Codes:
    """The codes of up to `count` images, from those of the first parts on."""
    levels: list[Codes] = []
    for part in parts:
        if sum(len(codes[0]) for codes in levels) < count:
            levels.append(load_codes(codes_file(folder, part)).levels)
    return tuple(level[:count] for level in join_levels(levels))
