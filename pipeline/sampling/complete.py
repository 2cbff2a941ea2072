"""Complete an image: keep the codes of a part of it, draw the others."""

from pathlib import Path
from typing import Literal, NamedTuple, Unpack, get_args

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline.config.arguments import CompleteArguments
from pipeline.config.options import build
from pipeline.config.sampling import CompleteConfig, DecoderName
from pipeline.data.codes.maps import join_levels
from pipeline.errors import UsageError
from pipeline.randomness import Purpose, stream
from pipeline.resources import check_memory
from pipeline.sampling.inputs import as_array
from pipeline.sampling.labels import Label, labels_of
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.samplers import CodeSampler
from stage1_vqvae import Codes
from stage2_prior import (
    ClassProposal,
    SamplingOptions,
    Watch,
    choose_candidate,
    draw_classes,
    draws_before_known,
    known_nats_per_class,
    propose_classes,
)

Side = Literal["top", "bottom", "left", "right"]


class Completions(NamedTuple):
    """Completed images (n, c, h, w), decoded as a whole, their codes, and which pixels were kept."""

    images: UInt8[Tensor, "n c h w"]
    codes: Codes
    kept: Bool[np.ndarray, "h w"]


def complete(
    run: str | Path | Model | None,
    image: UInt8[np.ndarray, "c h w"] | UInt8[Tensor, "c h w"],
    kept: Bool[np.ndarray, "h w"] | str,
    *,
    label: Label = None,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    watch: Watch | None = None,
    **options: Unpack[CompleteArguments],
) -> Completions:
    """Completions of an image, of which the pixels `kept` are known (a mask, or a side such as "top:0.5").

    A code is kept where its whole patch is; pixels that are not kept are not looked at. The other codes are drawn in
    raster order, each given all codes before it, kept or drawn; it cannot look ahead: what is kept below or to the
    right of a drawn code stays as it is, and did not influence it. With several `candidates` it does: of so many draws
    one is chosen, each in proportion to the probability of the codes kept after it (sampling importance resampling,
    Rubin 1987), which approaches p(rest | kept) as they grow in number, at guidance and temperature 1. Without `label`
    the class is drawn in proportion to the probability of the kept codes, where the others are those of the image
    extended over what is not kept (a tenth of several candidates that are drawn before kept codes is of any class). Of
    several levels the coarsest is drawn whole before the next: kept codes of a fine level influence a coarse one
    through `candidates` alone, and are decoded together with it. Images are decoded from codes, kept pixels too.

    `run`: a folder, a loaded run, or by default the newest. `decoder`: as of `load`. `watch` is shown the codes of all
    candidates before each row of them, -1 where none is drawn yet, and ends the drawing there by raising an error.
    `options` are the fields of CompleteConfig and SamplingOptions. Raises UsageError, CheckpointError, and
    ResourceError for more than memory holds.
    """
    config, sampling = build(options, CompleteConfig, SamplingOptions)
    model = loaded(run, "samples", device, decoder=decoder)
    if not model.vqvae.config.model.is_discrete:
        raise UsageError(
            f"the codes of {model.run.called} are numbers, and no prior says how the rest follows from a part"
        )
    sampler = model.sampler(seed=config.seed, label=label, options=sampling, watch=watch)
    assert isinstance(sampler, CodeSampler)
    part = _part(model, image, kept)
    codes, weights = _candidates(sampler, part, config.n, config.candidates)
    noise = _gumbel_noise(config.seed, Purpose.CANDIDATES, np.arange(config.n), config.candidates)
    chosen = map(choose_candidate, weights, noise)
    best = [completion * config.candidates + candidate for completion, candidate in enumerate(chosen)]
    completed = tuple(level[best] for level in codes)
    return Completions(model.decode(completed), completed, part.mask)


class Part(NamedTuple):
    """What of an image is kept: its pixels; its codes, -1 in place of the others; and the codes of the image extended
    over what is not kept, as a context for the kept ones."""

    mask: Bool[np.ndarray, "h w"]
    known: Codes
    context: Codes


