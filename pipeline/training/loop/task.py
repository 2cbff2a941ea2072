"""What a stage gives the training loop, and where its batches come from. The loop knows no more of either."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from pipeline.randomness import BatchIndices


class Statistics(Protocol):
    """What a step reports for `update`, a NamedTuple: `sums` are added up, `samples` concatenated, over the batch."""

    @property
    def sums(self) -> Tensor: ...
    @property
    def samples(self) -> Tensor: ...
    def _replace(self, *, sums: Tensor, samples: Tensor) -> Self: ...


class Reset(Protocol):
    """Rows of a parameter that were replaced: the optimizer's moments for them are void."""

    @property
    def parameter(self) -> nn.Parameter: ...
    @property
    def rows(self) -> Tensor: ...


class Summary(Protocol):
    """The values of an evaluation by name: of the network as a whole, and of each level of its codes."""

    @property
    def values(self) -> Mapping[str, float]: ...
    @property
    def levels(self) -> Sequence[Mapping[str, float]]: ...


Batch = TypeVar("Batch")
ReportedT = TypeVar("ReportedT", bound=Statistics)
Reported_co = TypeVar("Reported_co", bound=Statistics, covariant=True)
Batch_contra = TypeVar("Batch_contra", contravariant=True)
Batch_co = TypeVar("Batch_co", covariant=True)


class TaskOutput(Protocol[Reported_co]):
    """One forward pass: `loss` carries the gradient, `metrics` are detached; as many `statistics` in every step."""

    @property
    def loss(self) -> Tensor: ...
    @property
    def metrics(self) -> Mapping[str, Tensor]: ...
    @property
    def statistics(self) -> Sequence[Reported_co]: ...


class Task(Protocol[Batch_contra, ReportedT]):
    """A network with its loss, its updates and its evaluation; also an nn.Module, whose `forward` runs under DDP.

    `network` alone is published. `progress` is step / total steps. The lowest value of `selection_metric` is the best;
    where it is None the latest weights are kept. `updated` are the tensors that `update` changes. The learning rate of
    `discriminator_parameters` is `discriminator_rate` times that of all others.
    """

    @property
    def network(self) -> nn.Module: ...
    @property
    def selection_metric(self) -> str | None: ...
    @property
    def no_weight_decay(self) -> Sequence[nn.Parameter]: ...
    @property
    def updated(self) -> Sequence[Tensor]: ...
    @property
    def discriminator_parameters(self) -> Sequence[nn.Parameter]: ...
    @property
    def discriminator_rate(self) -> float: ...
    def forward(self, batch: Batch_contra, progress: float) -> TaskOutput[ReportedT]: ...
    def initialise(self, batches: Sequence[Batch_contra], generator: torch.Generator) -> None: ...
    def update(
        self, statistics: Sequence[ReportedT], progress: float, generator: torch.Generator
    ) -> Sequence[Reset]: ...
    def evaluate(self, batch: Batch_contra) -> dict[str, Tensor]: ...
    def summarise(self, sums: dict[str, Tensor]) -> Summary: ...


class TrainingData(Protocol[Batch_co]):
    """Where batches come from. A batch is a function of its indices."""

    @property
    def population(self) -> int:
        """Items that are trained on."""

    def training_batch(self, batch: BatchIndices, device: torch.device) -> Batch_co:
        """The items of these indices."""

    def validation_batches(self, rank: int, world_size: int, device: torch.device) -> Iterator[Batch_co]:
        """The part of the validation items that this process evaluates; at least one batch, if an empty one."""
