"""Draw code maps and decode them: `generate()`, `load()` and the `Samples` they return.

Which process draws an image, and in which batch, is a matter of speed alone: the noise of an image is a function of
the seed and the image's index.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int, UInt8
from PIL import Image
from pydantic import ConfigDict, Field
from pydantic import dataclasses as pydantic_dataclasses
from torch import Tensor

from pipeline import images as pictures
from pipeline import processes
from pipeline.checkpoint import is_finished
from pipeline.codes import BATCH, CodeMaps, code_dtype, save_codes
from pipeline.errors import CheckpointError, UsageError
from pipeline.options import build
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Reporter, Silent
from pipeline.run import LoadedPrior, LoadedVQVAE, PriorRun, RunFolder, find_run, load_prior, load_vqvae
from pipeline.storage import atomic_folder
from stage1_vqvae import Codes
from stage2_prior import Noise, PrefixStepper, Prior, Warp, draw

GRID_IMAGES = 64  # images shown in grid.png


@pydantic_dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SampleConfig:
    """How many images are drawn, and how the work is cut; none of it but the seed changes an image."""

    n: int = Field(default=GRID_IMAGES, ge=1, description="Images to draw.")
    seed: int = Field(default=0, ge=0, description="Seed: image i of a seed is always the same picture.")
    batch_size: int = Field(default=64, ge=1, description="Images drawn at a time by each process.")
    precision: Literal["float32", "float64"] = Field(
        default="float32", description="float64 draws the same codes in every batch size, without exception."
    )


@dataclass(frozen=True)
class Samples:
    """Generated images, uint8 (n, channels, height, width), their codes, and labels (n,) where there are classes."""

    images: UInt8[Tensor, "n c h w"]
    codes: Codes
    labels: Int[Tensor, "n"] | None
    class_names: tuple[str, ...] = ()
    vqvae_sha256: str = ""  # of the weights that the codes mean something to

    def __len__(self) -> int:
        return len(self.images)

    def to_pil(self) -> list[Image.Image]:
        """The images as PIL images."""
        return [pictures.to_pil(image) for image in self.images.numpy()]

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one, in a square by default."""
        return pictures.grid(self.images.numpy(), columns or int(np.ceil(len(self) ** 0.5)))

    def save(self, folder: str | Path) -> Path:
        """Write 00000.png ..., grid.png (the first 64) and codes.safetensors into a new folder.

        Raises UsageError when there is something of that name already.
        """
        path = Path(folder)
        if path.exists():
            raise UsageError(f"{path} exists already; choose another --out or another --seed")
        digits = max(5, len(str(len(self) - 1)))
        with atomic_folder(path) as unfinished:
            for index, image in enumerate(self.to_pil()):
                image.save(unfinished / f"{index:0{digits}d}.png")
            Samples(self.images[:GRID_IMAGES], (), None).grid().save(unfinished / "grid.png")
            save_codes(
                unfinished / "codes.safetensors", CodeMaps(self.codes, self.labels), {"vqvae_sha256": self.vqvae_sha256}
            )
        return path


def draw_codes(
    prior: Prior, image_indices: Int[Tensor, "n"], labels: Int[Tensor, "n"] | None, seed: int, warp: Warp
) -> Int[Tensor, "n h w"]:
    """The code maps of these images of a seed."""
    stepper = PrefixStepper(prior, len(image_indices), labels)
    return draw(stepper, Noise(seed, image_indices), warp, (prior.config.height, prior.config.width)).codes


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
        return torch.full((len(image_indices),), _class_number(label, config.class_names))
    uniforms = [stream(seed, Purpose.LABELS, int(index)).random() for index in image_indices]
    bounds = np.cumsum(config.class_weights)
    return torch.from_numpy(np.searchsorted(bounds / bounds[-1], uniforms, side="right"))


