"""Which images of a run are nearest to others by their codes. (By their pixels: measures/memory.py.)"""

from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pipeline import processes
from pipeline.config.arguments import NearestArguments
from pipeline.config.evaluation import NearestConfig
from pipeline.config.options import build
from pipeline.data.image_set import ImageSet
from pipeline.errors import UsageError, stage_errors_as_usage
from pipeline.evaluation.parts import Source, read_encoded
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.sampling.inputs import Images, check_images
from pipeline.sampling.model import Model, loaded
from pipeline.storage import check_paths
from pipeline.training.launch import Launch
from stage1_vqvae import Codes

_VALUES = 2**22  # numbers of code vectors at a time, on either side


@dataclass(frozen=True)
class Neighbours:
    """Of each image given the k nearest ones of a run, the nearest first: their indices in the run's images, and their
    distances. `of_run` are those images, all of them."""

    indices: Int[np.ndarray, "n k"]
    distances: Float[np.ndarray, "n k"]
    of_run: ImageSet

    def images(self, index: int) -> UInt8[np.ndarray, "k c h w"]:
        """Those nearest to the image of this index."""
        return self.of_run.images[self.indices[index]]

    def names(self, index: int) -> list[str]:
        """What they are called: files by their names, others by their number."""
        return [self.of_run.names[int(i)] if self.of_run.names else str(i) for i in self.indices[index]]


def nearest(
    run: str | Path | Model | None,
    images: Images,
    *,
    data: str | Path | np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[NearestArguments],
) -> Neighbours:
    """The images of a run (a folder, a loaded one, or by default the newest) nearest to others, uint8 (n, c, h, w).

    The distance is Euclidean, between what the decoder is given for the codes: the vectors of all positions, summed
    over levels. Unlike the number of positions with equal codes it knows that codes may be alike. Looked through is
    what the run was trained on or validated with, not its test part. `data`: where these images are now, if not where
    they were; or the array that they were given as, with its `targets`. `options` are the fields of NearestConfig.
    Raises UsageError, also when the images do not fit, DataError and CheckpointError.
    """
    check_paths(run=None if isinstance(run, Model) else run, data=data if isinstance(data, str | Path) else None)
    (config,) = build(options, NearestConfig)
    model = loaded(run, "vqvae", device)
    given = check_images(images, model.vqvae.config.model)
    if not len(given):
        raise UsageError("there are no images to find others for; give one at least")
    launch = Launch({}, processes.start(), reporter or reporter_for_api(), None)
    given_again = Source(images=data, targets=targets) if isinstance(data, np.ndarray | Tensor) else None
    source = given_again or Source(None if data is None else str(data))
    of_run, indices = read_encoded(model.run, source, launch)
    if config.k > len(indices):
        raise UsageError(f"--k {config.k}: {model.run.called} has {len(indices):,} images to look through")
    with stage_errors_as_usage(), model.arithmetic(), torch.no_grad():
        return _nearest(model, model.encode(given), of_run, indices, config.k, launch.reporter)


def _nearest(
    model: Model, codes: Codes, of_run: ImageSet, indices: Int[np.ndarray, "m"], k: int, reporter: Reporter
) -> Neighbours:
    """Of either side a few images at a time; between two steps the k best so far are kept."""
    size = _images_at_a_time(model)
    best = torch.full((len(codes[0]), k), torch.inf, dtype=torch.float64)
    found = torch.zeros(len(codes[0]), k, dtype=torch.int64)
    for step in reporter.steps(range(-(-len(indices) // size)), "nearest"):
        part = indices[step * size : step * size + size]
        there = _vectors(model, model.encode(of_run.images[part]))
        for start in range(0, len(best), size):
            own = slice(start, start + size)
            distances = _distances(_vectors(model, tuple(level[own] for level in codes)), there).cpu()
            candidates = torch.cat([found[own], torch.from_numpy(part).expand(len(distances), -1)], 1)
            # Stable, so that of equally near images the first stays.
            ordered = torch.cat([best[own], distances], 1).sort(dim=1, stable=True)
            best[own], found[own] = ordered.values[:, :k], candidates.gather(1, ordered.indices[:, :k])
    return Neighbours(found.numpy(), best.numpy(), of_run)


def _images_at_a_time(model: Model) -> int:
    """Fewer where one has many vectors."""
    config = model.vqvae.config.model
    values = config.hidden * config.grids[-1][0] * config.grids[-1][1]
    return max(1, min(model.images_at_a_time, _VALUES // values))


def _vectors(model: Model, codes: Codes) -> Float[Tensor, "n values"]:
    """What the decoder is given, in float64: a distance is the small difference of large numbers."""
    vectors = model.vqvae.network.levels.decode(tuple(level.to(model.device) for level in codes))
    return rearrange(vectors.double(), "n dim rows columns -> n (dim rows columns)")


def _distances(ours: Float[Tensor, "n values"], theirs: Float[Tensor, "m values"]) -> Float[Tensor, "n m"]:
    squares = ours.square().sum(1, keepdim=True) + theirs.square().sum(1) - 2 * ours @ theirs.T
    return squares.clamp(min=0).sqrt()
