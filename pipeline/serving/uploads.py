"""Files that somebody gives the page: decoded as those of a training are, within the same bounds."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.data import pixels
from pipeline.data.pixels import BadImageError
from pipeline.errors import DataError
from pipeline.runs.saved import VQVAERun

MOST_MEGABYTES = 64


def read_upload(path: Path, config: VQVAERun) -> UInt8[np.ndarray, "c h w"]:
    """The image as stage 1 of a run takes it: its centre, scaled, in the run's colour. Raises DataError."""
    size = path.stat().st_size
    if size > MOST_MEGABYTES * 2**20:
        raise DataError(f"{path.name} has {size / 2**20:,.0f} MB; the page takes {MOST_MEGABYTES} MB at most")
    model = config.model
    try:
        with pixels.decoders(config.data.max_pixels):
            image = pixels.open_image(path.read_bytes(), 2 * max(model.height, model.width))
            return pixels.fit(image, model.height, model.width, "grey" if model.channels == 1 else "colour")
    except BadImageError as error:
        raise DataError(f"{path.name} cannot be used: {error}; choose a PNG, JPEG, WebP, TIFF or BMP file") from error
