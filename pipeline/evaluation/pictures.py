"""What an evaluation shows: samples beside what they are nearest to, and where codes cost most."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from pipeline.data import pixels
from pipeline.data.pictures import COLUMNS, interleaved, write_picture
from pipeline.evaluation.measures.memory import Nearest
from pipeline.runs.layout import RunFolder
from pipeline.storage import atomic_file

_PAIRS = 2 * COLUMNS
_SIDE = 256  # pixels, of a map of positions at least
_TEXT = 24  # pixels, of a line


def nearest_pairs(
    samples: UInt8[np.ndarray, "n c h w"], trained: UInt8[np.ndarray, "all c h w"], nearest: Nearest
) -> UInt8[np.ndarray, "m c h w"]:
    """The samples that are nearest to a training image, in rows, each above that image."""
    shown = nearest.distances.argsort(kind="stable")[:_PAIRS]
    return interleaved(samples[shown], trained[nearest.indices[shown]], columns=min(COLUMNS, len(shown)))


def write_nearest(folder: RunFolder, pairs: UInt8[np.ndarray, "m c h w"]) -> None:
    """What `nearest_pairs` gives, as a picture in the run."""
    write_picture(folder.evaluation / "nearest.png", pairs)


def write_nats(folder: RunFolder, levels: Sequence[Float[np.ndarray, "n h w"]]) -> None:
    """Mean nats of the code at each position, a map a level: black for the fewest, white for the most."""
    maps = [_map_of(level.mean(0), f"level {index}: " if len(levels) > 1 else "") for index, level in enumerate(levels)]
    canvas = Image.new("L", (sum(one.width for one in maps), max(one.height for one in maps)), "white")
    left = 0
    for one in maps:
        canvas.paste(one, (left, 0))
        left += one.width
    with atomic_file(folder.evaluation / "nats.png") as unfinished:
        canvas.save(unfinished, format="png")


def _map_of(nats: Float[np.ndarray, "h w"], name: str) -> Image.Image:
    low, high = float(nats.min()), float(nats.max())
    grey = (255 * (nats - low) / max(high - low, 1e-9)).round().astype(np.uint8)
    factor = -(-_SIDE // min(nats.shape))
    picture = Image.new("L", (factor * nats.shape[1] + 2, factor * nats.shape[0] + _TEXT), "white")
    picture.paste(
        Image.fromarray(grey).resize((factor * nats.shape[1], factor * nats.shape[0]), pixels.NEAREST), (0, _TEXT)
    )
    ImageDraw.Draw(picture).text((2, 4), f"{name}{low:.2f} to {high:.2f} nats", "black", ImageFont.load_default(13))
    return picture
