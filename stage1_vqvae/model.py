"""The VQ-VAE: images to codes and back, and its training loss.

This package knows no file, no argument and no process: the loop that trains it adds up its statistics over
micro-batches and processes, and hands them back to `update`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks import BOTTLENECKS, Bottleneck, Reset, Statistics
from stage1_vqvae.bottlenecks.codebook import perplexity
from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.networks import Decoder, Encoder

Codes = tuple[Tensor, ...]  # one integer tensor (n, height, width) a level, coarsest first


class VQVAEError(ValueError):
    """Images or codes that do not fit the model."""


class VQVAEOutput(NamedTuple):
    """One forward pass. `loss` carries the gradient; `metrics` are detached scalars."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    statistics: Statistics | None
    reconstruction: Float[Tensor, "n c h w"]
    codes: Codes


class VQVAE(nn.Module):
    """Encoder, bottleneck and decoder (van den Oord et al. 2017).

    Images are uint8 (n, channels, height, width) on both sides; the normalisation to [-1/2, 1/2] is inside.
    `data_variance` is the global variance of the training pixels on [0, 1]; it scales the reconstruction loss, so
    that a loss of 1 is what predicting one constant grey for all pixels costs.
    """

    data_variance: Tensor

    def __init__(self, config: VQVAEConfig, data_variance: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("data_variance", torch.tensor(data_variance, dtype=torch.float32))
        self.encoder = Encoder(config)
        self.bottleneck: Bottleneck = BOTTLENECKS[config.bottleneck](config)
        self.to_code_dim = nn.Conv2d(config.hidden, self.bottleneck.inputs, 1)
        self.decoder = Decoder(config, self.bottleneck.outputs)

    def forward(self, images: UInt8[Tensor, "n c h w"], progress: float = 0.0) -> VQVAEOutput:
        """The loss of equation 3 with its reconstruction term as MSE / data variance.

        `progress` is step / total steps, for schedules of the bottleneck.
        """
        target = self._normalise(images)
        bottleneck = self.bottleneck(self.to_code_dim(self.encoder(target)), progress)
        reconstruction = self.decoder(bottleneck.quantised).float()
        nmse = F.mse_loss(reconstruction, target.float()) / self.data_variance
        return VQVAEOutput(
            loss=nmse + bottleneck.loss,
            metrics={
                "nmse": nmse.detach(),
                "bottleneck_loss": bottleneck.loss.detach(),
                "perplexity": perplexity(self._histogram(bottleneck.codes)),
                **bottleneck.metrics,
            },
            statistics=bottleneck.statistics,
            reconstruction=reconstruction,
            codes=(bottleneck.codes,),
        )

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Codes:
        """Images to codes: one int64 tensor (n, code_height, code_width) a level, each 0 <= code < num_codes.

        Raises VQVAEError when the images are not uint8 of the model's channels, height and width.
        """
        self._check_images(images)
        return (self.bottleneck.encode(self.to_code_dim(self.encoder(self._normalise(images)))),)

    @torch.no_grad()
    def decode(self, codes: Codes) -> UInt8[Tensor, "n c h w"]:
        """Codes to images. Raises VQVAEError when a code or the number of levels is out of range."""
        self._check_codes(codes)
        reconstruction = self.decoder(self.bottleneck.decode(codes[0].long()))
        return ((reconstruction.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def initialise(self, batches: Sequence[UInt8[Tensor, "n c h w"]], generator: torch.Generator) -> None:
        """Fit the codebook to the untrained encoder's outputs on a few batches of the training size."""
        outputs = [self.to_code_dim(self.encoder(self._normalise(batch))) for batch in batches]
        self.bottleneck.initialise([rearrange(z, "n dim h w -> (n h w) dim") for z in outputs], generator)

    def update(self, statistics: Statistics | None, progress: float, generator: torch.Generator) -> list[Reset]:
        """Once a step, after the optimizer, with the statistics of the whole batch. Returns replaced rows."""
        return self.bottleneck.update(statistics, progress, generator)

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay must leave alone: a learned codebook, whose scale the encoder sets."""
        return list(self.bottleneck.parameters())

    @torch.no_grad()
    def evaluate(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Sums over a batch that add up over a whole split; `summarise` turns them into numbers."""
        output = self(images)
        error = (output.reconstruction - self._normalise(images).float()).double().square().sum()
        histogram = self._histogram(output.codes[0])
        return {"squared_error": error, "pixels": error.new_tensor(images.numel()), "histogram": histogram}

    def _histogram(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "codes"]:
        ones = torch.ones(codes.numel(), dtype=torch.float64, device=codes.device)
        return ones.new_zeros(self.config.num_codes).index_add_(0, codes.flatten(), ones)

    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """NMSE, PSNR (dB) and the use and perplexity of the codes over the split that `sums` were added up over."""
        mse = sums["squared_error"] / sums["pixels"]
        histogram = sums["histogram"]
        return {
            "nmse": float(mse / self.data_variance.to(mse)),
            "psnr": float(-10 * mse.clamp(min=1e-12).log10()),
            "code_use": float((histogram > 0).double().mean()),
            "perplexity": float(perplexity(histogram)),
        }

    def _normalise(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        dtype = self.to_code_dim.weight.dtype
        return images.to(dtype).div(255).sub(0.5)

    def _check_images(self, images: Tensor) -> None:
        expected = (self.config.channels, self.config.height, self.config.width)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise VQVAEError(
                f"this model encodes uint8 images of shape (n, {', '.join(map(str, expected))}); "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )

    def _check_codes(self, codes: Codes) -> None:
        if len(codes) != 1 or codes[0].ndim != 3:
            raise VQVAEError(f"this model decodes 1 level of codes (n, height, width); got {[c.shape for c in codes]}")
        if codes[0].numel() and not 0 <= int(codes[0].min()) <= int(codes[0].max()) < self.config.num_codes:
            raise VQVAEError(
                f"codes must lie in [0, {self.config.num_codes}); got {int(codes[0].min())} to {int(codes[0].max())}"
            )
