"""A stepper that shows how far its maps are, row by row."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Stepper

# Called before each row with the levels so far, coarsest first: codes (n, height, width) on the CPU, -1 where none is
# drawn yet.
Watch: TypeAlias = Callable[[tuple[Tensor, ...]], None]


class WatchedStepper:
    """Another stepper of n maps, with somebody who watches: what `watch` raises ends the drawing between two rows."""

    def __init__(self, stepper: Stepper, n: int, watch: Watch, device: torch.device) -> None:
        self.stepper, self.watch, self.row = stepper, watch, 0
        self.size = stepper.size
        self.coarser: tuple[Tensor, ...] = ()
        self.codes = torch.full((n, *self.size), -1, dtype=torch.int64, device=device)

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start new maps of these classes, conditioned on these coarser levels."""
        self.coarser = tuple(coarser)
        self.codes.fill_(-1)
        self.stepper.begin(labels, coarser)

    def begin_row(self, row: int) -> None:
        """Show what is drawn, then compute all that depends on the finished rows alone."""
        self.watch(tuple(torch.clone(level).cpu() for level in (*self.coarser, self.codes)))
        self.row = row
        self.stepper.begin_row(row)

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The logits of a position."""
        return self.stepper.logits(column)

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Set the codes of that position."""
        self.codes[:, self.row, column] = codes
        self.stepper.accept(column, codes)

    def memory(self) -> int:
        """Bytes of the folded weights and buffers."""
        return self.stepper.memory() + self.codes.nbytes
