"""A loaded run: encode, decode, draw."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline import processes
from pipeline.checkpoint import is_finished
from pipeline.drawers import CodeDrawer, Drawer, LatentDrawer
from pipeline.errors import CheckpointError, UsageError
from pipeline.labels import Label
from pipeline.reporting import Reporter, Silent
from pipeline.run import LoadedPrior, LoadedVQVAE, find_run, load_prior, load_vqvae
from pipeline.samples import Samples, join
from stage1_vqvae import Codes, VQVAEConfig
from stage2_prior import Warp

_PIXELS = 2**22  # of images encoded or decoded at a time


@dataclass(frozen=True)
class Model:
    """A loaded run: both stages, or stage 1 alone."""

    vqvae: LoadedVQVAE
    priors: tuple[LoadedPrior, ...]  # one a level, or none

    @property
    def prior(self) -> LoadedPrior | None:
        """The prior of the coarsest level."""
        return self.priors[0] if self.priors else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vqvae.model.data_variance.device

    def encode(
        self, images: UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"], reporter: Reporter | None = None
    ) -> Codes:
        """Codes of images, a tensor a level (see VQVAE.encode). Raises VQVAEError when they do not fit."""
        batches, encode = (
            torch.split(torch.as_tensor(images), _at_a_time(self.vqvae.config.model)),
            self.vqvae.model.encode,
        )
        steps = (reporter or Silent()).steps(range(len(batches)), "encode")
        parts = [encode(batches[step].to(self.device)) for step in steps]
        return tuple(torch.cat(level).cpu() for level in zip(*parts, strict=True))

    def decode(self, codes: Codes, reporter: Reporter | None = None) -> UInt8[Tensor, "n c h w"]:
        """Images of codes. Raises UsageError or VQVAEError when they do not fit."""
        if len({len(level) for level in codes}) != 1:
            raise UsageError(
                f"codes of as many images at every level are needed; got {[len(level) for level in codes]}"
            )
        size = _at_a_time(self.vqvae.config.model)
        batches = list(zip(*(torch.split(level, size) for level in codes), strict=True))
        steps = (reporter or Silent()).steps(range(len(batches)), "decode")
        on_device = (tuple(level.to(self.device) for level in batches[step]) for step in steps)
        return torch.cat([self.vqvae.model.decode(batch).cpu() for batch in on_device])

    def reconstruct(
        self, images: UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"], levels: int | None = None
    ) -> UInt8[Tensor, "n c h w"]:
        """What the codes keep of images; with `levels`, those of the first levels, the others at their mean."""
        return self.decode(self.encode(images)[:levels])

    def drawer(self, *, seed: int = 0, label: Label = None, warp: Warp | None = None) -> Drawer:
        """What draws images of a seed and a class (by default the classes of the training data, in proportion).

        Raises UsageError for a class that does not exist, and where codes are numbers for what has no meaning there;
        CheckpointError when there is nothing to draw from.
        """
        warp = warp or Warp()
        if not self.vqvae.config.model.is_discrete:
            return LatentDrawer(self.vqvae, self.decode, seed, warp, label)
        if not self.priors:
            raise CheckpointError("this run has no finished prior to sample from; train one with `gen train-prior`")
        return CodeDrawer(self.vqvae, self.decode, seed, warp, self.priors, label)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: Label = None,
        batch_size: int | None = None,
        warp: Warp | None = None,
        accelerator: Accelerator | None = None,
        reporter: Reporter | None = None,
    ) -> Samples:
        """Images 0 to n - 1 of a seed. With an accelerator its processes share them, and each returns all.

        Without `batch_size`, as many at a time as memory allows, 256 at most. Raises what `drawer` raises.
        """
        if n < 1:
            raise UsageError(f"there must be an image to draw at least; got n = {n}")
        drawer, share = self.drawer(seed=seed, label=label, warp=warp), _share(n, accelerator)
        batches = np.array_split(share, -(-len(share) // (batch_size or drawer.batch_size(len(share)))))
        steps = (reporter or Silent()).steps(range(len(batches)), "draw")
        mine = join([drawer(batches[step]) for step in steps])
        if accelerator is None or accelerator.num_processes == 1:
            return mine
        return _together(mine, n, accelerator)


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
    # gloo knows no int16
    codes = tuple(gather(level.int() if level.dtype == torch.int16 else level).to(level.dtype) for level in mine.codes)
    return Samples(gather(mine.images), codes, labels, mine.class_names, mine.vqvae_sha256)


def load(run: str | Path | None = None, *, device: str | torch.device = "cpu", precision: str = "float32") -> Model:
    """Load a run by its path alone; without one, the newest under runs/.

    The priors are loaded where those of all levels are finished. Raises CheckpointError when a model is missing,
    damaged, or when a prior was trained on the codes of another vqvae, and UsageError when there is no such device.
    """
    device = processes.find_device(device)
    folder = find_run(run, "vqvae")
    vqvae = load_vqvae(folder, device)
    levels = range(vqvae.config.model.levels)
    finished = all(is_finished(folder.prior(level)) for level in levels)
    priors = [load_prior(folder, level, vqvae.sha256, device) for level in levels] if finished else []
    if precision == "float64":
        for model in (vqvae.model, *(prior.model for prior in priors)):
            model.double()
    return Model(vqvae, tuple(priors))
