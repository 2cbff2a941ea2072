"""Drawing all levels of codes, each conditioned on the coarser ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Stepper
from stage2_prior.sampling.draw import Noise, draw
from stage2_prior.sampling.options import SamplingOptions


class SampledLevels(NamedTuple):
    """Codes of all levels, coarsest first, and the log-probability (n,) in nats of each image under the (guided) logits
    before sharpening: of all codes, and the part of it that belongs to known codes."""

    codes: tuple[Int[Tensor, "n _ _"], ...]
    log_probability: Float[Tensor, "n"]
    known_log_probability: Float[Tensor, "n"]


def draw_levels(
    steppers: Sequence[Stepper],
    noise: Noise,
    labels: Int[Tensor, "n"] | None,
    options: SamplingOptions,
    known: Sequence[Int[Tensor, "n _ _"]] | None = None,
    coarser: Sequence[Int[Tensor, "n _ _"]] = (),
) -> SampledLevels:
    """The code maps of these images of a seed, level by level, each conditioned on those before it.

    `coarser`: levels that exist already, which are returned first; `steppers` draw the levels that follow. `known` has
    all levels, coarsest first, and -1 in place of codes to draw.
    """
    device = noise.image_indices.device
    levels = list(coarser)
    total, known_total = torch.zeros(2, len(noise.image_indices), dtype=torch.float64, device=device).unbind(0)
    with torch.autocast(device.type, enabled=False):  # draw in the precision of the weights
        for stepper in steppers:
            level = len(levels)
            stepper.begin(None if labels is None else labels.to(device), levels)
            drawn = draw(stepper, noise._replace(level=level), options, None if known is None else known[level])
            levels.append(drawn.codes)
            total += drawn.log_probability
            known_total += drawn.known_log_probability
    return SampledLevels(tuple(levels), total, known_total)
