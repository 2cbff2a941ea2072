"""What lies between two images: mixtures of their codes' vectors, or of what is quantized, with the nearest codes; the
codes of one replaced by those of the other."""

from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.config.arguments import InterpolateArguments
from pipeline.config.options import build
from pipeline.config.sampling import DecoderName, InterpolateConfig
from pipeline.errors import UsageError, stage_errors_as_usage
from pipeline.sampling.inputs import as_array
from pipeline.sampling.model import Model, loaded
from stage1_vqvae import Codes


class Interpolation(NamedTuple):
    """Images (m, c, h, w) from the first to the second: of mixtures of what the decoder is given, and, where codes are
    integers, with more and more of the second's codes in raster order, and of the codes that are nearest to mixtures of
    what the encoder gives."""

    mixed: UInt8[np.ndarray, "m c h w"]
    exchanged: UInt8[np.ndarray, "m c h w"] | None
    nearest: UInt8[np.ndarray, "m c h w"] | None


def interpolate(
    run: str | Path | Model | None,
    first: UInt8[np.ndarray, "c h w"] | UInt8[Tensor, "c h w"],
    second: UInt8[np.ndarray, "c h w"] | UInt8[Tensor, "c h w"],
    *,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    **options: Unpack[InterpolateArguments],
) -> Interpolation:
    """Images between two; the ends are their reconstructions.

    Mixtures are linear: the vectors at a place of the map are the decoder's input, and those of a continuous bottleneck
    are means of posteriors, which do not lie on a sphere as draws from N(0, I) do. `options` are the fields of
    InterpolateConfig; `decoder`: as of `load`. Raises UsageError and CheckpointError.
    """
    (config,) = build(options, InterpolateConfig)
    model = loaded(run, "vqvae", device, decoder=decoder)
    ends = [as_array(image, "an image") for image in (first, second)]
    if ends[0].shape != ends[1].shape or ends[0].ndim != 3:
        shapes = " and ".join(str(end.shape) for end in ends)
        raise UsageError(f"two images of one shape (channels, height, width) are needed; got {shapes}")
    codes, weights = model.encode(np.stack(ends)), np.linspace(0, 1, config.frames)
    if not model.vqvae.config.model.is_discrete:
        return Interpolation(mixtures(model, codes, weights), None, None)
    images = torch.from_numpy(np.stack(ends))
    exchanged, nearest = exchanged_codes(codes, weights), nearest_codes_between(model, images, weights)
    return Interpolation(
        mixtures(model, codes, weights), model.decode(exchanged).numpy(), model.decode(nearest).numpy()
    )


def mixtures(model: Model, codes: Codes, weights: Float[np.ndarray, "m"]) -> UInt8[np.ndarray, "m c h w"]:
    """Images of mixtures of what the decoder is given for two images' codes."""
    network = model.vqvae.network
    with stage_errors_as_usage(), torch.no_grad(), model.arithmetic():
        dtype = torch.int64 if model.vqvae.config.model.is_discrete else network.data_variance.dtype
        first, second = network.levels.decode(tuple(level.to(model.device, dtype) for level in codes))
        mixed = [torch.lerp(first, second, float(weight))[None] for weight in weights]
        pixels = torch.cat([network.decoder(one).float() for one in mixed])  # one at a time: images may be large
    return ((pixels + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def nearest_codes_between(model: Model, images: UInt8[Tensor, "2 c h w"], weights: Float[np.ndarray, "m"]) -> Codes:
    """The codes of mixtures of what the encoder gives for two images, before it is quantized, level after level.

    All of them are codes that the decoder knows, which a mixture of codes' vectors need not be.
    """
    network = model.vqvae.network
    with torch.no_grad(), model.arithmetic():
        first, second = network.encoder(network.normalise(images.to(model.device)))
        between = [network.levels.encode(torch.lerp(first, second, float(weight))[None]) for weight in weights]
    return tuple(torch.cat(level).cpu() for level in zip(*between, strict=True))


def exchanged_codes(codes: Codes, weights: Float[np.ndarray, "m"]) -> Codes:
    """Maps of the first image, in which this part of the codes, in raster order, is the second one's."""
    levels = []
    for level in codes:
        raster = torch.arange(level[0].numel()).reshape(level.shape[1:])
        counts = [round(weight * level[0].numel()) for weight in weights]
        levels.append(torch.stack([torch.where(raster < count, level[1], level[0]) for count in counts]))
    return tuple(levels)
