"""The pictures that a run folder shows while it trains. All processes compute them, the main one writes."""

from pathlib import Path

import numpy as np
import torch

from pipeline import images as pictures
from pipeline.data import ImageSet, Split
from pipeline.drawers import draw_codes
from pipeline.run import PriorRun
from stage1_vqvae import VQVAE
from stage2_prior import Noise, Prior, Warp

COLUMNS = 8


def reconstructions(model: VQVAE, images: ImageSet, parts: Split) -> np.ndarray:
    """Held-out images, each above its reconstruction: uint8 (n, c, h, w) for rows of COLUMNS."""
    originals = images.images[parts.held_out[: 2 * COLUMNS]]
    batch = torch.from_numpy(originals).to(model.data_variance.device)
    return interleaved(originals, model.decode(model.encode(batch)).cpu().numpy(), COLUMNS)


def interleaved(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
    """Rows of images from `above`, each followed by the row of those that belong to them; short rows end in white."""
    missing = -len(above) % columns
    white = np.full((missing, *above.shape[1:]), 255, above.dtype)
    rows = [np.concatenate([part, white]).reshape(-1, columns, *above.shape[1:]) for part in (above, below)]
    return np.stack(rows, axis=1).reshape(-1, *above.shape[1:])


def samples(prior: Prior, config: PriorRun, vqvae: VQVAE) -> np.ndarray:
    """Sixteen images drawn with seed 0, a class after another: uint8 (n, c, h, w)."""
    indices = torch.arange(2 * COLUMNS, device=vqvae.data_variance.device)
    labels = indices % config.model.num_classes if config.model.num_classes else None
    codes = draw_codes(prior.stepper(len(indices)), Noise(0, indices), labels, Warp())
    return vqvae.decode((codes,)).cpu().numpy()


def write(path: Path, images: np.ndarray) -> None:
    """A grid as PNG, enlarged where images are small, under its name only once it is complete."""
    picture = pictures.grid(images, COLUMNS)
    factor = max(1, 64 // images.shape[-1])
    unfinished = path.with_suffix(".unfinished.png")
    picture.resize((picture.width * factor, picture.height * factor), pictures.NEAREST).save(unfinished)
    unfinished.replace(path)
