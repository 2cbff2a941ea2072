"""Training a VQ-VAE: its loss, metrics and evaluation, as the training loop takes them.

The loop adds up statistics and sums over micro-batches and processes, and hands them back to `update` and `summarise`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks import Bottleneck, BottleneckOutput, Reset, Statistics
from stage1_vqvae.bottlenecks.base import full_precision
from stage1_vqvae.bottlenecks.codebook import perplexity
from stage1_vqvae.losses import Likelihood
from stage1_vqvae.model import VQVAE, VQVAEOutput
from stage1_vqvae.noise import add_noise, add_own_noise, image_noise
from stage1_vqvae.sharp import SharpLosses, SharpOutput


class VQVAETaskOutput(NamedTuple):
    """One training pass. `loss` carries the gradient; `metrics` are detached scalars; `statistics` are for `update`."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    statistics: tuple[Statistics, ...]


class Summary(NamedTuple):
    """What a network reaches over a split: `values` of the whole, and those of each level's codes, coarsest first."""

    values: dict[str, float]
    levels: tuple[dict[str, float], ...]


class VQVAETask(nn.Module):
    """A VQ-VAE with what its training needs besides: the losses and, of a sharp one, the discriminator and features.

    The state_dict of `network` is the result; `sharp` is discarded after training. `codebooks_given`: `initialise`
    leaves the codebooks alone, since they are those of a trained network.
    """

    codebooks_given = False

    def __init__(self, network: VQVAE) -> None:
        super().__init__()
        self.network, config = network, network.config
        self.sharp = SharpLosses(config, config) if config.objective == "sharp" else None

    def forward(self, images: UInt8[Tensor, "n c h w"], progress: float = 0.0) -> VQVAETaskOutput:
        """Reconstruction loss, the bottlenecks' terms (equation 3) and, in training mode, the losses of `sharp`.

        With `denoise` the encoder sees noisy images, and the target is the clean ones. `progress` is step / total
        steps, for schedules. With several levels, names of a level's metrics end in its number: "perplexity/0".
        """
        network = self.network
        output: VQVAEOutput = network(add_noise(images, network.config.denoise), progress)
        reconstruction, target = output.reconstruction, network.normalise(images).float()
        nmse = F.mse_loss(reconstruction, target) / network.data_variance
        bottleneck_loss = torch.stack([level.loss for level in output.levels]).sum()
        loss = (nmse if network.likelihood is None else network.likelihood(reconstruction, target)) + bottleneck_loss
        metrics = {"nmse": nmse.detach(), "bottleneck_loss": bottleneck_loss.detach()}
        for level, own in enumerate(output.levels):
            suffix = f"/{level}" if len(output.levels) > 1 else ""
            metrics |= {f"{name}{suffix}": value for name, value in _level_metrics(own).items()}
        if self.sharp is not None and self.training:
            sharp: SharpOutput = self.sharp(reconstruction, target, network.data_variance, progress)
            loss, metrics = loss + sharp.loss, metrics | sharp.metrics
        statistics = tuple(level.statistics for level in output.levels if level.statistics is not None)
        return VQVAETaskOutput(loss, metrics, statistics)

    @torch.no_grad()
    def initialise(self, batches: Sequence[UInt8[Tensor, "n c h w"]], generator: torch.Generator) -> None:
        """Fit the codebooks to the untrained encoder's outputs on a few batches of the training size, then features."""
        network = self.network
        if not self.codebooks_given:
            noisy = [add_noise(batch, network.config.denoise, generator) for batch in batches]
            network.levels.initialise([network.encoder(network.normalise(batch)) for batch in noisy], generator)
        if self.sharp is not None:
            self.sharp.initialise([network.normalise(batch) for batch in batches], generator)

    def update(self, statistics: Sequence[Statistics], progress: float, generator: torch.Generator) -> list[Reset]:
        """Once per step, after the optimizer, with the statistics of the whole batch. Returns replaced rows."""
        if not self.network.config.is_discrete:
            return []
        levels = zip(self.network.levels.in_order(), statistics, strict=True)
        return [reset for bottleneck, own in levels for reset in bottleneck.update(own, progress, generator)]

    @property
    def no_weight_decay(self) -> list[nn.Parameter]:
        """Learned codebooks, whose scale follows the encoder's, and the scale of a likelihood."""
        likelihood = self.network.likelihood
        scales = [] if likelihood is None else list(likelihood.parameters())
        return [*self.network.levels.bottlenecks.parameters(), *scales]

    @property
    def updated(self) -> list[Tensor]:
        """The tensors that `update` may change: all state of the bottlenecks."""
        bottlenecks = self.network.levels.bottlenecks
        return [*bottlenecks.buffers(), *bottlenecks.parameters()]

    @property
    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained against all others; none without a discriminator."""
        discriminator = None if self.sharp is None else self.sharp.discriminator
        return [] if discriminator is None else list(discriminator.parameters())

    @property
    def discriminator_rate(self) -> float:
        """The learning rate of the discriminator, over that of all else."""
        return self.network.config.discriminator_rate

    @property
    def selection_metric(self) -> str | None:
        """The value of a Summary whose lowest selects the weights to keep; None to keep the latest."""
        return None if self.network.config.keeps_latest else "nmse"

    @torch.no_grad()
    def evaluate(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Sums over a batch, in evaluation mode, that add up over a whole split, for `summarise`.

        With `denoise` each image has noise of its own, always the same, and errors are those from the clean image.
        """
        network, target = self.network, self.network.normalise(images)
        seen = add_own_noise(images, network.config.denoise)
        measures = network.levels.measure(network.encoder(network.normalise(seen)))
        error = (network.decoder(measures.decoder_input).float() - target.float()).double().square().sum()
        sums = {"squared_error": error, "images": error.new_tensor(images.shape[0])}
        for level, own in enumerate(measures.levels):
            sums |= {_sum_key(level, name): value for name, value in own.items()}
        if network.likelihood is not None:
            sums["pixel_nats"] = self._pixel_nats(images, seen, network.likelihood)
        return sums

    def _pixel_nats(
        self, images: UInt8[Tensor, "n c h w"], seen: UInt8[Tensor, "n c h w"], likelihood: Likelihood
    ) -> Float[Tensor, ""]:
        """-ln P(images | a sample of the posterior given what is `seen` of them), in full precision, as bfloat16 moves
        pixels by a grey level."""
        network = self.network
        shape = (network.levels.code_dim, *network.config.grids[0])
        with full_precision(images.device):
            noise = image_noise(seen, shape).to(network.data_variance)
            decoder_input = network.levels.sample(network.encoder(network.normalise(seen)), noise)
            return likelihood.nats(network.decoder(decoder_input).double(), images).sum()

    def summarise(self, sums: Mapping[str, Tensor]) -> Summary:
        """NMSE, PSNR (dB) and bits/dim over the split that `sums` were added up over; usage and cost of each level.

        `bits_per_image` is the cost of a level's codes: under N(0, I) or, of integers, with all equally probable.
        `bits_per_dim` adds the cost of the pixels given the codes: an upper bound on -log2 P(image) per value.
        """
        config = self.network.config
        levels = tuple(
            self._summarise_level(level, bottleneck, sums)
            for level, bottleneck in enumerate(self.network.levels.in_order())
        )
        pixels = sums["images"] * config.values
        mse = sums["squared_error"] / pixels
        values = {
            "nmse": float(mse / self.network.data_variance.to(mse)),
            "psnr": float(-10 * mse.clamp(min=1e-12).log10()),
        }
        bits = [level["bits_per_image"] for level in levels if "bits_per_image" in level]
        if bits and "pixel_nats" in sums:
            pixel_bits = float(sums["pixel_nats"] / pixels) / math.log(2)
            values["bits_per_dim"] = pixel_bits + sum(bits) / config.values
        return Summary(values, levels)

    def _summarise_level(self, level: int, bottleneck: Bottleneck, sums: Mapping[str, Tensor]) -> dict[str, float]:
        config = self.network.config
        summary = bottleneck.summarise({name: sums[_sum_key(level, name)] for name in bottleneck.sum_names})
        if config.is_discrete:
            rows, columns = config.grids[level]
            summary["bits_per_image"] = rows * columns * math.log2(config.num_codes)
        return summary


def _level_metrics(output: BottleneckOutput) -> dict[str, Tensor]:
    metrics = dict(output.metrics)
    if output.statistics is not None:
        metrics["perplexity"] = perplexity(output.statistics.sums[:, -1].double())
    return metrics


def _sum_key(level: int, name: str) -> str:
    """Where a level's sum is in the flat dictionary that the loop reduces over processes."""
    return f"level {level}: {name}"
