"""The pictures that a run folder shows while it trains. All processes compute them, the main one writes."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from pipeline import images as pictures
from pipeline.codes import CodeMaps
from pipeline.data import ImageSet, Split
from pipeline.drawers import draw_levels
from stage1_vqvae import VQVAE
from stage2_prior import Noise, Prior, Warp

COLUMNS = 8


def reconstructions(model: VQVAE, images: ImageSet, parts: Split) -> np.ndarray:
    """Held-out images, each above its reconstruction: uint8 (n, c, h, w) for rows of COLUMNS."""
    originals = images.images[parts.held_out[_spread(len(parts.held_out))]]
    batch = torch.from_numpy(originals).to(model.data_variance.device)
    return interleaved(originals, model.decode(model.encode(batch)).cpu().numpy(), COLUMNS)


def _spread(n: int) -> Int[np.ndarray, "shown"]:
    """Two rows of images, evenly from all classes: images come folder by folder."""
    return np.linspace(0, n - 1, min(n, 2 * COLUMNS)).astype(np.int64)


def interleaved(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
    """Rows of images from `above`, each followed by the row of those that belong to them; short rows end in white."""
    missing = -len(above) % columns
    white = np.full((missing, *above.shape[1:]), 255, above.dtype)
    rows = [np.concatenate([part, white]).reshape(-1, columns, *above.shape[1:]) for part in (above, below)]
    return np.stack(rows, axis=1).reshape(-1, *above.shape[1:])


def samples(prior: Prior, vqvae: VQVAE, held_out: CodeMaps) -> np.ndarray:
    """Sixteen images drawn with seed 0, a class after another: uint8 (n, c, h, w).

    Of a finer level: beneath the coarser codes of held-out images, and of their classes. Levels still finer are left at
    their mean.
    """
    level, device = len(prior.config.coarser), vqvae.data_variance.device
    spread = _spread(len(held_out))
    indices = torch.arange(len(spread) if level else 2 * COLUMNS, device=device)
    coarser = tuple(codes[spread].long().to(device) for codes in held_out.levels[:level])
    labels = indices % prior.config.num_classes if prior.config.num_classes else None
    if level and labels is not None and held_out.labels is not None:
        labels = held_out.labels[spread].to(device)
    drawn = draw_levels([prior.stepper(len(indices))], Noise(0, indices), labels, Warp(), coarser=coarser)
    return vqvae.decode(drawn.codes).cpu().numpy()


def write(path: Path, images: np.ndarray) -> None:
    """A grid as PNG, enlarged where images are small, under its name only once it is complete."""
    picture = pictures.grid(images, COLUMNS)
    factor = max(1, 64 // images.shape[-1])
    unfinished = path.with_suffix(".unfinished.png")
    picture.resize((picture.width * factor, picture.height * factor), pictures.NEAREST).save(unfinished)
    unfinished.replace(path)
