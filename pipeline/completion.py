"""Complete an image: keep the codes of a part of it, draw the others."""

from collections.abc import Sequence
from math import log
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
_LOGITS = 2**24  # at a time, of all classes
_OF_ANY_CLASS = 0.1


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
    it makes the kept codes, where the others are those of the image grown over (a tenth of several candidates that are
    drawn before kept codes is of any class). Of several levels the coarsest is drawn
    whole before the next: kept codes of a fine level have a say in a coarse one by `candidates` alone, and are decoded
    together with it. Images are decoded from codes, kept pixels too.

    `options` are the fields of CompleteConfig and Warp. Raises UsageError, CheckpointError.
    """
    config, warp = build([CompleteConfig, Warp], options, {})
    folder = find_run(run, "samples")
    check_drawable(folder)
    model = load(folder.path, device=device or processes.start().device)
    if not model.vqvae.config.model.is_discrete:
        raise UsageError(f"the codes of {folder.path} are numbers, and no prior says how the rest follows from a part")
    drawer = model.drawer(seed=config.seed, label=label, warp=warp)
    assert isinstance(drawer, CodeDrawer)
    part = _part(model, image, kept)
    codes, weights = _draw(drawer, part, config.n, config.candidates)
    best = [number * config.candidates + chosen(own, config.seed, number) for number, own in enumerate(weights)]
    completed = tuple(level[best] for level in codes)
    return Completions(model.decode(completed), completed, part.mask)


class Part(NamedTuple):
    """What of an image is kept: its pixels; its codes, -1 in place of the others; and all codes of the image as it is
    where it is kept, grown over where it is not."""

    mask: Bool[np.ndarray, "h w"]
    known: Codes
    guessed: Codes


def _part(model: Model, image: np.ndarray | Tensor, kept: np.ndarray | Tensor | str) -> Part:
    config = model.vqvae.config.model
    size = (config.height, config.width)
    pixels = _array(image)
    mask = kept_side(kept, size) if isinstance(kept, str) else _array(kept)
    wrong = [
        f"the {name} is {given.dtype} {given.shape}, and must be {dtype} {shape}"
        for name, given, dtype, shape in (
            ("image", pixels, "uint8", (config.channels, *size)),
            ("mask", mask, "bool", size),
        )
        if given.dtype != dtype or given.shape != shape
    ]
    if wrong:
        raise UsageError("\n".join(wrong))
    if not mask.any():
        raise UsageError("nothing of the image is kept; `gen sample` draws whole images")
    guessed = model.encode(filled(pixels, mask)[None])
    known = kept_codes(mask, guessed)
    drawn = sum(int((level < 0).sum()) for level in known)
    if drawn in (0, sum(level.numel() for level in known)):
        nothing = "everything" if drawn == 0 else "nothing"
        patch = f"{size[0] // config.grids[-1][0]}x{size[1] // config.grids[-1][1]}"
        raise UsageError(f"{nothing} is kept of the codes, whose patches have {patch} pixels; keep another part")
    return Part(mask, known, guessed)


def _array(given: np.ndarray | Tensor) -> np.ndarray:
    return given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)


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


def _draw(drawer: CodeDrawer, part: Part, n: int, candidates: int) -> tuple[Codes, Float[np.ndarray, "n candidates"]]:
    """Candidates, as many at a time as memory allows, and ln of their weights: how probable what is kept is, less what
    the choice of their class has taken into account."""
    indices = np.arange(n * candidates)
    mixed = candidates > 1 and looks_ahead(part.known)
    proposal = _proposal(drawer, _kept_nats(drawer.priors, part), mixed) if _draws_classes(drawer) else None
    levels, weights = [], []
    for mine in np.array_split(indices, -(-len(indices) // drawer.batch_size(len(indices)))):
        labels, counted = labels_of(mine, drawer.label, drawer.seed, drawer.priors[0].config), torch.zeros(len(mine))
        if proposal is not None:
            labels = torch.from_numpy(_classes(proposal, drawer.seed, mine))
            counted = proposal.counted[labels]
        drawn = drawer.draw(mine, labels, tuple(level.expand(len(mine), -1, -1) for level in part.known))
        levels.append(drawn.codes)
        weights.append((drawn.of_known - counted).numpy())
    joined = tuple(torch.cat(level) for level in zip(*levels, strict=True))
    return joined, np.concatenate(weights).reshape(n, candidates)


def _draws_classes(drawer: CodeDrawer) -> bool:
    return drawer.label is None and drawer.priors[0].config.model.num_classes > 0


@torch.no_grad()
def _kept_nats(priors: Sequence[LoadedPrior], part: Part) -> Float[Tensor, "classes"]:
    """-ln p(kept codes | class), each given all codes before it, kept or guessed; empty without classes."""
    model = priors[0].model
    nats, device = torch.zeros(model.config.num_classes, dtype=torch.float64), next(model.parameters()).device
    guessed = [level.to(device) for level in part.guessed]
    for number, prior in enumerate(priors):
        kept, config = part.known[number].to(device) >= 0, prior.model.config
        classes = torch.arange(len(nats), device=device)
        at_a_time = max(1, _LOGITS // (config.positions * config.num_codes))
        for some in torch.split(classes, at_a_time) if kept.any() else ():
            maps = [level.expand(len(some), -1, -1) for level in guessed[: number + 1]]
            each = code_nats(prior.model, maps[-1], some, maps[:-1])
            nats[some.cpu()] += (each.double() * kept).sum((1, 2)).cpu()
    return nats


class Proposal(NamedTuple):
    """ln of the chance that a candidate is of each class; and how much of its weight that has counted already."""

    logits: Float[np.ndarray, "classes"]
    counted: Float[Tensor, "classes"]


def looks_ahead(known: Codes) -> bool:
    """Whether some code is drawn before one that is kept."""
    kept = torch.cat([level.flatten() for level in known]) >= 0
    return bool((kept[1:] & ~kept[:-1]).any())


def _proposal(drawer: CodeDrawer, nats: Float[Tensor, "classes"], mixed: bool) -> Proposal:
    """p(class) p(kept codes | class), or nine tenths of it: where it is a guess, some candidates are of any class."""
    weights = torch.tensor(drawer.priors[0].config.class_weights, dtype=torch.float64)
    usual = (weights / weights.sum()).log()  # -inf for a class that no training image has
    informed = (usual - nats).log_softmax(0)
    if mixed:
        chances = torch.logaddexp(informed + log(1 - _OF_ANY_CLASS), usual + log(_OF_ANY_CLASS))
        return Proposal(chances.numpy(), chances - usual)
    return Proposal(informed.numpy(), informed - usual)


def _classes(proposal: Proposal, seed: int, indices: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The class of each candidate, by seed and index."""
    noise = [stream(seed, Purpose.LABELS, int(index)).gumbel(size=len(proposal.logits)) for index in indices]
    return (proposal.logits + np.stack(noise)).argmax(1)


def chosen(log_weights: Float[np.ndarray, "n"], seed: int, index: int) -> int:
    """One of the candidates of completion `index`, drawn in proportion to the weights."""
    return int(np.argmax(log_weights + stream(seed, Purpose.CANDIDATES, index).gumbel(size=len(log_weights))))