def _class_number(label: int | str, names: tuple[str, ...]) -> int:
    if label in names:
        return names.index(str(label))
    if str(label).isascii() and str(label).isdigit() and int(label) < len(names):
        return int(label)
    raise UsageError(f"there is no class {label!r}; the classes are {', '.join(names)} (or 0 to {len(names) - 1})")


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
        batches, encode = torch.split(images, BATCH), self.vqvae.model.encode
        steps = (reporter or Silent()).steps(range(len(batches)), "encode")
        parts = [encode(batches[step].to(self.device)) for step in steps]
        return tuple(torch.cat(level).cpu() for level in zip(*parts, strict=True))

    def decode(self, codes: Codes, reporter: Reporter | None = None) -> UInt8[Tensor, "n c h w"]:
        """Images of codes. Raises VQVAEError when they do not fit."""
        batches = list(zip(*(torch.split(level, BATCH) for level in codes), strict=True))
        steps = (reporter or Silent()).steps(range(len(batches)), "decode")
        on_device = (tuple(level.to(self.device) for level in batches[step]) for step in steps)
        return torch.cat([self.vqvae.model.decode(batch).cpu() for batch in on_device])

    def reconstruct(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """What the codes keep of images."""
        return self.decode(self.encode(images))

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: int | str | None = None,
        batch_size: int = SampleConfig.batch_size,
        warp: Warp | None = None,
        accelerator: Accelerator | None = None,
        reporter: Reporter | None = None,
    ) -> Samples:
        """Images 0 to n - 1 of a seed. With an accelerator its processes share them, and each returns all.

        Raises UsageError for a class that does not exist, CheckpointError when there is no prior.
        """
        if self.prior is None:
            raise CheckpointError("this run has no finished prior to sample from; train one with `gen train-prior`")
        mine = torch.split(torch.from_numpy(_share(n, accelerator)), batch_size)
        labels = labels_of(np.arange(n), label, seed, self.prior.config)
        parts = []
        for batch in (reporter or Silent()).steps(range(len(mine)), "batches"):
            chosen = None if labels is None else labels[mine[batch]].to(self.device)
            parts.append(draw_codes(self.prior.model, mine[batch].to(self.device), chosen, seed, warp or Warp()))
        codes = (_together(torch.cat(parts), n, accelerator).to(code_dtype(self.prior.config.model.num_codes)),)
        return Samples(self.decode(codes), codes, labels, self.prior.config.class_names, self.vqvae.sha256)


def _share(n: int, accelerator: Accelerator | None) -> Int[np.ndarray, "m"]:
    """Every process the same number of images, as a gather needs; the surplus repeats the last image."""
    if accelerator is None:
        return np.arange(n)
    shares = accelerator.num_processes
    return np.arange(accelerator.process_index, -(-n // shares) * shares, shares).clip(max=n - 1)


def _together(codes: Tensor, n: int, accelerator: Accelerator | None) -> Tensor:
    """Undo `_share`: image i was drawn by process i modulo their number."""
    if accelerator is None or accelerator.num_processes == 1:
        return codes.cpu()
    gathered: Tensor = accelerator.gather(codes)
    by_process = gathered.reshape(accelerator.num_processes, -1, *codes.shape[1:])
    return by_process.transpose(0, 1).flatten(0, 1)[:n].cpu()


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


def generate(
    run: str | Path | None = None,
    n: int = GRID_IMAGES,
    *,
    seed: int = 0,
    label: int | str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: Literal["float32", "float64"] = "float32",
    reporter: Reporter | None = None,
) -> Samples:
    """Draw n new images from a run (by default the newest that has a prior).

    Image i depends on the run, the seed, i and the class alone: not on n, the batch size or the number of
    processes, among which the work is shared when launched by accelerate. Without `label`, classes are drawn in the
    training data's proportions. Raises UsageError with all bad arguments at once, and CheckpointError.
    """
    sizes = {
        "n": n,
        "seed": seed,
        "batch_size": batch_size or SampleConfig.batch_size,
        "precision": precision,
    }
    warping = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    config, warp = build([SampleConfig, Warp], {**sizes, **warping}, {})
    folder = find_run(run, "prior")
    accelerator = processes.start()
    model = load(folder.path, device=device or accelerator.device, precision=config.precision)
    drawing: dict[str, Any] = {"seed": config.seed, "label": label, "batch_size": config.batch_size, "warp": warp}
    return model.sample(config.n, **drawing, accelerator=accelerator, reporter=reporter)


def samples_folder(run: RunFolder, seed: int, label: Any) -> Path:
    """Where samples go unless told otherwise."""
    return run.samples / (f"seed-{seed}" if label is None else f"seed-{seed}-{str(label).replace('/', '-')}")
