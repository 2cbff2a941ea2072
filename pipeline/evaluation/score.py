"""What images cost under a run's priors: what is unusual among them, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.config.sampling import DecoderName
from pipeline.errors import UsageError, stage_errors_as_usage
from pipeline.reporting import Reporter, Silent
from pipeline.sampling.inputs import Images, batch_of, check_images
from pipeline.sampling.labels import Label, class_probabilities
from pipeline.sampling.model import Model, loaded
from stage2_prior import mixture_bits

_MOST_AT_A_TIME = 64  # images
_LOGITS = 2**24  # at a time: fewer images where one has many


@dataclass(frozen=True)
class Scores:
    """What each image costs, in bits, and each of its codes given those before it (n, height, width), a tensor a level.

    `bits_per_dim` counts the pixels too, where the decoder is a likelihood: a bound on -log2 p(image), a number a pixel
    value.
    """

    bits: Float[Tensor, "n"]
    surprise: tuple[Float[Tensor, "n h w"], ...]
    bits_per_dim: Float[Tensor, "n"] | None

    def __len__(self) -> int:
        return len(self.bits)

    def order(self) -> list[int]:
        """The images, the most unusual first."""
        return [int(index) for index in self.bits.argsort(descending=True, stable=True)]

    def surprise_of_pixels(self, size: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
        """Bits at each pixel of an image of this size: those of a code are shared out over its patch."""
        total = np.zeros((len(self), *size))
        for level in self.surprise:
            rows, columns = size[0] // level.shape[1], size[1] // level.shape[2]
            patches = repeat(
                level.numpy() / (rows * columns), "n h w -> n (h rows) (w columns)", rows=rows, columns=columns
            )
            total += patches
        return total


def score(
    run: str | Path | Model | None,
    images: Images,
    *,
    label: Label = None,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    reporter: Reporter | None = None,
) -> Scores:
    """Bits of the codes of images, uint8 (n, c, h, w), under the priors of a run (a folder, a loaded one, or by default
    the newest).

    Without `label` a prior with classes counts as the mixture of all of them, in the training data's proportions.
    `decoder`: as of `load`; it matters to `bits_per_dim` alone.
    Codes keep what stage 1 learned to keep, so an image may be unusual in what they lost. Raises UsageError, also
    when the images do not fit, and CheckpointError.
    """
    model = loaded(run, "samples", device, decoder=decoder)
    if not model.priors:
        raise UsageError("the codes of this run are numbers, and no prior says how probable they are")
    given = check_images(images, model.vqvae.config.model)
    if not len(given):
        raise UsageError("there are no images to score; give one at least")
    with stage_errors_as_usage(), torch.no_grad(), model.arithmetic():
        return _score(model, given, label, reporter or Silent())


def images_at_a_time(model: Model) -> int:
    """Images whose codes are given to the priors together."""
    logits = max(prior.network.config.num_codes * prior.network.config.positions for prior in model.priors)
    return max(1, min(_MOST_AT_A_TIME, _LOGITS // logits))


def _score(model: Model, images: Images, label: Label, reporter: Reporter) -> Scores:
    probabilities = class_probabilities(label, model.priors[0].config)
    priors = [prior.network for prior in model.priors]
    size = images_at_a_time(model)
    surprise, pixel_nats = [], []
    for step in reporter.steps(range(-(-len(images) // size)), "score"):
        batch = batch_of(images, step * size, size).to(model.device)
        codes = model.vqvae.network.encode(batch)
        nats = model.vqvae.network.pixel_nats(batch, codes)
        surprise.append(mixture_bits(priors, codes, probabilities))
        pixel_nats += [] if nats is None else [nats.cpu()]
    levels = tuple(torch.cat(level) for level in zip(*surprise, strict=True))
    bits = torch.stack([level.sum((1, 2)) for level in levels]).sum(0)
    dims = model.vqvae.config.model.values
    return Scores(bits, levels, (bits + torch.cat(pixel_nats) / log(2)) / dims if pixel_nats else None)


def surprise_shown(scores: Scores, images: Images, chosen: Sequence[int]) -> UInt8[np.ndarray, "m c h w"]:
    """Where the chosen images surprise: black for nothing, white for the most that a pixel of them costs."""
    bits = scores.surprise_of_pixels((images.shape[2], images.shape[3]))[list(chosen)]
    grey = (255 * bits / max(bits.max(initial=0), 1e-9)).clip(0, 255).round().astype(np.uint8)
    return repeat(grey, "m h w -> m c h w", c=images.shape[1])
