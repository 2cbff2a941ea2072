"""How maps are drawn: images after so many moments of it, and a film of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import repeat
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from pipeline.data import pixels
from pipeline.errors import UsageError
from pipeline.sampling.inputs import check_codes
from pipeline.sampling.model import Model
from pipeline.storage import atomic_file, check_paths
from stage1_vqvae import Codes

FILM_SUFFIXES = (".gif", ".webp", ".png")
_MOMENTS = 48
_MILLISECONDS, _LAST = 80, 2500  # that a picture stands, and the last one
_FAINT = 0.16  # of the contrast with white, where nothing is drawn yet


class Moment(NamedTuple):
    """Images while they are drawn, and which of their pixels belong to codes that are drawn at the last level begun."""

    images: UInt8[np.ndarray, "n c h w"]
    drawn: Bool[np.ndarray, "n h w"]


def unfinished(model: Model, levels: Codes) -> Moment:
    """Images of maps of which a part of the last level is drawn (-1: not yet).

    A code that is not drawn is decoded as the last drawn one above it, so that what is drawn has its colours; finer
    levels are at their mean.
    """
    *coarser, last = levels
    images = model.decode((*coarser, _continued(last))).numpy()
    return Moment(images, over_pixels((last >= 0).numpy(), images.shape[2:]))


def _continued(codes: Tensor) -> Tensor:
    """The codes, with that above in place of -1; in the first row code 0."""
    rows = [codes[:, 0].clamp(min=0)]
    for row in codes.unbind(1)[1:]:
        rows.append(torch.where(row < 0, rows[-1], row))
    return torch.stack(rows, 1)


def over_pixels(codes: Bool[np.ndarray, "n rows columns"], size: tuple[int, ...]) -> Bool[np.ndarray, "n h w"]:
    """What holds of a code, of the pixels of its patch."""
    rows, columns = size[0] // codes.shape[1], size[1] // codes.shape[2]
    return repeat(codes, "n h w -> n (h rows) (w columns)", rows=rows, columns=columns)


def moments(model: Model, codes: Codes, count: int) -> Iterator[Moment]:
    """Images of these codes after so many moments of being drawn, evenly over all positions of all levels."""
    total = sum(level[0].numel() for level in codes)
    for moment in range(1, count + 1):
        left = round(total * moment / count)
        levels: list[Tensor] = []
        for level in codes:
            if left <= 0 and levels:
                break
            drawn = torch.arange(level[0].numel()).reshape(level.shape[1:]) < left
            levels.append(level.where(drawn, -1))
            left -= level[0].numel()
        yield unfinished(model, tuple(levels))


def film(model: Model, codes: Codes, path: str | Path) -> Path:
    """Write a film of images being drawn in parallel, of these codes (n, height, width), a tensor a level.

    A .gif has 256 colours; a .webp, or an animated .png, has all of them, and its last picture is the grid of samples.
    Raises UsageError, also for another kind of file, and where codes are numbers, which are drawn all at once.
    """
    check_paths(path=path)
    target = Path(path)
    check_film(model, target)
    levels = check_codes(codes, model.vqvae.config.model)
    columns = int(np.ceil(len(levels[0]) ** 0.5))
    count = min(_MOMENTS, sum(level[0].numel() for level in levels))
    pictures = [pixels.grid(_faded(moment), columns) for moment in moments(model, levels, count)]
    write_film(target, pictures)
    return target


def check_film(model: Model, path: Path) -> None:
    """Raise UsageError unless this model's drawing can be filmed into a file of this name."""
    if path.suffix.lower() not in FILM_SUFFIXES:
        raise UsageError(f"{path} is no film's name; end it in {', '.join(FILM_SUFFIXES)}")
    if not model.vqvae.config.model.is_discrete:
        raise UsageError(
            f"the codes of {model.run.called} are numbers, which are drawn all at once: there is nothing to film"
        )


def write_film(path: Path, pictures: list[Image.Image]) -> None:
    """Pictures one after another, over and over; the last one stands for longer."""
    durations = [_MILLISECONDS] * (len(pictures) - 1) + [_LAST]
    kind = path.suffix.lower().removeprefix(".")
    lossless = {"lossless": True} if kind == "webp" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        pictures[0].save(
            unfinished,
            format=kind,
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            **lossless,
        )


def _faded(moment: Moment) -> UInt8[np.ndarray, "n c h w"]:
    faint = 255 - _FAINT * (255 - moment.images.astype(np.float64))
    return np.where(moment.drawn[:, None], moment.images, faint.round()).astype(np.uint8)
