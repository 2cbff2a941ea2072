"""The VQ-VAE as a network: images to codes and back. Its losses and metrics are in task.py."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from stage1_vqvae.bottlenecks import BottleneckOutput
from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.levels import Codes, Levels
from stage1_vqvae.losses import make_likelihood
from stage1_vqvae.networks import NETWORKS


class VQVAEError(ValueError):
    """Images or codes that do not fit the model."""


class VQVAEOutput(NamedTuple):
    """One forward pass: images on [-1/2, 1/2], with gradients, and the output of each level's bottleneck."""

    reconstruction: Float[Tensor, "n c h w"]
    levels: tuple[BottleneckOutput, ...]

    @property
    def codes(self) -> Codes:
        """The codes of each level, coarsest first."""
        return tuple(level.codes for level in self.levels)


class VQVAE(nn.Module):
    """Encoder, levels of codes and decoder (van den Oord et al. 2017).

    Images are uint8 (n, channels, height, width) on both sides; the normalisation to [-1/2, 1/2] is inside.
    `likelihood` is the distribution of pixels around the reconstruction, None where the loss is the squared error.
    `data_variance` is the global variance of the training pixels on [0, 1]; it scales the squared error, so that
    predicting one constant grey for all pixels has an NMSE of 1.
    """

    data_variance: Tensor

    def __init__(self, config: VQVAEConfig, data_variance: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("data_variance", torch.tensor(data_variance, dtype=torch.float32))
        network = NETWORKS[config.network]
        self.encoder = network.encoder(config)
        self.levels = Levels(config)
        self.decoder = network.decoder(config, self.levels.outputs)
        self.likelihood = make_likelihood(config, data_variance)

    def forward(self, images: UInt8[Tensor, "n c h w"], progress: float = 0.0) -> VQVAEOutput:
        """Reconstruct images through the bottlenecks, with gradients; the reconstruction is on [-1/2, 1/2], in float32.

        `progress` is step / total steps, for the schedules of the bottlenecks.
        """
        output = self.levels(self.encoder(self.normalise(images)), progress)
        return VQVAEOutput(self.decoder(output.decoder_input).float(), output.levels)

    def normalise(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images on [-1/2, 1/2], as the encoder takes and the decoder gives them, in the model's precision."""
        return images.to(self.data_variance.dtype).div(255).sub(0.5)

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Codes:
        """Images to codes: one tensor per level, int64 (n, rows, columns) with 0 <= code < num_codes; of a continuous
        bottleneck floats (n, code_dim, rows, columns).

        Raises VQVAEError when the images are not uint8 of the model's channels, height and width.
        """
        self._check_images(images)
        return self.levels.encode(self.encoder(self.normalise(images)))

    @torch.no_grad()
    def decode(self, codes: Codes) -> UInt8[Tensor, "n c h w"]:
        """Codes to images. Of several levels the finest may be left out: their mean is decoded in place of them.

        Raises VQVAEError when a code, a shape or the number of levels does not fit.
        """
        self._check_codes(codes)
        dtype = self.data_variance.dtype if not self.config.is_discrete else torch.int64
        reconstruction = self.decoder(self.levels.decode(tuple(level.to(dtype) for level in codes)))
        return ((reconstruction.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)

    @torch.no_grad()
    def pixel_nats(self, images: UInt8[Tensor, "n c h w"], codes: Codes) -> Float[Tensor, "n"] | None:
        """-ln P(image | its codes) in nats per image; None without a likelihood."""
        if self.likelihood is None:
            return None
        reconstruction = self.decoder(self.levels.decode(codes))
        return self.likelihood.nats(reconstruction.double(), images).sum((1, 2, 3))

    def code_tensors(self) -> dict[str, Tensor]:
        """The tensors of the state_dict that decide what codes mean: encoder and levels with their bottlenecks.

        A hash of them identifies codes and the priors trained on them. The decoder is not among them, so it may be
        trained further or replaced while codes and priors stay valid.
        """
        return self._tensors_of("encoder.", "levels.")

    def decoder_tensors(self) -> dict[str, Tensor]:
        """The tensors of the state_dict that turn codes into images: the decoder, and the scale of the likelihood.

        A hash of them identifies a decoder. `data_variance`, which only scales the loss, is in neither.
        """
        return self._tensors_of("decoder.", "likelihood.")

    def _tensors_of(self, *prefixes: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefixes)}

    def _check_images(self, images: Tensor) -> None:
        expected = (self.config.channels, self.config.height, self.config.width)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise VQVAEError(
                f"this model encodes uint8 images of shape (n, {', '.join(map(str, expected))}); "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )

    def _check_codes(self, codes: Codes) -> None:
        grids, first = self.config.grids, () if self.config.is_discrete else (self.config.dimension,)
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
