"""Complete an image: keep the codes of a part of it, draw the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipeline import processes
from pipeline.drawers import CodeDrawer
from pipeline.errors import UsageError
from pipeline.labels import Label, labels_of
from pipeline.model import Model, load
from pipeline.options import build
from pipeline.randomness import Purpose, stream
from pipeline.run import LoadedPrior, check_drawable, find_run
from stage1_vqvae import Codes
from stage2_prior import Warp, code_nats

Side = Literal["top", "bottom", "left", "right"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CompleteConfig:
    """How many completions, and with how much care."""

    n: int = Field(default=8, ge=1, description="Completions to draw.")
    candidates: int = Field(
        default=1,
        ge=1,
        description="Draws for each completion, of which one is chosen by how well it fits what is kept after it.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the drawn codes.")


class Completions(NamedTuple):
    """Completed images (n, c, h, w), decoded as a whole, their codes, and which pixels were kept."""

    images: UInt8[Tensor, "n c h w"]
    codes: Codes
    kept: Bool[np.ndarray, "h w"]


def complete(
    run: str | Path | None,
    image: UInt8[np.ndarray, "c h w"] | UInt8[Tensor, "c h w"],
    kept: Bool[np.ndarray, "h w"] | str,
    *,
    label: Label = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Completions:
    """Completions of an image, of which the pixels `kept` are known (a mask, or a side such as "top:0.5").

    A code is kept where its whole patch is; pixels that are not kept are not looked at. The other codes are drawn in
    raster order, each given all codes before it, kept or drawn; it cannot look ahead: what is kept below or to the
    right of a drawn code stands, but had no say in it. With several `candidates` it has: of so many draws one is
    chosen, each as probable as it makes the codes kept after it (sampling importance resampling, Rubin 1987), which
    nears p(rest | kept) as they grow in number, at temperature 1. Without `label` the class is drawn by how probable
    the first kept codes make it. Images are decoded from codes, kept pixels too.

    `options` are the fields of CompleteConfig and Warp. Raises UsageError, CheckpointError, VQVAEError when the image
    does not fit.
    """
    config, warp = build([CompleteConfig, Warp], options, {})
    folder = find_run(run, "samples")
    check_drawable(folder)
    model = load(folder.path, device=device or processes.start().device)
    if not model.vqvae.config.model.is_discrete:
        raise UsageError(f"the codes of {folder.path} are numbers, and no prior says how the rest follows from a part")
    drawer = model.drawer(seed=config.seed, label=label, warp=warp)
    assert isinstance(drawer, CodeDrawer)
    known, mask = _known(model, torch.as_tensor(image), kept)
    indices = np.arange(config.n * config.candidates)
    codes, weights = _draw(drawer, known, indices)
    groups = weights.reshape(config.n, config.candidates)
    best = [number * config.candidates + chosen(own, config.seed, number) for number, own in enumerate(groups)]
    completed = tuple(level[best] for level in codes)
    return Completions(model.decode(completed), completed, mask)


def _known(
    model: Model, image: UInt8[Tensor, "c h w"], kept: Bool[np.ndarray, "h w"] | str
) -> tuple[Codes, Bool[np.ndarray, "h w"]]:
    config = model.vqvae.config.model
    size = (config.height, config.width)
    mask = kept_side(kept, size) if isinstance(kept, str) else kept
    if mask.shape != size:
        raise UsageError(f"the mask has {mask.shape} pixels, and images of this run {size}")
    if not mask.any():
        raise UsageError("nothing of the image is kept; `gen sample` draws whole images")
    known = kept_codes(mask, model.encode(torch.from_numpy(filled(image.numpy(), mask))[None]))
    drawn = sum(int((level < 0).sum()) for level in known)
    if drawn in (0, sum(level.numel() for level in known)):
        nothing = "everything" if drawn == 0 else "nothing"
        patch = f"{size[0] // config.grids[-1][0]}x{size[1] // config.grids[-1][1]}"
        raise UsageError(f"{nothing} is kept of the codes, whose patches have {patch} pixels; keep another part")
    return known, mask


def kept_side(keep: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels of a side, such as top:0.5, the upper half. Raises UsageError."""
    side, _, share = keep.partition(":")
    try:
        fraction = float(share)
    except ValueError:
        fraction = -1.0
    if side not in get_args(Side) or not 0 < fraction < 1:
        raise UsageError(f"--keep {keep} names no part; write SIDE:SHARE, as top:0.5 (or bottom, left, right)")
    rows, columns = np.indices(size)
    along, length = (rows, size[0]) if side in ("top", "bottom") else (columns, size[1])
    measured = along if side in ("top", "left") else length - 1 - along
    return measured < round(fraction * length)


