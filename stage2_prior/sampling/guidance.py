"""Classifier-free guidance: strengthen what a class changes.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, for the logits of a prior. A schedule weakens it
at the first positions, whose codes decide the layout: strong guidance there costs variety.
"""

from collections.abc import Sequence
from math import cos, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Prior, PriorError, Stepper
from stage2_prior.priors.conditioning import UNKNOWN
from stage2_prior.sampling.options import GuidanceSchedule

_COSINE_POWER = 2.5  # from 2.5 to 2.75 in Yu et al. 2024


def growth(schedule: GuidanceSchedule, fraction: float) -> float:
    """How much of the guidance beyond 1 acts where this fraction of a map's positions, from 0 to 1, is behind.

    Linear is that of Muse (Chang et al. 2023, section 2.7), cosine the power-cosine of RAR (Yu et al. 2024, "Randomized
    Autoregressive Visual Generation"), (1 - cos(pi fraction^p)) / 2, which is slower at first and faster later.
    """
    if schedule == "constant":
        return 1.0
    return fraction if schedule == "linear" else (1 - cos(pi * fraction**_COSINE_POWER)) / 2


class GuidedStepper:
    """Logits u + s (c - u): c are those of the class, u those of an unknown class. Both are computed in one batch
    of 2n maps. A scale s (the paper's 1 + w) of 1 gives the class alone, 0 no class, and above 1 exaggerates what
    distinguishes the class from others. With another schedule than "constant" s goes from 1 at a map's first position
    to the scale at its last.

    Raises PriorError for a prior without classes, or one that was trained without label dropout.
    """

    def __init__(self, prior: Prior, n: int, scale: float, schedule: GuidanceSchedule = "constant") -> None:
        config = prior.config
        if not config.num_classes:
            raise PriorError(f"guidance {scale} needs classes, and this prior was trained without any")
        if not config.label_dropout:
            raise PriorError(
                f"guidance {scale} needs a prior that can do without a class; this one was trained with "
                "label_dropout 0: train one with --label-dropout 0.1"
            )
        self.scale, self.schedule, self.stepper = scale, schedule, prior.stepper(2 * n)
        self.size, self.row = self.stepper.size, 0

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start new maps of these classes, conditioned on these coarser levels."""
        twice = None if labels is None else torch.cat([labels, torch.full_like(labels, UNKNOWN)])
        self.stepper.begin(twice, [torch.cat([level, level]) for level in coarser])

    def begin_row(self, row: int) -> None:
        """Compute all that depends on the finished rows alone."""
        self.row = row
        self.stepper.begin_row(row)

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The guided logits of a position."""
        conditional, unconditional = self.stepper.logits(column).chunk(2)
        return torch.lerp(unconditional, conditional, self._scale_at(self.row * self.size[1] + column))

    def _scale_at(self, position: int) -> float:
        last = max(1, self.size[0] * self.size[1] - 1)
        return 1 + (self.scale - 1) * growth(self.schedule, position / last)

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Set the codes of that position."""
        self.stepper.accept(column, torch.cat([codes, codes]))

    def memory(self) -> int:
        """Bytes of the folded weights and buffers."""
        return self.stepper.memory()


def stepper_of(prior: Prior, n: int, guidance: float, schedule: GuidanceSchedule = "constant") -> Stepper:
    """The stepper that draws n maps at this guidance scale. Raises PriorError where the prior does not support it."""
    return prior.stepper(n) if guidance == 1 else GuidedStepper(prior, n, guidance, schedule)
