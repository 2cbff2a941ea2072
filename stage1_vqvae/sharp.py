"""The losses of a sharp training besides the squared error, added up: what a decoder is trained with to show edges."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.discriminator import Discriminator, DiscriminatorOutput
from stage1_vqvae.objective import RAMP, ObjectiveConfig
from stage1_vqvae.perceptual import ClassFeatures, FeatureDistance, KMeansFeatures, VggFeatures, focal_frequency


class SharpOutput(NamedTuple):
    """The weighted sum of the losses, and detached metrics of each."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]


class SharpLosses(nn.Module):
    """A discriminator, frozen features, and the weights of what they say. Both are discarded after training."""

    def __init__(self, config: VQVAEConfig, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.objective = objective
        self.discriminator = Discriminator(config) if objective.adversarial_weight else None
        self.features = _features(objective, config.channels)

    def forward(
        self,
        reconstruction: Float[Tensor, "n c h w"],
        target: Float[Tensor, "n c h w"],
        variance: Float[Tensor, ""],
        progress: float,
    ) -> SharpOutput:
        """The losses of reconstructions on [-1/2, 1/2], and of the discriminator; `progress` is step / total steps."""
        terms: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        if self.features is not None:
            distance = self.features(reconstruction, target)
            terms.append(self.objective.feature_weight * distance)
            metrics["feature_distance"] = distance.detach()
        if self.objective.frequency_weight:
            distance = focal_frequency(reconstruction, target) / variance
            terms.append(self.objective.frequency_weight * distance)
            metrics["frequency_distance"] = distance.detach()
        if self.discriminator is not None:
            output = self.discriminator.losses(target, reconstruction)
            terms += self._adversarial(output, progress)
            metrics |= {"discriminator_loss": output.discriminator.detach()}
            metrics |= {"discriminator_accuracy": output.accuracy.detach()}
            metrics |= {"adversarial_ramp": target.new_tensor(self.ramp(progress))}
        return SharpOutput(torch.stack(terms).sum() if terms else target.new_zeros(()), metrics)

    def initialise(self, batches: Sequence[Float[Tensor, "n c h w"]], generator: torch.Generator) -> None:
        """Learn the features that are learned from images alone, on [-1/2, 1/2]; others have been given theirs."""
        if self.objective.features == "kmeans" and self.features is not None:
            self.features.fit(batches, generator)

    def _adversarial(self, output: DiscriminatorOutput, progress: float) -> list[Tensor]:
        objective, ramp = self.objective, self.ramp(progress)
        generator = objective.adversarial_weight * output.generator + objective.feature_matching * output.matching
        return [output.discriminator, ramp * generator]

    def ramp(self, progress: float) -> float:
        """The factor on the adversarial loss: 0 until its start, then rising linearly to 1 over a tenth of training."""
        return min(1.0, max(0.0, (progress - self.objective.adversarial_start) / RAMP))


def _features(objective: ObjectiveConfig, channels: int) -> FeatureDistance | None:
    match objective.features:
        case "none":
            return None
        case "kmeans":
            return KMeansFeatures(channels)
        case "classes":
            return ClassFeatures(channels)
        case "vgg":
            return VggFeatures()
