"""What a prior over code maps is, and how one is trained: the class that every prior inherits."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.conditioning import UNKNOWN, CoarserLevels, Condition
from stage2_prior.config import PriorConfig


class PriorError(ValueError):
    """Codes, labels or sampling options that do not fit the prior."""


class CodeBatch(NamedTuple):
    """Code maps of one level, where the prior is conditional their labels, and the maps of all coarser levels."""

    codes: Int[Tensor, "n h w"]
    labels: Int[Tensor, "n"] | None
    coarser: Sequence[Int[Tensor, "n _ _"]] = ()


class PriorOutput(NamedTuple):
    """One forward pass of training: `loss` in nats a code carries the gradient, `metrics` are detached."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    statistics: tuple[()] = ()


@runtime_checkable
class Stepper(Protocol):
    """What a prior gives the sampler: plan and buffers for n images. Positions are visited in raster order."""

    size: tuple[int, int]  # rows and columns of a map

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start new maps of these classes, beneath these coarser levels. Raises PriorError where `forward` does."""

    def begin_row(self, row: int) -> None:
        """Compute all that the finished rows allow."""

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The logits of a position of the current row; the next call may overwrite them."""

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """The codes of that position are now these."""

    def memory(self) -> int:
        """Bytes of plan and buffers."""


class Prior(nn.Module, ABC):
    """p(codes | label, coarser levels) as a product over positions in raster order: row by row, left to right.

    `forward` maps codes (n, height, width) to logits (n, num_codes, height, width); the logits at a position depend
    on the codes of earlier positions of the level alone, besides the label and the coarser levels. The tests hold every
    subclass in this package to that.
    """

    head: nn.Sequential  # features to logits; made last by subclasses

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
        """Logits of every position under teacher forcing; -1 is the label of an image whose class is not known.

        The map may be cut to its first rows, which have the logits that they have in the whole. Raises PriorError
        when labels are missing on a conditional prior, or given to an unconditional one; and of coarser levels alike.
        """
        _, height, width = codes.shape
        condition = self.condition(labels, coarser, (height, width))
        logits: Tensor = self.head(self.features(self.embed(codes), condition))
        return logits

    @abstractmethod
    def features(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        """What the head reads at each position: a function of the embedded codes of earlier ones."""

    @abstractmethod
    def stepper(self, n: int) -> Stepper:
        """The same logits position by position, for drawing n maps at a time."""

    def condition(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor], size: tuple[int, int]) -> Condition:
        """What all layers may look at besides codes, for the first rows and columns of a map. Raises PriorError."""
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
        """Embedded codes. While training those of random codes are 0: the network learns to do without any of them."""
        embedded = self.embedding(codes)
        if self.training and self.config.code_dropout:
            kept = torch.rand(embedded.shape[:3], device=embedded.device) >= self.config.code_dropout
            embedded = embedded * kept[..., None]
        # (n, h, w, c) seen as (n, c, h, w): channels-last memory without a copy.
        result: Tensor = embedded.permute(0, 3, 1, 2)
        return result


def head(config: PriorConfig) -> nn.Sequential:
    """Features to logits, at each position by itself."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(config.hidden, config.head, 1),
        nn.ReLU(),
        nn.Conv2d(config.head, config.num_codes, 1),
    )


def nats(logits: Float[Tensor, "n k h w"], codes: Int[Tensor, "n h w"]) -> Float[Tensor, "codes"]:
    """-ln p of every code, in float32 at least."""
    # In channels-last memory, as the convolutions leave it, this is a view, and softmax runs along the lines.
    rows = rearrange(logits, "n k h w -> (n h w) k")
    return F.cross_entropy(rows.to(torch.promote_types(rows.dtype, torch.float32)), codes.flatten(), reduction="none")


def code_nats(
    prior: Prior, codes: Int[Tensor, "n h w"], labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()
) -> Float[Tensor, "n h w"]:
    """-ln p of every code given those before it, in one parallel pass."""
    n, height, _ = codes.shape
    return rearrange(nats(prior(codes, labels, coarser), codes), "(n h w) -> n h w", n=n, h=height)


class PriorTask(nn.Module):
    """Maximum likelihood for a prior, in the form that the training loop takes."""

    def __init__(self, prior: Prior, unigram: float | None = None) -> None:
        """`unigram`: the entropy in nats of the held-out codes by frequency alone, for `summarise` to put beside."""
        super().__init__()
        self.prior, self.unigram = prior, unigram

    def forward(self, batch: CodeBatch, progress: float = 0.0) -> PriorOutput:
        """Mean negative log-likelihood in nats a code. `progress` is unused: nothing here follows a schedule."""
        logits = self.prior(batch.codes, self._some_hidden(batch.labels), batch.coarser)
        loss = nats(logits, batch.codes).mean()
        return PriorOutput(loss, {"nats": loss.detach()})

    def _some_hidden(self, labels: Int[Tensor, "n"] | None) -> Int[Tensor, "n"] | None:
        """Labels, in training some of them unknown (Ho & Salimans 2022, "Classifier-Free Guidance", algorithm 1)."""
        if labels is None or not self.training or not self.prior.config.label_dropout:
            return labels
        hidden = torch.rand(labels.shape, device=labels.device) < self.prior.config.label_dropout
        return labels.masked_fill(hidden, UNKNOWN)

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
        logits = self.prior(batch.codes, batch.labels, batch.coarser)
        total = nats(logits, batch.codes).double().sum()
        sizes = {"codes": batch.codes.numel(), "maps": batch.codes.shape[0]}
        return {"nats": total, **{name: total.new_tensor(size) for name, size in sizes.items()}}

    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Nats a code, beside what knowing nothing and what knowing frequencies would cost; bits a map."""
        scale = {"nats_uniform": math.log(self.prior.config.num_codes)}
        scale |= {} if self.unigram is None else {"nats_by_frequency": self.unigram}
        bits = sums["nats"] / sums["maps"] / math.log(2)
        return {"nats": float(sums["nats"] / sums["codes"]), **scale, "bits_an_image": float(bits)}
