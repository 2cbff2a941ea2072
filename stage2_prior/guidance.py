"""Classifier-free guidance: what a class changes, made stronger.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6, for the logits of a prior.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.conditioning import UNKNOWN
from stage2_prior.prior import Prior, PriorError, Stepper


class GuidedStepper:
    """Logits u + scale (c - u): c are those of the class, u those of no class in particular. Both of an image are rows
    of one batch. A scale (the paper's 1 + w) of 1 is the class alone, of 0 no class, above 1 more of what tells the
    class from others.

    Raises PriorError for a prior without classes, or that never learned to do without one.
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
        self.scale, self.both = scale, prior.stepper(2 * n)
        self.size = self.both.size

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start new maps of these classes, beneath these coarser levels."""
        twice = None if labels is None else torch.cat([labels, torch.full_like(labels, UNKNOWN)])
        self.both.begin(twice, [torch.cat([level, level]) for level in coarser])

    def begin_row(self, row: int) -> None:
        """Compute all that the finished rows allow."""
        self.both.begin_row(row)

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The guided logits of a position."""
        conditional, unconditional = self.both.logits(column).chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """The codes of that position are now these."""
        self.both.accept(column, torch.cat([codes, codes]))

    def memory(self) -> int:
        """Bytes of plan and buffers."""
        return self.both.memory()


def stepper_of(prior: Prior, n: int, guidance: float) -> Stepper:
    """What n maps are drawn with. Raises PriorError for guidance that the prior knows nothing of."""
    return prior.stepper(n) if guidance == 1 else GuidedStepper(prior, n, guidance)
