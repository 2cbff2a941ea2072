"""What images cost under a run's priors: what is unusual among them, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.labels import Label, class_numbers
from pipeline.model import Model, load
from pipeline.reporting import Reporter, Silent
from pipeline.run import LoadedPrior, check_drawable, find_run
from stage1_vqvae import Codes
from stage2_prior import code_nats

MOST_SCORED = 64  # images at a time
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
    run: str | Path | None,
    images: np.ndarray | Tensor,
    *,
    label: Label = None,
    device: str | torch.device = "cpu",
    reporter: Reporter | None = None,
) -> Scores:
    """Bits of the codes of images, uint8 (n, c, h, w), under the priors of a run (by default the newest).

    Without `label` a prior with classes counts as the mixture of all of them, in the training data's proportions.
    Codes keep what stage 1 learned to keep, so an image may be unusual in what they lost. Raises UsageError,
    CheckpointError, VQVAEError when the images do not fit.
    """
    folder = find_run(run, "samples")
    check_drawable(folder)
    return score_images(load(folder.path, device=device), torch.as_tensor(images), label, reporter or Silent())


@torch.no_grad()
def score_images(model: Model, images: UInt8[Tensor, "n c h w"], label: Label, reporter: Reporter) -> Scores:
    """The scores of images under a loaded run. Raises UsageError where codes are numbers."""
    if not model.priors:
        raise UsageError("the codes of this run are numbers, and no prior says how probable they are")
    weights = _classes(model.priors[0], label)
    logits = max(level.config.model.num_codes * level.config.model.positions for level in model.priors)
    batches = torch.split(images, max(1, min(MOST_SCORED, _LOGITS // logits)))
    parts = []
    for step in reporter.steps(range(len(batches)), "score"):
        batch = batches[step].to(model.device)
        codes = model.vqvae.model.encode(batch)
        pixels = model.vqvae.model.pixel_nats(batch, codes)
        parts.append((_surprise(model.priors, codes, weights), None if pixels is None else pixels.cpu()))
    surprise = tuple(torch.cat(level) for level in zip(*(part for part, _ in parts), strict=True))
    bits = torch.stack([level.sum((1, 2)) for level in surprise]).sum(0)
    of_pixels = [nats for _, nats in parts if nats is not None]
    dims = model.vqvae.config.model.values
    return Scores(bits, surprise, (bits + torch.cat(of_pixels) / log(2)) / dims if of_pixels else None)


def _classes(prior: LoadedPrior, label: Label) -> dict[int | None, float]:
    """The classes that an image may be of, with their probabilities."""
    names = prior.config.class_names
    if not names:
        if label is not None:
            raise UsageError("this model was trained without classes; leave --class out")
        return {None: 1.0}
    if label is None:
        total = sum(prior.config.class_weights)
        return {number: weight / total for number, weight in enumerate(prior.config.class_weights) if weight}
    numbers = class_numbers(label, names)
    return dict.fromkeys(numbers, 1 / len(set(numbers)))


def _surprise(
    priors: Sequence[LoadedPrior], codes: Codes, classes: dict[int | None, float]
) -> tuple[Float[Tensor, "n h w"], ...]:
    """-log2 p of each code given all before it, under the mixture of classes.

    p(z_t | z_<t) = p(z_<=t) / p(z_<t), and each of these is a sum over classes; in the order of drawing.
    """
    joint = []
    for number, weight in classes.items():
        nats = torch.cat([level.flatten(1) for level in _nats(priors, codes, number)], 1)
        joint.append(log(weight) - nats.cumsum(1))
    prefixes = torch.stack(joint).logsumexp(0)  # ln p(z_<=t)
    before = torch.cat([torch.zeros_like(prefixes[:, :1]), prefixes[:, :-1]], 1)
    bits = ((before - prefixes) / log(2)).cpu()
    sizes = [level[0].numel() for level in codes]
    levels = zip(torch.split(bits, sizes, 1), codes, strict=True)
    return tuple(rearrange(flat, "n (h w) -> n h w", h=level.shape[1]) for flat, level in levels)


def _nats(priors: Sequence[LoadedPrior], codes: Codes, label: int | None) -> list[Float[Tensor, "n h w"]]:
    labels = None if label is None else torch.full((len(codes[0]),), label, device=codes[0].device)
    return [
        code_nats(prior.model, level, labels, codes[:number]).double()
        for number, (prior, level) in enumerate(zip(priors, codes, strict=True))
    ]


def surprise_shown(
    scores: Scores, images: UInt8[Tensor, "n c h w"], chosen: Sequence[int]
) -> UInt8[np.ndarray, "m c h w"]:
    """Where the chosen images surprise: black for nothing, white for the most that a pixel of them costs."""
    bits = scores.surprise_of_pixels((images.shape[2], images.shape[3]))[list(chosen)]
    grey = (255 * bits / max(bits.max(initial=0), 1e-9)).clip(0, 255).round().astype(np.uint8)
    return repeat(grey, "m h w -> m c h w", c=images.shape[1])
