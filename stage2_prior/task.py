"""Training a prior by maximum likelihood, in the form that the training loop takes."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage2_prior.priors.base import Prior, nats
from stage2_prior.priors.conditioning import UNKNOWN


class CodeBatch(NamedTuple):
    """Code maps of one level, their labels (None for a prior without classes), and the maps of all coarser levels."""

    codes: Int[Tensor, "n h w"]
    labels: Int[Tensor, "n"] | None
    coarser: Sequence[Int[Tensor, "n _ _"]] = ()


class PriorTaskOutput(NamedTuple):
    """One forward pass of training: `loss` in nats per code carries the gradient, `metrics` are detached."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    statistics: tuple[()] = ()


class Summary(NamedTuple):
    """The result of an evaluation: values by name, and by level of codes (empty here: a prior has one level)."""

    values: dict[str, float]
    levels: tuple[dict[str, float], ...] = ()


class PriorTask(nn.Module):
    """Maximum likelihood for one prior, the `network`: the only part that is kept after training."""

    selection_metric = "nats"  # of the values that `summarise` returns; the lowest is the best

    def __init__(self, network: Prior, unigram_nats: float | None = None) -> None:
        """`unigram_nats`: the entropy of the frequencies of the validation codes, for `summarise` to report."""
        super().__init__()
        self.network, self.unigram_nats = network, unigram_nats

    def forward(self, batch: CodeBatch, progress: float = 0.0) -> PriorTaskOutput:
        """Mean negative log-likelihood in nats per code. `progress` is unused: the loss follows no schedule."""
        logits = self.network(batch.codes, self._drop_labels(batch.labels), batch.coarser)
        loss = nats(logits, batch.codes).mean()
        return PriorTaskOutput(loss, {"nats": loss.detach()})

    def _drop_labels(self, labels: Int[Tensor, "n"] | None) -> Int[Tensor, "n"] | None:
        """Labels, in training some of them unknown (Ho & Salimans 2022, "Classifier-Free Guidance", algorithm 1)."""
        if labels is None or not self.training or not self.network.config.label_dropout:
            return labels
        hidden = torch.rand(labels.shape, device=labels.device) < self.network.config.label_dropout
        return labels.masked_fill(hidden, UNKNOWN)

    @property
    def no_weight_decay(self) -> list[nn.Parameter]:
        """None: weight decay may act on every weight."""
        return []

    @property
    def updated(self) -> list[Tensor]:
        """None: `update` changes no tensor."""
        return []

    @property
    def discriminator_parameters(self) -> list[nn.Parameter]:
        """None: there is no discriminator."""
        return []

    @property
    def discriminator_rate(self) -> float:
        """1: all parameters have one learning rate."""
        return 1.0

    def initialise(self, batches: Sequence[CodeBatch], generator: torch.Generator) -> None:
        """Nothing: a prior needs no data to start from."""

    def update(self, statistics: Sequence[tuple[()]], progress: float, generator: torch.Generator) -> tuple[()]:
        """Nothing: a prior has no state besides its weights, and replaces none of them."""
        return ()

    @torch.no_grad()
    def evaluate(self, batch: CodeBatch) -> dict[str, Tensor]:
        """Sums over a batch: `nats`, `codes` and `maps`. Those of all batches of a split add up."""
        logits = self.network(batch.codes, batch.labels, batch.coarser)
        total = nats(logits, batch.codes).double().sum()
        sizes = {"codes": batch.codes.numel(), "maps": batch.codes.shape[0]}
        return {"nats": total, **{name: total.new_tensor(size) for name, size in sizes.items()}}

    def summarise(self, sums: Mapping[str, Tensor]) -> Summary:
        """Nats per code, those of a uniform and (if known) of a unigram model, and bits per image."""
        values = {"nats": float(sums["nats"] / sums["codes"]), "uniform_nats": math.log(self.network.config.num_codes)}
        if self.unigram_nats is not None:
            values["unigram_nats"] = self.unigram_nats
        values["bits_per_image"] = float(sums["nats"] / sums["maps"] / math.log(2))
        return Summary(values)
