"""What a prior over code maps is, and how one is trained: the class that every prior inherits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PixelCNNConfig


class PriorError(ValueError):
    """Codes, labels or sampling options that do not fit the prior."""


class CodeBatch(NamedTuple):
    """Code maps of one level and, where the prior is conditional, their labels."""

    codes: Int[Tensor, "n h w"]
    labels: Int[Tensor, "n"] | None


class PriorOutput(NamedTuple):
    """One forward pass of training: `loss` in nats a code carries the gradient, `metrics` are detached."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    statistics: tuple[()] = ()


@runtime_checkable
class Stepper(Protocol):
    """What a prior gives the sampler: plan and buffers for n images. Positions are visited in raster order."""

    size: tuple[int, int]  # rows and columns of a map

    def begin(self, labels: Int[Tensor, "n"] | None) -> None:
        """Start new maps of these classes. Raises PriorError where `forward` does."""

    def begin_row(self, row: int) -> None:
        """Compute all that the finished rows allow."""

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The logits of a position of the current row; the next call may overwrite them."""

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """The codes of that position are now these."""

    def memory(self) -> int:
        """Bytes of plan and buffers."""


class Prior(nn.Module, ABC):
    """p(codes | label) as a product over positions in raster order: row by row, left to right.

    `forward` maps codes (n, height, width) to logits (n, num_codes, height, width); the logits at a position depend
    on the codes of earlier positions alone. The tests hold every subclass in this package to that.
    """

    config: PixelCNNConfig

    @abstractmethod
    def forward(self, codes: Int[Tensor, "n h w"], labels: Int[Tensor, "n"] | None) -> Float[Tensor, "n k h w"]:
        """Logits of every position under teacher forcing. Any height and width."""

    @abstractmethod
    def stepper(self, n: int) -> Stepper:
        """The same logits position by position, for drawing n maps at a time."""


def check_labels(num_classes: int, labels: Int[Tensor, "n"] | None) -> None:
    """Raise PriorError when labels are missing on a conditional prior, or given to an unconditional one."""
    if (labels is None) != (num_classes == 0):
        given = "not given" if labels is None else "given"
        raise PriorError(f"this prior has {num_classes} classes; labels were {given}")


def nats(logits: Float[Tensor, "n k h w"], codes: Int[Tensor, "n h w"]) -> Float[Tensor, "codes"]:
    """-ln p of every code, in float32 at least."""
    # In channels-last memory, as the convolutions leave it, this is a view, and softmax runs along the lines.
    rows = rearrange(logits, "n k h w -> (n h w) k")
    return F.cross_entropy(rows.to(torch.promote_types(rows.dtype, torch.float32)), codes.flatten(), reduction="none")


class PriorTask(nn.Module):
    """Maximum likelihood for a prior, in the form that the training loop takes."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, batch: CodeBatch, progress: float = 0.0) -> PriorOutput:
        """Mean negative log-likelihood in nats a code. `progress` is unused: nothing here follows a schedule."""
        logits = self.prior(batch.codes, batch.labels)
        loss = nats(logits, batch.codes).mean()
        return PriorOutput(loss, {"nats": loss.detach()})

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Weight decay may act on every weight."""
        return []

    @property
    def adversaries(self) -> list[nn.Parameter]:
        """No weight is trained against others."""
        return []

    def initialise(self, batches: Sequence[CodeBatch], generator: torch.Generator) -> None:
        """A prior needs no data to start from."""

    def update(self, statistics: Sequence[object], progress: float, generator: torch.Generator) -> list[None]:
        """A prior has no state besides its weights."""
        return []

    @torch.no_grad()
    def evaluate(self, batch: CodeBatch) -> dict[str, Tensor]:
        """Sums over a batch that add up over a whole split."""
        logits = self.prior(batch.codes, batch.labels)
        total = nats(logits, batch.codes).double().sum()
        return {"nats": total, "codes": total.new_tensor(batch.codes.numel())}

    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Nats a code over the split that `sums` were added up over."""
        return {"nats": float(sums["nats"] / sums["codes"])}
