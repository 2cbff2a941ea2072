"""The pictures that a run folder shows while it trains. All processes compute them, the main one writes."""

import numpy as np
import torch

from pipeline.data.codes.shards import StoredCodes
from pipeline.data.image_set import ImageSet
from pipeline.data.pictures import COLUMNS, evenly_spread, interleaved
from pipeline.data.splits import Split
from stage1_vqvae import VQVAE
from stage2_prior import Noise, Prior, SamplingOptions, draw_levels

_SHOWN = 2 * COLUMNS


def reconstructions(network: VQVAE, images: ImageSet, parts: Split) -> np.ndarray:
    """Validation images, each above its reconstruction: uint8 (n, c, h, w) for rows of COLUMNS."""
    originals = images.images[parts.validation[evenly_spread(len(parts.validation), _SHOWN)]]
    batch = torch.from_numpy(originals).to(network.data_variance.device)
    return interleaved(originals, network.decode(network.encode(batch)).cpu().numpy(), columns=COLUMNS)


def samples(prior: Prior, vqvae: VQVAE, validation: StoredCodes) -> np.ndarray:
    """Sixteen images drawn with seed 0, a class after another: uint8 (n, c, h, w).

    Of a finer level: given the coarser codes of validation images, and their classes. Levels still finer are left at
    their mean.
    """
    level, device = len(prior.config.coarser), vqvae.data_variance.device
    spread = evenly_spread(len(validation), _SHOWN)
    indices = torch.arange(len(spread) if level else _SHOWN, device=device)
    given = validation.rows(spread, level)
    coarser = tuple(codes.long().to(device) for codes in given.levels)
    labels = indices % prior.config.num_classes if prior.config.num_classes else None
    if level and labels is not None and given.labels is not None:
        labels = given.labels.to(device)
    steppers = [prior.stepper(len(indices))]
    sampled = draw_levels(steppers, Noise(0, indices), labels, SamplingOptions(), coarser=coarser)
    return vqvae.decode(sampled.codes).cpu().numpy()
