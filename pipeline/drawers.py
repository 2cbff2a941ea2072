"""What draws images of a run by their indices: from a prior over codes, or where codes are numbers from N(0, I).

Which process draws an image, and in which batch, is a matter of speed alone: the noise of an image is a function of
the seed and the image's index.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pipeline.arithmetic import fast_products
from pipeline.codes import code_dtype
from pipeline.errors import UsageError
from pipeline.labels import Label, in_words, labels_of
from pipeline.memory import MOST_DRAWN, sampling_batch
from pipeline.randomness import Purpose, stream
from pipeline.run import LoadedPrior, LoadedVQVAE, check_latents
from pipeline.samples import Samples
from stage1_vqvae import Codes
from stage2_prior import Noise, Stepper, Warp, draw, stepper_of


@dataclass
class Drawer(ABC):
    """Draws images of one seed by their indices. `decode` turns codes into images, in batches that fit the device."""

    vqvae: LoadedVQVAE
    decode: Callable[[Codes], UInt8[Tensor, "n c h w"]]
    seed: int
    warp: Warp

    @abstractmethod
    def __call__(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""

    @abstractmethod
    def batch_size(self, wanted: int) -> int:
        """How many images to draw at a time: what is wanted, as far as the memory allows."""

    @property
    def prior_sha256(self) -> str:
        """The hash of the prior's weights; empty where there is none."""
        return ""

    @property
    def class_name(self) -> str | None:
        """The classes asked for, if any were."""
        return None


class LatentDrawer(Drawer):
    """Draws numbers from N(0, I), scaled by the temperature. Raises UsageError for what has no meaning there."""

    def __init__(
        self,
        vqvae: LoadedVQVAE,
        decode: Callable[[Codes], UInt8[Tensor, "n c h w"]],
        seed: int,
        warp: Warp,
        label: Label,
    ) -> None:
        super().__init__(vqvae, decode, seed, warp)
        check_latents(vqvae.config)
        wrong = [] if label is None else ["they know no classes: leave --class out"]
        sharpened = warp.top_k is not None or warp.top_p is not None or warp.guidance != 1
        wrong += ["there is no --top-k, --top-p or --guidance of them"] if sharpened else []
        if wrong:
            raise UsageError(
                f"the codes of a {vqvae.config.model.bottleneck} bottleneck are numbers: {'; '.join(wrong)}"
            )

    def __call__(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""
        config = self.vqvae.config.model
        shape = (config.code_dim, *config.grids[0])
        normal = [stream(self.seed, Purpose.LATENTS, int(index)).standard_normal(shape) for index in image_indices]
        latents = (torch.from_numpy(self.warp.temperature * np.stack(normal)).float(),)
        return Samples(self.decode(latents), latents, None, (), self.vqvae.sha256)

    def batch_size(self, wanted: int) -> int:
        """As many as a prior draws at most: `decode` cuts them smaller."""
        return min(wanted, MOST_DRAWN)


@dataclass
class CodeDrawer(Drawer):
    """Draws from the priors of all levels. The plans and buffers of the last batch serve the next of its size.

    Raises UsageError for a class that does not exist, PriorError for guidance that a prior knows nothing of.
    """

    priors: Sequence[LoadedPrior]
    label: Label
    _steppers: dict[int, list[Stepper]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels_of(np.arange(1), self.label, self.seed, self.priors[0].config)
        self._plan(1)

    def __call__(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""
        labels = labels_of(image_indices, self.label, self.seed, self.priors[0].config)
        levels = self.draw(image_indices, labels).codes
        return Samples(self.decode(levels), levels, labels, self.priors[0].config.class_names, self.vqvae.sha256)

    def draw(
        self, image_indices: Int[np.ndarray, "n"], labels: Int[Tensor, "n"] | None, known: Codes | None = None
    ) -> "DrawnLevels":
        """Codes of these images, on the CPU; of `known` codes those that are not negative are kept."""
        device, width = self.vqvae.model.data_variance.device, self.priors[-1].config.model.width
        noise = Noise(self.seed, torch.from_numpy(image_indices).to(device))
        there = None if known is None else tuple(level.long().to(device) for level in known)
        with fast_products(device, len(image_indices), width):
            drawn = draw_levels(self._steppers_for(len(image_indices)), noise, labels, self.warp, there)
        dtype = code_dtype(self.vqvae.config.model)
        codes = tuple(level.cpu().to(dtype) for level in drawn.codes)
        return DrawnLevels(codes, drawn.log_probability.cpu(), drawn.of_known.cpu())

    def batch_size(self, wanted: int) -> int:
        """As the free memory allows."""
        device = self.vqvae.model.data_variance.device
        return sampling_batch(self._plan, device, wanted, self.vqvae.config.model.values)

    @property
    def prior_sha256(self) -> str:
        """The hash of the priors' weights."""
        hashes = [prior.sha256 for prior in self.priors]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def class_name(self) -> str | None:
        """The classes asked for, if any were."""
        return in_words(self.label, self.priors[0].config.class_names)

    def _steppers_for(self, n: int) -> list[Stepper]:
        if n not in self._steppers:
            self._steppers.clear()
            self._steppers[n] = self._plan(n)
        return self._steppers[n]

    def _plan(self, n: int) -> list[Stepper]:
        return [stepper_of(prior.model, n, self.warp.guidance) for prior in self.priors]


class DrawnLevels(NamedTuple):
    """Codes of all levels, ln p (n,) of an image's under the (guided) logits, and the part of it for known codes."""

    codes: Codes
    log_probability: Float[Tensor, "n"]
    of_known: Float[Tensor, "n"]


def draw_levels(
    steppers: Sequence[Stepper],
    noise: Noise,
    labels: Int[Tensor, "n"] | None,
    warp: Warp,
    known: Codes | None = None,
    coarser: Codes = (),
) -> DrawnLevels:
    """The code maps of these images of a seed, level by level, each beneath those before it.

    `coarser`: levels that are there already; the steppers are those of the ones that follow.
    """
    device = noise.image_indices.device
    levels = list(coarser)
    total, of_known = torch.zeros(2, len(noise.image_indices), dtype=torch.float64, device=device).unbind(0)
    with torch.autocast(device.type, enabled=False):  # a draw has the precision of the weights
        for stepper in steppers:
            level = len(levels)
            stepper.begin(None if labels is None else labels.to(device), levels)
            drawn = draw(stepper, noise._replace(level=level), warp, None if known is None else known[level])
            levels.append(drawn.codes)
            total += drawn.log_probability
            of_known += drawn.of_known
    return DrawnLevels(tuple(levels), total, of_known)
