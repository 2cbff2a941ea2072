"""Arrays of images as pictures of a page."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Bool, UInt8
from PIL import Image

from pipeline.evaluation.report.blocks import Picture

_LARGEST = 96  # pixels of the longer side of an image among several; larger ones are shown smaller
_SHOWN = 72  # CSS pixels that an image among several has at most, unless it has more pixels
_GAP = 14  # this part of an image's width lies between two


def opaque(images: UInt8[np.ndarray, "n c h w"]) -> UInt8[np.ndarray, "n h w 4"]:
    """Grey or coloured images with an alpha channel."""
    colours = repeat(images, "n 1 h w -> n h w 3") if images.shape[1] == 1 else rearrange(images, "n c h w -> n h w c")
    return np.concatenate([colours, np.full_like(colours[..., :1], 255)], 3)


def dimmed(images: UInt8[np.ndarray, "n c h w"], kept: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 4"]:
    """Images whose pixels are nearly transparent but for those kept."""
    found = opaque(images)
    found[..., 3] = np.where(kept, 255, 40)
    return found


def strip(
    images: UInt8[np.ndarray, "n c h w"] | UInt8[np.ndarray, "n h w 4"], alt: str, columns: int | None = None
) -> Picture:
    """Images in rows of so many (by default all in one), with a transparent gap between them."""
    coloured = images if images.shape[-1] == 4 and images.shape[1] not in (1, 3) else opaque(images)
    small = _thumbnails(coloured)
    columns = columns or len(small)
    gap = max(1, round(small.shape[2] / _GAP))
    padded = np.pad(small, [(0, -len(small) % columns), (0, gap), (0, gap), (0, 0)])
    canvas = rearrange(padded, "(rows columns) h w rgba -> (rows h) (columns w) rgba", columns=columns)
    return Picture(canvas[:-gap, :-gap], alt, max(1, _SHOWN // small.shape[2]))


def tiles(images: UInt8[np.ndarray, "n c h w"], alts: Sequence[str]) -> list[Picture]:
    """A picture of each image."""
    return [strip(image[None], alt) for image, alt in zip(images, alts, strict=True)]


def _thumbnails(images: UInt8[np.ndarray, "n h w 4"]) -> UInt8[np.ndarray, "n h w 4"]:
    """The images, resized where a side has more pixels than are shown."""
    height, width = images.shape[1:3]
    factor = _LARGEST / max(height, width)
    if factor >= 1:
        return images
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in images])
