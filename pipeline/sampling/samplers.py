"""Samplers draw images of a run by their indices: from a prior over codes, or where codes are numbers from N(0, I).

Which process draws an image, and in which batch, is a matter of speed alone: the noise of an image is a function of
the seed and the image's index.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.arithmetic import exact_products
from pipeline.data.codes.maps import code_dtype
from pipeline.errors import UsageError, stage_errors_as_usage
from pipeline.randomness import Purpose, stream
from pipeline.resources import check_memory, free_memory
from pipeline.runs.loading import LoadedPrior, LoadedVQVAE, priors_sha256
from pipeline.runs.opening import check_latents
from pipeline.sampling.labels import Label, check_label, in_words, labels_of
from pipeline.sampling.matmul import fast_products
from pipeline.sampling.samples import Samples
from stage1_vqvae import Codes
from stage2_prior import (
    Noise,
    SampledLevels,
    SamplingOptions,
    Stepper,
    Watch,
    WatchedStepper,
    draw_levels,
    stepper_of,
)

MOST_AT_A_TIME = 256  # images: products are large enough, more of them gain nothing
_MEMORY_FRACTION = 4  # a quarter of the free memory is enough for drawing
_IMAGE_COPIES = 12  # in float32 while an image is decoded, then in bytes while it waits to be written


@dataclass
class Sampler(ABC):
    """Draws images of one seed by their indices. `decode` turns codes into images, in batches that fit the device;
    guidance and temperature of `options` are numbers (see Model.resolve)."""

    vqvae: LoadedVQVAE
    decode: Callable[[Codes], UInt8[Tensor, "n c h w"]]
    seed: int
    options: SamplingOptions
    label: Label

    @abstractmethod
    def sample(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""

    @abstractmethod
    def drawing_bytes(self) -> int:
        """Memory that an image takes while it is drawn."""

    @property
    def bytes_per_image(self) -> int:
        """Of a finished image: its pixels, its codes and its class."""
        config = self.vqvae.config.model
        return config.values + self._numbers * code_dtype(config).itemsize + torch.int64.itemsize

    @property
    def _numbers(self) -> int:
        config = self.vqvae.config.model
        return sum(rows * columns for rows, columns in config.grids) * (1 if config.is_discrete else config.dimension)

    def batch_size(self, wanted: int, given: int | None = None) -> int:
        """How many images to draw at a time: as many as are `given`, else as the free memory allows, 256 at most; in
        any case not more than are wanted.

        Raises ResourceError when those given take more memory than there is.
        """
        device, size = self.vqvae.network.data_variance.device, self.drawing_bytes()
        if given is None:
            return max(1, min(wanted, MOST_AT_A_TIME, free_memory(device) // _MEMORY_FRACTION // size))
        count = min(given, wanted)
        remedy = "choose a smaller --batch-size, or leave it out"
        check_memory(device, count * size, f"drawing {count:,} images at a time", remedy)
        return count

    @property
    @abstractmethod
    def prior_sha256(self) -> str:
        """The hash of the priors' tensors; empty where there is none."""

    @property
    @abstractmethod
    def classes_in_words(self) -> str | None:
        """The classes asked for, if any were."""


@dataclass
class LatentSampler(Sampler):
    """Draws numbers from N(0, I), scaled by the temperature. Raises UsageError for what has no meaning there."""

    prior_sha256 = ""
    classes_in_words = None

    def __post_init__(self) -> None:
        check_latents(self.vqvae.config)
        options = self.options
        wrong = [] if self.label is None else ["they know no classes: leave --class out"]
        if options.top_k is not None or options.top_p is not None or options.guidance != 1:
            wrong.append("there is no --top-k, --top-p or --guidance of them")
        if wrong:
            bottleneck = self.vqvae.config.model.bottleneck
            raise UsageError(f"the codes of a {bottleneck} bottleneck are numbers: {'; '.join(wrong)}")

    def sample(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""
        config, temperature = self.vqvae.config.model, self.options.temperature
        assert temperature is not None
        shape = (config.dimension, *config.grids[0])
        normal = [stream(self.seed, Purpose.LATENTS, int(index)).standard_normal(shape) for index in image_indices]
        latents = (torch.from_numpy(temperature * np.stack(normal)).float(),)
        return Samples(self.decode(latents), latents, None, (), self.vqvae.codes_sha256)

    def drawing_bytes(self) -> int:
        """The numbers in float64, and the image while it is decoded."""
        return 2 * torch.float64.itemsize * self._numbers + _IMAGE_COPIES * self.vqvae.config.model.values


@dataclass
class CodeSampler(Sampler):
    """Draws from the priors of all levels. The plans and buffers of the last batch serve the next of its size. `watch`
    is shown the codes before each row of them.

    Raises UsageError for a class that does not exist, and for guidance that a prior was not trained for.
    """

    priors: Sequence[LoadedPrior]
    tf32: bool = False
    watch: Watch | None = None
    _steppers: dict[int, list[Stepper]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_label(self.label, self.priors[0].config)
        self._make_steppers(1)

    def sample(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""
        labels = labels_of(image_indices, self.label, self.seed, self.priors[0].config)
        codes = self.sample_codes(image_indices, labels).codes
        return Samples(self.decode(codes), codes, labels, self.priors[0].config.class_names, self.vqvae.codes_sha256)

    def sample_codes(
        self, image_indices: Int[np.ndarray, "n"], labels: Int[Tensor, "n"] | None, known: Codes | None = None
    ) -> SampledLevels:
        """Codes of these images, on the CPU; of `known` codes those that are not negative are kept."""
        device, width = self.vqvae.network.data_variance.device, self.priors[-1].config.model.width
        noise = Noise(self.seed, torch.from_numpy(image_indices).to(device))
        there = None if known is None else tuple(level.long().to(device) for level in known)
        with exact_products(device, self.tf32), fast_products(device, len(image_indices), width):
            sampled = draw_levels(self._steppers_for(len(image_indices)), noise, labels, self.options, there)
        dtype = code_dtype(self.vqvae.config.model)
        return SampledLevels(
            tuple(level.cpu().to(dtype) for level in sampled.codes),
            sampled.log_probability.cpu(),
            sampled.known_log_probability.cpu(),
        )

    def drawing_bytes(self) -> int:
        """What the steppers' buffers grow by, and the image while it is decoded."""
        one, two = (sum(stepper.memory() for stepper in self._make_steppers(n)) for n in (1, 2))
        return two - one + _IMAGE_COPIES * self.vqvae.config.model.values

    @property
    def prior_sha256(self) -> str:
        """The hash of the priors' tensors."""
        return priors_sha256(self.priors)

    @property
    def classes_in_words(self) -> str | None:
        """The classes asked for, if any were."""
        return in_words(self.label, self.priors[0].config.class_names)

    def _steppers_for(self, n: int) -> list[Stepper]:
        if n not in self._steppers:
            self._steppers.clear()
            self._steppers[n] = [self._watched(stepper, n) for stepper in self._make_steppers(n)]
        return self._steppers[n]

    def _watched(self, stepper: Stepper, n: int) -> Stepper:
        device = self.vqvae.network.data_variance.device
        return stepper if self.watch is None else WatchedStepper(stepper, n, self.watch, device)

    @stage_errors_as_usage()
    def _make_steppers(self, n: int) -> list[Stepper]:
        guidance, schedule = self.options.guidance, self.options.guidance_schedule
        assert isinstance(guidance, float) and schedule is not None
        return [stepper_of(prior.network, n, guidance, schedule) for prior in self.priors]
