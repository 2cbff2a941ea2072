"""What draws images of a run by their indices: from a prior over codes, or where codes are numbers from N(0, I).

Which process draws an image, and in which batch, is a matter of speed alone: the noise of an image is a function of
the seed and the image's index.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.arithmetic import fast_products
from pipeline.codes import code_dtype
from pipeline.errors import UsageError
from pipeline.memory import MOST_DRAWN, sampling_batch
from pipeline.randomness import Purpose, stream
from pipeline.run import LoadedPrior, LoadedVQVAE, PriorRun, check_latents
from pipeline.samples import Samples
from stage1_vqvae import Codes
from stage2_prior import Noise, Stepper, Warp, draw


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
        """The class asked for, if one was."""
        return None


class LatentDrawer(Drawer):
    """Draws numbers from N(0, I), scaled by the temperature. Raises UsageError for what has no meaning there."""

    def __init__(
        self,
        vqvae: LoadedVQVAE,
        decode: Callable[[Codes], UInt8[Tensor, "n c h w"]],
        seed: int,
        warp: Warp,
        label: int | str | None,
    ) -> None:
        super().__init__(vqvae, decode, seed, warp)
        check_latents(vqvae.config)
        wrong = [] if label is None else ["they know no classes: leave --class out"]
        wrong += ["there is no --top-k or --top-p of them"] if warp.top_k is not None or warp.top_p is not None else []
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
    """Draws from a prior. The plan and buffers of the last batch serve the next of its size.

    Raises UsageError for a class that does not exist.
    """

    prior: LoadedPrior
    label: int | str | None
    _steppers: dict[int, Stepper] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels_of(np.arange(1), self.label, self.seed, self.prior.config)

    def __call__(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""
        config, device = self.prior.config, self.vqvae.model.data_variance.device
        labels = labels_of(image_indices, self.label, self.seed, config)
        stepper = self._stepper(len(image_indices))
        noise = Noise(self.seed, torch.from_numpy(image_indices).to(device))
        with fast_products(device, len(image_indices), config.model.width):
            codes = draw_codes(stepper, noise, labels, self.warp)
        levels = (codes.cpu().to(code_dtype(self.vqvae.config.model)),)
        return Samples(self.decode(levels), levels, labels, config.class_names, self.vqvae.sha256)

    def batch_size(self, wanted: int) -> int:
        """As the free memory allows."""
        device = self.vqvae.model.data_variance.device
        return sampling_batch(self.prior.model, device, wanted, self.vqvae.config.model.values)

    @property
    def prior_sha256(self) -> str:
        """The hash of the prior's weights."""
        return self.prior.sha256

    @property
    def class_name(self) -> str | None:
        """The class asked for, if one was."""
        names = self.prior.config.class_names
        return None if self.label is None else names[class_number(self.label, names)]

    def _stepper(self, n: int) -> Stepper:
        if n not in self._steppers:
            self._steppers.clear()
            self._steppers[n] = self.prior.model.stepper(n)
        return self._steppers[n]


def draw_codes(stepper: Stepper, noise: Noise, labels: Int[Tensor, "n"] | None, warp: Warp) -> Int[Tensor, "n h w"]:
    """The code maps of these images of a seed."""
    stepper.begin(None if labels is None else labels.to(noise.image_indices.device))
    return draw(stepper, noise, warp).codes


def labels_of(
    image_indices: Int[np.ndarray, "n"], label: int | str | None, seed: int, config: PriorRun
) -> Int[Tensor, "n"] | None:
    """The class of each image: the one asked for, or drawn in the training data's proportions by seed and index.

    Raises UsageError for a class that does not exist.
    """
    if config.model.num_classes == 0:
        if label is not None:
            raise UsageError("this model was trained without classes; leave --class out")
        return None
    if label is not None:
        return torch.full((len(image_indices),), class_number(label, config.class_names))
    uniforms = [stream(seed, Purpose.LABELS, int(index)).random() for index in image_indices]
    bounds = np.cumsum(config.class_weights)
    return torch.from_numpy(np.searchsorted(bounds / bounds[-1], uniforms, side="right"))


def class_number(label: int | str, names: tuple[str, ...]) -> int:
    """A class by its name or number. Raises UsageError when there is none."""
    if label in names:
        return names.index(str(label))
    if str(label).isascii() and str(label).isdigit() and int(label) < len(names):
        return int(label)
    raise UsageError(f"there is no class {label!r}; the classes are {', '.join(names)} (or 0 to {len(names) - 1})")
