"""Classifier-free guidance: strengthen what a class changes.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, for the logits of a prior.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Prior, PriorError, Stepper
from stage2_prior.priors.conditioning import UNKNOWN


class GuidedStepper:
    """Logits u + scale (c - u): c are those of the class, u those of an unknown class. Both are computed in one batch
    of 2n maps. A scale (the paper's 1 + w) of 1 gives the class alone, 0 no class, and above 1 exaggerates what
    distinguishes the class from others.

    Raises PriorError for a prior without classes, or one that was trained without label dropout.
    """

    def __init__(self, prior: Prior, n: int, scale: float) -> None:
        config = prior.config
        if not config.num_classes:
            raise PriorError(f"guidance {scale} needs classes, and this prior was trained without any")
        if not config.label_dropout:
            raise PriorError(
                f"guidance {scale} needs a prior that can do without a class; this one was trained with "
                "label_dropout 0: train one with --label-dropout 0.1"
            )
        self.scale, self.stepper = scale, prior.stepper(2 * n)
        self.size = self.stepper.size

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start new maps of these classes, conditioned on these coarser levels."""
        twice = None if labels is None else torch.cat([labels, torch.full_like(labels, UNKNOWN)])
        self.stepper.begin(twice, [torch.cat([level, level]) for level in coarser])

    def begin_row(self, row: int) -> None:
        """Compute all that depends on the finished rows alone."""
        self.stepper.begin_row(row)

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The guided logits of a position."""
        conditional, unconditional = self.stepper.logits(column).chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Set the codes of that position."""
        self.stepper.accept(column, torch.cat([codes, codes]))

    def memory(self) -> int:
        """Bytes of the folded weights and buffers."""
        return self.stepper.memory()


def stepper_of(prior: Prior, n: int, guidance: float) -> Stepper:
    """The stepper that draws n maps at this guidance scale. Raises PriorError where the prior does not support it."""
    return prior.stepper(n) if guidance == 1 else GuidedStepper(prior, n, guidance)
