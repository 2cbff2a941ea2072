"""The VQ-VAE: images to codes and back, and its training loss.

This package knows no file, no argument and no process: the loop that trains it adds up its statistics over
micro-batches and processes, and hands them back to `update`.
"""

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks import Bottleneck, Reset, Statistics
from stage1_vqvae.bottlenecks.base import BottleneckOutput
from stage1_vqvae.bottlenecks.codebook import perplexity
from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.critic import Critic, heard
from stage1_vqvae.levels import Codes, Levels
from stage1_vqvae.loss import Likelihood, reconstruction_loss
from stage1_vqvae.networks import Decoder, Encoder


class VQVAEError(ValueError):
    """Images or codes that do not fit the model."""


class VQVAEOutput(NamedTuple):
    """One forward pass. `loss` carries the gradient; `metrics` are detached scalars; `statistics` are the levels'."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    statistics: tuple[Statistics, ...]
    reconstruction: Float[Tensor, "n c h w"]
    codes: Codes


class VQVAE(nn.Module):
    """Encoder, levels of codes and decoder (van den Oord et al. 2017).

    Images are uint8 (n, channels, height, width) on both sides; the normalisation to [-1/2, 1/2] is inside.
    `data_variance` is the global variance of the training pixels on [0, 1]; it scales the squared error, so that 1 is
    what predicting one constant grey for all pixels costs.
    """

    data_variance: Tensor

    def __init__(self, config: VQVAEConfig, data_variance: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("data_variance", torch.tensor(data_variance, dtype=torch.float32))
        self.encoder = Encoder(config)
        self.levels = Levels(config)
        self.decoder = Decoder(config, self.levels.outputs)
        self.reconstruction_loss = reconstruction_loss(config, data_variance)
        self.critic = Critic(config) if config.adversarial else None

    def forward(self, images: UInt8[Tensor, "n c h w"], progress: float = 0.0) -> VQVAEOutput:
        """The reconstruction loss, the bottlenecks' own terms (equation 3), and in training the critic's.

        `progress` is step / total steps, for schedules.
        """
        target = self._normalise(images)
        passed = self.levels(self.encoder(target), progress)
        reconstruction, target = self.decoder(passed.decoded).float(), target.float()
        nmse = F.mse_loss(reconstruction, target) / self.data_variance
        own = torch.stack([level.loss for level in passed.levels]).sum()
        loss = self.reconstruction_loss(reconstruction, target, nmse) + own
        metrics = {"nmse": nmse.detach(), "bottleneck_loss": own.detach(), **self._metrics(passed.levels)}
        if self.critic is not None and self.training:
            judged = self.critic.losses(target, reconstruction)
            loss = loss + judged.critic + self.config.adversarial_weight * heard(progress) * judged.decoder
            metrics |= {"critic_loss": judged.critic.detach()}
        statistics = tuple(level.statistics for level in passed.levels if level.statistics is not None)
        return VQVAEOutput(loss, metrics, statistics, reconstruction, tuple(level.codes for level in passed.levels))

    def _metrics(self, levels: tuple[BottleneckOutput, ...]) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for number, level in enumerate(levels):
            own = dict(level.metrics)
            if level.statistics is not None:
                own["perplexity"] = perplexity(level.statistics.sums[:, -1].double())
            metrics |= {self.levels.name(name, number): value for name, value in own.items()}
        return metrics

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Codes:
        """Images to codes: one tensor a level, int64 (n, rows, columns) with 0 <= code < num_codes; of a continuous
        bottleneck one of floats (n, code_dim, rows, columns).

        Raises VQVAEError when the images are not uint8 of the model's channels, height and width.
        """
        self._check_images(images)
        return self.levels.encode(self.encoder(self._normalise(images)))

    @torch.no_grad()
    def decode(self, codes: Codes) -> UInt8[Tensor, "n c h w"]:
        """Codes to images. Of several levels the finest may be left out; they stand at their mean.

        Raises VQVAEError when a code, a shape or the number of levels does not fit.
        """
        self._check_codes(codes)
        dtype = self.data_variance.dtype if not self.config.is_discrete else torch.int64
        reconstruction = self.decoder(self.levels.decode(tuple(level.to(dtype) for level in codes)))
        return ((reconstruction.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def initialise(self, batches: Sequence[UInt8[Tensor, "n c h w"]], generator: torch.Generator) -> None:
        """Fit the codebooks to the untrained encoder's outputs on a few batches of the training size."""
        self.levels.initialise([self.encoder(self._normalise(batch)) for batch in batches], generator)

    def update(self, statistics: Sequence[Statistics], progress: float, generator: torch.Generator) -> list[Reset]:
        """Once a step, after the optimizer, with the statistics of the whole batch. Returns replaced rows."""
        if not self.config.is_discrete:
            return []
        levels = zip(self.levels.bottlenecks, statistics, strict=True)
        return [reset for level, own in levels for reset in cast(Bottleneck, level).update(own, progress, generator)]

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay must leave alone: learned codebooks, whose scale the encoder sets; scales."""
        return [*self.levels.bottlenecks.parameters(), *self.reconstruction_loss.parameters()]

    @property
    def adversaries(self) -> list[nn.Parameter]:
        """Parameters that are trained against the others."""
        return [] if self.critic is None else list(self.critic.parameters())

    @property
    def kept_by(self) -> str | None:
        """The held-out value by which the best weights are kept; None for the latest."""
        return None if self.config.keeps_latest else "nmse"

    @torch.no_grad()
    def evaluate(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Sums over a batch that add up over a whole split; `summarise` turns them into numbers."""
        target = self._normalise(images)
        features = self.encoder(target)
        decoded, sums = self.levels.measure(features)
        error = (self.decoder(decoded).float() - target.float()).double().square().sum()
        sums |= {"squared_error": error, "images": error.new_tensor(images.shape[0])}
        if isinstance(self.reconstruction_loss, Likelihood):
            sums["pixel_nats"] = self._pixel_nats(images, self.reconstruction_loss)
        return sums

    @torch.no_grad()
    def pixel_nats(self, images: UInt8[Tensor, "n c h w"], codes: Codes) -> Float[Tensor, "n"] | None:
        """-ln P(image | its codes) in nats, where the decoder is a likelihood."""
        if not isinstance(self.reconstruction_loss, Likelihood):
            return None
        reconstruction = self.decoder(self.levels.decode(codes))
        return self.reconstruction_loss.nats(reconstruction.double(), images).sum((1, 2, 3))

    def _pixel_nats(self, images: UInt8[Tensor, "n c h w"], likelihood: Likelihood) -> Float[Tensor, ""]:
        """What pixels cost given a draw of the codes; in full precision, as bfloat16 moves them by a grey value."""
        shape = (self.levels.code_dim, *self.config.grids[0])
        with torch.autocast(images.device.type, enabled=False):
            noise = _noise_of(images, shape).to(self.data_variance)
            drawn = self.decoder(self.levels.sample(self.encoder(self._normalise(images)), noise))
            return likelihood.nats(drawn.double(), images).sum()

    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """NMSE, PSNR (dB), the health of the codes over the split that `sums` were added up over, and bits.

        `bits_an_image` is what codes cost under N(0, I) or, where they are integers, each as probable as any other;
        `bits_per_dim` adds the pixels under a likelihood: a bound on what an image costs.
        """
        values = sums["images"] * self.config.values
        mse = sums["squared_error"] / values
        result = {
            "nmse": float(mse / self.data_variance.to(mse)),
            "psnr": float(-10 * mse.clamp(min=1e-12).log10()),
            **self.levels.summarise(sums),
        }
        if self.config.is_discrete:
            result |= {self.levels.name("bits_an_image", i): bits for i, bits in enumerate(self.code_bits)}
        bits = [value for name, value in result.items() if name.startswith("bits_an_image")]
        if "pixel_nats" in sums and bits:
            pixels = float(sums["pixel_nats"] / values) / math.log(2)
            result["bits_per_dim"] = pixels + sum(bits) / self.config.values
        return result

    @property
    def code_bits(self) -> tuple[float, ...]:
        """Bits of an image's codes at each level, each code as probable as any other."""
        return tuple(rows * columns * math.log2(self.config.num_codes) for rows, columns in self.config.grids)

    def _normalise(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return images.to(self.data_variance.dtype).div(255).sub(0.5)

    def _check_images(self, images: Tensor) -> None:
        expected = (self.config.channels, self.config.height, self.config.width)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise VQVAEError(
                f"this model encodes uint8 images of shape (n, {', '.join(map(str, expected))}); "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )

    def _check_codes(self, codes: Codes) -> None:
        grids, first = self.config.grids, () if self.config.is_discrete else (self.config.code_dim,)
        expected = [(*first, *grid) for grid in grids[: max(1, len(codes))]]
        if [tuple(level.shape[1:]) for level in codes] != expected:
            levels = " and ".join(f"(n, {', '.join(map(str, shape))})" for shape in expected)
            most = f", or up to {len(grids)} levels" if len(grids) > len(codes) else ""
            raise VQVAEError(f"this model decodes codes {levels}{most}; got {[tuple(level.shape) for level in codes]}")
        bounds = [(int(level.min()), int(level.max())) for level in codes if level.numel() and self.config.is_discrete]
        if len({len(level) for level in codes}) > 1:
            raise VQVAEError(
                f"the levels are of {' and '.join(str(len(level)) for level in codes)} images; give as many"
            )
        if any(not 0 <= least <= most < self.config.num_codes for least, most in bounds):
            least, greatest = min(bound[0] for bound in bounds), max(bound[1] for bound in bounds)
            raise VQVAEError(f"codes must lie in [0, {self.config.num_codes}); got {least} to {greatest}")


def _noise_of(images: UInt8[Tensor, "n c h w"], shape: tuple[int, ...]) -> Float[Tensor, "n ..."]:
    """N(0, 1) as a function of each image alone, whatever its batch and process."""
    seeds = [zlib.crc32(image.tobytes()) for image in images.cpu().numpy()]
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise) if noise else torch.zeros(0, *shape)
