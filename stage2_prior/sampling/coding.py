"""Entropy coding of codes: each under its probabilities given all before it, in the order in which they are drawn.

Who encodes and who decodes must compute the same probabilities, bit for bit. So both go position by position with the
same steppers, as drawing does, never through the parallel pass; what differs is where a code comes from.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Stepper

_GRID = 2**10  # steps of a logit; rounding to them costs less than 1e-6 bits a code


@runtime_checkable
class Coder(Protocol):
    """Writes codes that it has, or reads those that it was given as bytes."""

    def code(self, probabilities: Float[Tensor, "n k"], level: int, row: int, column: int) -> Int[Tensor, "n"]:
        """The code of each map at this position."""


@torch.no_grad()
def code_levels(
    steppers: Sequence[Stepper], labels: Int[Tensor, "m"] | None, n: int, coder: Coder
) -> tuple[Int[Tensor, "n _ _"], ...]:
    """The codes of n maps at every level, coarsest first, as `coder` writes or reads them.

    `steppers` are made for m >= n maps, and `labels` are those of m: kernels may add in another order for another
    number of maps, so it stays the same for the last, smaller block.
    """
    levels: list[Int[Tensor, "m _ _"]] = []
    for level, stepper in enumerate(steppers):
        stepper.begin(labels, levels)
        height, width = stepper.size
        codes: Tensor | None = None
        for row in range(height):
            stepper.begin_row(row)
            for column in range(width):
                logits = stepper.logits(column)
                if codes is None:
                    codes = torch.zeros(len(logits), height, width, dtype=torch.int64)
                codes[:n, row, column] = coder.code(probabilities(logits[:n]), level, row, column)
                stepper.accept(column, codes[:, row, column])
        assert codes is not None, "a map has a position"
        levels.append(codes)
    return tuple(codes[:n] for codes in levels)


def probabilities(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """softmax of logits rounded to a grid, so that a last bit that differs elsewhere changes no probability, but where
    a logit lies on the edge between two steps: about once in 10^7 positions for float64 and 512 codes."""
    return ((logits * _GRID).round() / _GRID).softmax(1)
