"""The class that every prior over code maps inherits, and the stepper that each of them offers to the sampler."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PriorConfig
from stage2_prior.priors.conditioning import CoarserLevels, Condition


class PriorError(ValueError):
    """Codes, labels or sampling options that do not fit the prior."""


@runtime_checkable
class Stepper(Protocol):
    """Logits one position at a time, for drawing n maps together. Positions are visited in raster order."""

    size: tuple[int, int]  # rows and columns of a map

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start new maps of these classes, conditioned on these coarser levels. Raises PriorError where `forward`
        does."""

    def begin_row(self, row: int) -> None:
        """Compute all that depends on the finished rows alone."""

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The logits of a position of the current row; the next call may overwrite them."""

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Set the codes of that position."""

    def memory(self) -> int:
        """Bytes of the folded weights and buffers."""


class Prior(nn.Module, ABC):
    """p(codes | label, coarser levels) as a product over positions in raster order: row by row, left to right.

    `forward` maps codes (n, height, width) to logits (n, num_codes, height, width). Besides the label and the coarser
    levels, the logits at a position depend on the codes of earlier positions alone; the tests check this for every
    subclass in this package.
    """

    head: nn.Sequential  # features to logits; subclasses make it last

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_codes, config.hidden)
        self.coarser = (
            CoarserLevels(config.coarser, config.hidden, config.condition_blocks, config.dropout)
            if config.coarser
            else None
        )

    def forward(
        self,
        codes: Int[Tensor, "n h w"],
        labels: Int[Tensor, "n"] | None,
        coarser: Sequence[Int[Tensor, "n _ _"]] = (),
    ) -> Float[Tensor, "n k h w"]:
        """Logits of every position under teacher forcing; the label -1 stands for an unknown class.

        The map may be cut to its first rows, whose logits are the same as in the whole map. Raises PriorError when
        labels are missing on a prior with classes or given to one without, or when the number of coarser levels is
        not the configured one.
        """
        _, height, width = codes.shape
        condition = self.condition(labels, coarser, (height, width))
        logits: Tensor = self.head(self.features(self.embed(codes), condition))
        return logits

    @abstractmethod
    def features(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        """The input of the head at each position: a function of the embedded codes of earlier positions."""

    @abstractmethod
    def stepper(self, n: int) -> Stepper:
        """The same logits one position at a time, for drawing n maps together."""

    def condition(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor], size: tuple[int, int]) -> Condition:
        """What conditions all layers besides codes, for the first rows and columns of a map. Raises PriorError."""
        self._check(labels, coarser)
        if self.coarser is None:
            return Condition(labels, None)
        height, width = size
        features = self.coarser(coarser, (self.config.height, self.config.width))
        return Condition(labels, features[:, :, :height, :width])

    def _check(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor]) -> None:
        if (labels is None) != (self.config.num_classes == 0):
            given = "not given" if labels is None else "given"
            raise PriorError(f"this prior has {self.config.num_classes} classes; labels were {given}")
        if len(coarser) != len(self.config.coarser):
            raise PriorError(f"this prior has {len(self.config.coarser)} coarser levels; {len(coarser)} were given")

    def embed(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n c h w"]:
        """Embedded codes. In training those of random codes are set to 0, so that the network does not rely on any."""
        embedded = self.embedding(codes)
        if self.training and self.config.code_dropout:
            kept = torch.rand(embedded.shape[:3], device=embedded.device) >= self.config.code_dropout
            embedded = embedded * kept[..., None]
        # (n, h, w, c) seen as (n, c, h, w): channels-last memory without a copy.
        result: Tensor = embedded.permute(0, 3, 1, 2)
        return result


def head(config: PriorConfig) -> nn.Sequential:
    """Features to logits, at each position independently."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(config.hidden, config.head, 1),
        nn.ReLU(),
        nn.Conv2d(config.head, config.num_codes, 1),
    )


def nats(logits: Float[Tensor, "n k h w"], codes: Int[Tensor, "n h w"]) -> Float[Tensor, "codes"]:
    """-ln p of every code in raster order, in float32 or better."""
    # In channels-last memory, which the convolutions produce, this is a view, and softmax reads contiguous rows.
    rows = rearrange(logits, "n k h w -> (n h w) k")
    return F.cross_entropy(rows.to(torch.promote_types(rows.dtype, torch.float32)), codes.flatten(), reduction="none")


def code_nats(
    prior: Prior, codes: Int[Tensor, "n h w"], labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()
) -> Float[Tensor, "n h w"]:
    """-ln p of every code given all codes before it, in one parallel pass."""
    n, height, _ = codes.shape
    return rearrange(nats(prior(codes, labels, coarser), codes), "(n h w) -> n h w", n=n, h=height)
