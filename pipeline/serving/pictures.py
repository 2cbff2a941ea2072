"""What the page shows: images in rows, and where an image surprises."""

import base64
import io

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image

from pipeline.data import pixels

_SHOWN = 720  # pixels that a picture is about wide, where that enlarges images by a whole number
_LARGEST = 320  # pixels of an image in it at most, unless it has more itself
_GAP = 2  # pixels of an image between two of them, at most

# Black over red and yellow to white, as hot iron glows.
_HEAT = np.array([[0, 0, 0], [150, 0, 20], [240, 90, 0], [255, 215, 60], [255, 255, 255]], np.float64)


def sheet(images: UInt8[np.ndarray, "n h w 4"], columns: int) -> Image.Image:
    """Images in rows, each pixel enlarged to a square, with a transparent gap between them."""
    columns = min(columns, len(images))
    height, width = images.shape[1:3]
    gap = max(1, min(_GAP, width // 12))
    padded = np.pad(images, [(0, -len(images) % columns), (0, gap), (0, gap), (0, 0)])
    canvas = rearrange(padded, "(rows columns) h w rgba -> (rows h) (columns w) rgba", columns=columns)[:-gap, :-gap]
    factor = max(1, min(_SHOWN // canvas.shape[1], _LARGEST // max(height, width)))
    return Image.fromarray(canvas.repeat(factor, axis=0).repeat(factor, axis=1))


def heat(bits: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "1 h w 4"]:
    """Bits at each pixel as colours, black for none and white for the most."""
    part = bits / max(float(bits.max(initial=0)), 1e-9) * (len(_HEAT) - 1)
    colours = np.stack([np.interp(part, range(len(_HEAT)), band) for band in _HEAT.T], 2).round().astype(np.uint8)
    return np.concatenate([colours, np.full_like(colours[..., :1], 255)], 2)[None]


def data_uri(image: UInt8[np.ndarray, "c h w"]) -> str:
    """An image as a PNG within a page."""
    file = io.BytesIO()
    pixels.to_pil(image).save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