def _part(model: Model, image: np.ndarray | Tensor, kept: np.ndarray | Tensor | str) -> Part:
    config = model.vqvae.config.model
    size = (config.height, config.width)
    pixels = as_array(image, "the image")
    mask = kept_side(kept, size) if isinstance(kept, str) else as_array(kept, "the mask")
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
    context = model.encode(extended(pixels, mask)[None])
    known = known_codes(mask, context)
    drawn = sum(int((level < 0).sum()) for level in known)
    if drawn in (0, sum(level.numel() for level in known)):
        nothing = "everything" if drawn == 0 else "nothing"
        patch = f"{size[0] // config.grids[-1][0]}x{size[1] // config.grids[-1][1]}"
        raise UsageError(f"{nothing} is kept of the codes, whose patches have {patch} pixels; keep another part")
    return Part(mask, known, context)


def kept_side(keep: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels of a side, such as top:0.5, the upper half. Raises UsageError.

    >>> kept_side("left:0.67", (2, 3)).tolist()
    [[True, True, False], [True, True, False]]
    """
    side, _, number = keep.partition(":")
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if side not in get_args(Side) or not 0 < fraction < 1:
        raise UsageError(f"--keep {keep} names no part; write SIDE:FRACTION, as top:0.5 (or bottom, left, right)")
    rows, columns = np.indices(size)
    along, length = (rows, size[0]) if side in ("top", "bottom") else (columns, size[1])
    measured = along if side in ("top", "left") else length - 1 - along
    return measured < round(fraction * length)


def extended(image: UInt8[np.ndarray, "c h w"], kept: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "c h w"]:
    """The image with what is not kept filled from its border, ring by ring, since an encoder's windows reach there."""
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


def known_codes(kept: Bool[np.ndarray, "h w"], codes: Codes) -> Codes:
    """The codes whose whole patch is kept; -1 in place of the others."""
    known = []
    for level in codes:
        rows, columns = (size // cells for size, cells in zip(kept.shape, level.shape[1:], strict=True))
        whole = reduce(kept, "(h rows) (w columns) -> h w", "min", rows=rows, columns=columns)
        known.append(torch.where(torch.from_numpy(whole), level.long(), -1))
    return tuple(known)


def _candidates(
    sampler: CodeSampler, part: Part, n: int, candidates: int
) -> tuple[Codes, Float[Tensor, "n candidates"]]:
    """Candidates, as many at a time as memory allows, and ln of their importance weights: the probability of the known
    codes, less what the choice of the class has used of it already."""
    check_memory(
        torch.device("cpu"),
        2 * n * candidates * sampler.bytes_per_image,
        f"drawing {n:,} completions from {candidates:,} candidates each",
        "choose a smaller --n or --candidates",
    )
    indices = np.arange(n * candidates)
    config = sampler.priors[0].config
    proposal = _propose(sampler, part, candidates) if sampler.label is None and config.class_names else None
    codes, weights = [], []
    for batch in np.array_split(indices, -(-len(indices) // sampler.batch_size(len(indices)))):
        labels, used = labels_of(batch, sampler.label, sampler.seed, config), torch.zeros(len(batch))
        if proposal is not None:
            labels = draw_classes(proposal, _gumbel_noise(sampler.seed, Purpose.LABELS, batch, len(proposal.logits)))
            used = proposal.log_weights[labels]
        sampled = sampler.sample_codes(batch, labels, tuple(level.expand(len(batch), -1, -1) for level in part.known))
        codes.append(sampled.codes)
        weights.append(sampled.known_log_probability - used)
    return join_levels(codes), torch.cat(weights).reshape(n, candidates)


def _propose(sampler: CodeSampler, part: Part, candidates: int) -> ClassProposal:
    nats = known_nats_per_class([prior.network for prior in sampler.priors], part.known, part.context)
    weights = torch.tensor(sampler.priors[0].config.class_weights, dtype=torch.float64)
    return propose_classes(weights, nats, mixed=candidates > 1 and draws_before_known(part.known))


def _gumbel_noise(seed: int, purpose: Purpose, indices: Int[np.ndarray, "n"], size: int) -> Float[Tensor, "n size"]:
    """Standard Gumbel noise of this size for each index, a function of that index."""
    return torch.from_numpy(np.stack([stream(seed, purpose, int(index)).gumbel(size=size) for index in indices]))
