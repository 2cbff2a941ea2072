"""Training a decoder further while what codes mean stays as it is: encoder, bottlenecks and levels are frozen."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks import Reset, Statistics
from stage1_vqvae.bottlenecks.base import full_precision
from stage1_vqvae.model import VQVAE
from stage1_vqvae.objective import ObjectiveConfig
from stage1_vqvae.sharp import SharpLosses, SharpOutput
from stage1_vqvae.task import Summary, VQVAETaskOutput


class DecoderPart(nn.Module):
    """The part of a VQ-VAE that turns codes into images; its state_dict is `VQVAE.decoder_tensors`, by the same names.

    The modules are those of the VQ-VAE itself, not copies: what is loaded or trained here is changed there.
    """

    def __init__(self, vqvae: VQVAE) -> None:
        super().__init__()
        self.decoder = vqvae.decoder
        self.likelihood = vqvae.likelihood


class DecoderTask(nn.Module):
    """The decoder of a trained VQ-VAE, with the losses that make it sharp.

    The state_dict of `network` is the result; `sharp` is discarded after training. The gradients of `vqvae`, which is
    on the device already, are switched on for its decoder and off for all else.
    """

    def __init__(self, vqvae: VQVAE, objective: ObjectiveConfig) -> None:
        super().__init__()
        vqvae.requires_grad_(False)
        self.network = DecoderPart(vqvae).requires_grad_(True)
        self.sharp = SharpLosses(vqvae.config, objective)
        # In a tuple torch does not count it among the parts of this module: optimizer, average, processes and
        # checkpoints see the decoder alone.
        self._whole = (vqvae,)

    @property
    def vqvae(self) -> VQVAE:
        """The whole VQ-VAE, with the decoder as it is now."""
        return self._whole[0]

    def forward(self, images: UInt8[Tensor, "n c h w"], progress: float = 0.0) -> VQVAETaskOutput:
        """The squared error over the data's variance and, in training mode, the losses of `sharp`.

        A likelihood's scale is fitted to the errors as they are; the decoder feels it where their gradients are clipped
        together, and nowhere else. `progress` is
        step / total steps.
        """
        vqvae, network = self.vqvae, self.network
        target = vqvae.normalise(images).float()
        reconstruction = network.decoder(self._decoder_input(images)).float()
        nmse = F.mse_loss(reconstruction, target) / vqvae.data_variance
        loss, metrics = nmse, {"nmse": nmse.detach()}
        if network.likelihood is not None:
            loss = loss + network.likelihood(reconstruction.detach(), target)
        if self.training:
            sharp: SharpOutput = self.sharp(reconstruction, target, vqvae.data_variance, progress)
            loss, metrics = loss + sharp.loss, metrics | sharp.metrics
        return VQVAETaskOutput(loss, metrics, ())

    @torch.no_grad()
    def _decoder_input(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n dim rows columns"]:
        """What the decoder will be given: codes as `encode` makes them; while a continuous bottleneck is trained, a
        sample of their posterior, since new codes are drawn from a distribution too."""
        vqvae = self.vqvae
        with full_precision(images.device):
            if vqvae.config.is_discrete or not self.training:
                return vqvae.levels.decode(vqvae.encode(images))
            shape = (len(images), vqvae.levels.code_dim, *vqvae.config.grids[0])
            noise = torch.randn(shape, device=images.device, dtype=vqvae.data_variance.dtype)
            return vqvae.levels.sample(vqvae.encoder(vqvae.normalise(images)), noise)

    @torch.no_grad()
    def initialise(self, batches: Sequence[UInt8[Tensor, "n c h w"]], generator: torch.Generator) -> None:
        """Learn what features are learned from images."""
        self.sharp.initialise([self.vqvae.normalise(batch) for batch in batches], generator)

    def update(self, statistics: Sequence[Statistics], progress: float, generator: torch.Generator) -> list[Reset]:
        """Nothing: a decoder has no codebook."""
        return []

    @property
    def no_weight_decay(self) -> list[nn.Parameter]:
        """The scale of a likelihood."""
        return [] if self.network.likelihood is None else list(self.network.likelihood.parameters())

    @property
    def updated(self) -> list[Tensor]:
        """None: `update` changes nothing."""
        return []

    @property
    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained against all others; none without a discriminator."""
        discriminator = self.sharp.discriminator
        return [] if discriminator is None else list(discriminator.parameters())

    @property
    def discriminator_rate(self) -> float:
        """The learning rate of the discriminator, over that of all else."""
        return self.sharp.objective.discriminator_rate

    @property
    def selection_metric(self) -> None:
        """The latest weights are kept: of a sharp training the least squared error is not the best model."""

    @torch.no_grad()
    def evaluate(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Sums over a batch, in evaluation mode, that add up over a whole split, for `summarise`."""
        reconstruction = self.network.decoder(self._decoder_input(images)).float()
        error = (reconstruction - self.vqvae.normalise(images).float()).double().square().sum()
        return {"squared_error": error, "images": error.new_tensor(images.shape[0])}

    def summarise(self, sums: Mapping[str, Tensor]) -> Summary:
        """NMSE and PSNR (dB) over the split that `sums` were added up over."""
        mse = sums["squared_error"] / (sums["images"] * self.vqvae.config.values)
        nmse, psnr = mse / self.vqvae.data_variance.to(mse), -10 * mse.clamp(min=1e-12).log10()
        return Summary({"nmse": float(nmse), "psnr": float(psnr)}, ())
