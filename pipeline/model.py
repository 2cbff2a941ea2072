"""A loaded run: encode, decode, draw.

Which process draws an image, and in which batch, is a matter of speed alone: the noise of an image is a function of
the seed and the image's index.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline import processes
from pipeline.arithmetic import fast_products
from pipeline.checkpoint import is_finished
from pipeline.codes import code_dtype
from pipeline.errors import CheckpointError, UsageError
from pipeline.memory import sampling_batch
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Reporter, Silent
from pipeline.run import LoadedPrior, LoadedVQVAE, PriorRun, find_run, load_prior, load_vqvae
from pipeline.samples import Samples, join
from stage1_vqvae import Codes, VQVAEConfig
from stage2_prior import Noise, Stepper, Warp, draw

_PIXELS = 2**22  # of images encoded or decoded at a time


@dataclass(frozen=True)
class Model:
    """A loaded run: both stages, or stage 1 alone."""

    vqvae: LoadedVQVAE
    prior: LoadedPrior | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vqvae.model.data_variance.device

    def encode(self, images: UInt8[Tensor, "n c h w"], reporter: Reporter | None = None) -> Codes:
        """Codes of images, one int64 tensor (n, h, w) a level. Raises VQVAEError when they do not fit."""
        batches, encode = torch.split(images, _at_a_time(self.vqvae.config.model)), self.vqvae.model.encode
        steps = (reporter or Silent()).steps(range(len(batches)), "encode")
        parts = [encode(batches[step].to(self.device)) for step in steps]
        return tuple(torch.cat(level).cpu() for level in zip(*parts, strict=True))

    def decode(self, codes: Codes, reporter: Reporter | None = None) -> UInt8[Tensor, "n c h w"]:
        """Images of codes. Raises VQVAEError when they do not fit."""
        size = _at_a_time(self.vqvae.config.model)
        batches = list(zip(*(torch.split(level, size) for level in codes), strict=True))
        steps = (reporter or Silent()).steps(range(len(batches)), "decode")
        on_device = (tuple(level.to(self.device) for level in batches[step]) for step in steps)
        return torch.cat([self.vqvae.model.decode(batch).cpu() for batch in on_device])

    def reconstruct(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """What the codes keep of images."""
        return self.decode(self.encode(images))

    def drawer(self, *, seed: int = 0, label: int | str | None = None, warp: Warp | None = None) -> "Drawer":
        """What draws images of a seed and a class (by default the classes of the training data, in proportion).

        Raises UsageError for a class that does not exist, CheckpointError when there is no prior.
        """
        if self.prior is None:
            raise CheckpointError("this run has no finished prior to sample from; train one with `gen train-prior`")
        labels_of(np.arange(1), label, seed, self.prior.config)
        return Drawer(self, self.prior, seed, label, warp or Warp())

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: int | str | None = None,
        batch_size: int | None = None,
        warp: Warp | None = None,
        accelerator: Accelerator | None = None,
        reporter: Reporter | None = None,
    ) -> Samples:
        """Images 0 to n - 1 of a seed. With an accelerator its processes share them, and each returns all.

        Without `batch_size`, as many at a time as memory allows, 256 at most. Raises what `drawer` raises.
        """
        drawer, share = self.drawer(seed=seed, label=label, warp=warp), _share(n, accelerator)
        batches = np.array_split(share, -(-len(share) // (batch_size or drawer.batch_size(len(share)))))
        steps = (reporter or Silent()).steps(range(len(batches)), "draw")
        mine = join([drawer(batches[step]) for step in steps])
        if accelerator is None or accelerator.num_processes == 1:
            return mine
        return _together(mine, n, accelerator)


@dataclass
class Drawer:
    """Draws images of one seed by their indices. The plan and buffers of the last batch serve the next of its size."""

    model: Model
    prior: LoadedPrior
    seed: int
    label: int | str | None
    warp: Warp
    _steppers: dict[int, Stepper] = field(default_factory=dict)

    def __call__(self, image_indices: Int[np.ndarray, "n"]) -> Samples:
        """These images of the seed."""
        config, device = self.prior.config, self.model.device
        labels = labels_of(image_indices, self.label, self.seed, config)
        stepper = self._stepper(len(image_indices))
        noise = Noise(self.seed, torch.from_numpy(image_indices).to(device))
        with fast_products(device, len(image_indices), config.model.width):
            codes = draw_codes(stepper, noise, labels, self.warp)
        levels = (codes.cpu().to(code_dtype(config.model.num_codes)),)
        return Samples(self.model.decode(levels), levels, labels, config.class_names, self.model.vqvae.sha256)

    def batch_size(self, wanted: int) -> int:
        """How many images to draw at a time: what is wanted, as far as the memory allows."""
        image = self.model.vqvae.config.model
        pixels = image.channels * image.height * image.width
        return sampling_batch(self.prior.model, self.model.device, wanted, pixels)

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


def _at_a_time(config: VQVAEConfig) -> int:
    return max(1, min(256, _PIXELS // (config.height * config.width)))


def _share(n: int, accelerator: Accelerator | None) -> Int[np.ndarray, "m"]:
    """Every process the same number of images, as a gather needs; the surplus repeats the last image."""
    if accelerator is None:
        return np.arange(n)
    shares = accelerator.num_processes
    return np.arange(accelerator.process_index, -(-n // shares) * shares, shares).clip(max=n - 1)


def _together(mine: Samples, n: int, accelerator: Accelerator) -> Samples:
    """Undo `_share`: image i was drawn by process i modulo their number."""

    def gather(part: Tensor) -> Tensor:
        gathered: Tensor = accelerator.gather(part.to(accelerator.device))
        by_process = gathered.reshape(accelerator.num_processes, -1, *part.shape[1:])
        return by_process.transpose(0, 1).flatten(0, 1)[:n].cpu()

    labels = None if mine.labels is None else gather(mine.labels)
    codes = tuple(gather(level.int()).to(level.dtype) for level in mine.codes)  # gloo knows no int16
    return Samples(gather(mine.images), codes, labels, mine.class_names, mine.vqvae_sha256)


def load(run: str | Path | None = None, *, device: str | torch.device = "cpu", precision: str = "float32") -> Model:
    """Load a run by its path alone; without one, the newest under runs/.

    The prior is loaded where it is finished. Raises CheckpointError when a model is missing, damaged, or when the
    prior was trained on the codes of another vqvae, and UsageError when there is no such device.
    """
    device = processes.find_device(device)
    folder = find_run(run, "vqvae")
    vqvae = load_vqvae(folder, device)
    prior = load_prior(folder, vqvae.sha256, device) if is_finished(folder.prior) else None
    if precision == "float64":
        vqvae.model.double()
        prior = prior and prior._replace(model=prior.model.double())
    return Model(vqvae, prior)