def filled(image: UInt8[np.ndarray, "c h w"], kept: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "c h w"]:
    """The image with what is not kept grown over from its border, ring by ring: an encoder's windows look there."""
    pixels, known = np.where(kept, image, 0).astype(np.float64), kept.astype(np.float64)
    while not known.all():
        around = [np.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)]) for x in (pixels * known, known)]
        sums, counts = (
            sum(x[..., i : i + kept.shape[0], j : j + kept.shape[1]] for i in range(3) for j in range(3))
            for x in around
        )
        pixels = np.where(known > 0, pixels, sums / np.maximum(counts, 1))
        known = np.maximum(known, counts > 0)
    return pixels.round().astype(np.uint8)


def kept_codes(kept: Bool[np.ndarray, "h w"], codes: Codes) -> Codes:
    """The codes whose whole patch is kept; -1 in place of the others."""
    known = []
    for level in codes:
        rows, columns = (size // cells for size, cells in zip(kept.shape, level.shape[1:], strict=True))
        whole = reduce(kept, "(h rows) (w columns) -> h w", "min", rows=rows, columns=columns)
        known.append(torch.where(torch.from_numpy(whole), level.long(), -1))
    return tuple(known)


def _draw(drawer: CodeDrawer, known: Codes, indices: Int[np.ndarray, "n"]) -> tuple[Codes, Float[np.ndarray, "n"]]:
    """Candidates, as many at a time as memory allows, and ln of their weights: how probable what is kept is, less what
    the choice of their class has taken into account."""
    leading = _leading_nats(drawer.priors, known) if drawer.label is None else torch.zeros(0)
    parts, weights = [], []
    for part in np.array_split(indices, -(-len(indices) // drawer.batch_size(len(indices)))):
        labels, counted = labels_of(part, drawer.label, drawer.seed, drawer.priors[0].config), torch.zeros(len(part))
        if len(leading):
            labels = torch.from_numpy(_classes(drawer, leading, part))
            counted = -leading[labels]
        drawn = drawer.draw(part, labels, tuple(level.expand(len(part), -1, -1) for level in known))
        parts.append(drawn.codes)
        weights.append((drawn.of_known - counted).numpy())
    return tuple(torch.cat(level) for level in zip(*parts, strict=True)), np.concatenate(weights)


@torch.no_grad()
def _leading_nats(priors: Sequence[LoadedPrior], known: Codes) -> Float[Tensor, "classes"]:
    """-ln p(the codes kept before the first that is drawn | class), in the order of drawing; empty without classes."""
    classes = priors[0].config.model.num_classes
    nats, device = torch.zeros(classes, dtype=torch.float64), next(priors[0].model.parameters()).device
    repeated = [level.expand(classes, -1, -1).to(device) for level in known]
    for number, prior in enumerate(priors if classes else ()):
        level = repeated[number]
        before = (level[0].flatten() < 0).cumsum(0) == 0
        each = code_nats(prior.model, level.clamp(min=0), torch.arange(classes, device=device), repeated[:number])
        nats += (each.flatten(1).double() * before).sum(1).cpu()
        if not before.all():
            break
    return nats


def _classes(
    drawer: CodeDrawer, leading: Float[Tensor, "classes"], indices: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
    """The class of each candidate, drawn in proportion to p(class) p(first kept codes | class), by seed and index."""
    with np.errstate(divide="ignore"):  # a class that no training image has
        logits = np.log(np.array(drawer.priors[0].config.class_weights)) - leading.numpy()
    noise = [stream(drawer.seed, Purpose.LABELS, int(index)).gumbel(size=len(logits)) for index in indices]
    return (logits + np.stack(noise)).argmax(1)


def chosen(log_weights: Float[np.ndarray, "n"], seed: int, index: int) -> int:
    """One of the candidates of completion `index`, drawn in proportion to the weights."""
    return int(np.argmax(log_weights + stream(seed, Purpose.CANDIDATES, index).gumbel(size=len(log_weights))))
