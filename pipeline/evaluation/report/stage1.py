"""What stage 1 keeps of an image, and what its codes stand for: pictures."""

from collections.abc import Iterator

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.errors import GenError
from pipeline.evaluation.report.blocks import Block, Figure, Missing, Panel, Section
from pipeline.evaluation.report.images import strip, tiles
from pipeline.evaluation.report.shown import Shown
from pipeline.sampling.model import Model, load
from pipeline.sampling.motion.interpolate import exchanged_codes, mixtures
from stage1_vqvae import Codes
from stage1_vqvae.bottlenecks.codebook import count_codes

_IMAGES = 10  # in a row
_MOST_USED = 36  # codes with their fractions
_MOST_CODES = 4096  # in a picture
_MIXTURES = 9  # from one image to another
_UNITS, _REACH = 5, 3.0  # of a continuous bottleneck, and how many standard deviations each is moved


def stage1_sections(shown: Shown) -> list[Section]:
    """Reconstructions, the codebook, and what lies between two images."""
    model = shown.model
    titles = {"originals": "Originals and reconstructions", "codes": "The codebook", "between": "Between two images"}
    made = {"originals": _reconstructions, "codes": _atlas, "between": _interpolations}
    if not model.vqvae.config.model.is_discrete:
        titles["codes"], made["codes"] = "Single units", _single_units
    sections = []
    for name, title in titles.items():
        try:
            blocks: list[Block] = list(made[name](shown))
        except GenError as error:
            blocks = [Missing("Left out", str(error))]
        sections.append(Section(name, title, blocks))
    return sections


def _reconstructions(shown: Shown) -> Iterator[Block]:
    """Images above what codes keep of them: by the decoders there are, and by the first levels alone."""
    originals = shown.first(_IMAGES)
    given = torch.from_numpy(originals.copy())
    panels = [Panel("original", strip(originals, f"{len(originals)} images of {shown.name}"))]
    for levels in range(1, shown.model.vqvae.config.model.levels + 1):
        restored = shown.model.reconstruct(given, levels).numpy()
        panels.append(Panel(_first_levels(shown.model, levels), strip(restored, f"the same, {levels} levels of codes")))
    if shown.model.run.sharp is not None:
        plain = load(shown.model.run.folder.path, device=shown.model.device, decoder="plain").reconstruct(given).numpy()
        panels.insert(1, Panel("plain decoder", strip(plain, "the same, reconstructed by the plain decoder")))
    yield Figure(
        "What the codes keep",
        panels,
        f"Images of {shown.name}. No sample can be sharper than a reconstruction. Look for small things that have gone "
        "and for edges that have softened: blur that is seen here will be in every sample. Colours that differ, or "
        "blocks along the grid of codes, mean that stage 1 was stopped too early.",
    )


def _first_levels(model: Model, levels: int) -> str:
    there = model.vqvae.config.model.levels
    if levels < there:
        return f"level 0 to {levels - 1}" if levels > 1 else "level 0 alone"
    return "sharp decoder" if model.run.sharp is not None else "reconstruction"


def _atlas(shown: Shown) -> Iterator[Block]:
    """Of each level all codes decoded, the most frequent first."""
    try:
        counted, why_not = shown.codes_to_count(), ""
    except GenError as error:
        counted, why_not = (), str(error)
    if why_not:
        yield Missing("How often each code occurs", f"{why_not} Codes are in the order of their numbers.")
    for level in range(shown.model.vqvae.config.model.levels):
        fractions = _fractions(shown.model, counted[level]) if counted else None
        yield from _atlas_of(shown.model, level, fractions, counted)


def _fractions(model: Model, codes: Tensor) -> Float[np.ndarray, "k"]:
    counts = count_codes(codes.long(), model.vqvae.config.model.num_codes).double().cpu().numpy()
    return counts / max(1, counts.sum())


def _atlas_of(model: Model, level: int, fractions: Float[np.ndarray, "k"] | None, counted: Codes) -> Iterator[Block]:
    number = model.vqvae.config.model.num_codes
    order = np.arange(number) if fractions is None else np.argsort(-fractions, kind="stable")
    order = order[:_MOST_CODES]
    decoded = decoded_codes(model, level, order, counted)
    of_level = f" of level {level}" if model.vqvae.config.model.levels > 1 else ""
    if fractions is not None:
        names = [f"{fractions[code]:.1%}" for code in order[:_MOST_USED]]
        alts = [f"code {code}, {name} of all" for code, name in zip(order[: len(names)], names, strict=True)]
        pictures = tiles(decoded[: len(names)], alts)
        yield Figure(
            f"The {len(names)} most frequent codes{of_level}, with their fraction",
            [Panel(name, picture) for name, picture in zip(names, pictures, strict=True)],
            "Each is a map of this one code, decoded, cut out of its middle. Backgrounds come first. One code that "
            "takes most of the map is fine where images are mostly background; elsewhere the codebook is collapsing.",
            "tiles",
        )
    used = (
        ""
        if fractions is None
        else f" {int((fractions > 0).sum()):,} of {number:,} codes occur in {len(counted[0]):,} images."
    )
    most = "" if number <= len(order) else f" Of {number:,} codes the first {len(order):,} are shown."
    columns = int(np.ceil((len(order) * 2) ** 0.5))
    yield Figure(
        f"All codes{of_level}",
        [Panel("", strip(decoded, f"all codes{of_level}, decoded, the most frequent first", min(columns, 64)))],
        f"The most frequent first, row by row.{used}{most} They should differ: many that are alike, above all near the "
        "end, are codes that the model can do without.",
    )


def decoded_codes(model: Model, level: int, codes: np.ndarray, counted: Codes = ()) -> UInt8[np.ndarray, "n c h w"]:
    """A map of each code, decoded, of which the middle is kept: two by two codes. Coarser levels have everywhere the
    code that is most frequent there, finer ones are left at their mean."""
    config, own = model.vqvae.config.model, torch.from_numpy(codes.copy())
    coarser = [int(counted[above].flatten().mode().values) if counted else 0 for above in range(level)]
    maps = [torch.full((len(own), *config.grids[above]), code) for above, code in enumerate(coarser)]
    rows, columns = config.grids[level]
    images = model.decode((*maps, repeat(own, "n -> n h w", h=rows, w=columns))).numpy()
    height, width = 2 * config.height // rows, 2 * config.width // columns
    top, left = max(0, (config.height - height) // 2), max(0, (config.width - width) // 2)
    return images[:, :, top : top + height, left : left + width]


def _interpolations(shown: Shown) -> Iterator[Block]:
    """From one image to another in pixels, between the vectors of their codes, and a code at a time."""
    model = shown.model
    ends = shown.first(2)
    if len(ends) < 2:
        yield Missing("Left out", f"There are not two images in {shown.name}.")
        return
    weights = np.linspace(0, 1, _MIXTURES)
    cross_faded = np.stack([(1 - weight) * ends[0] + weight * ends[1] for weight in weights]).round().astype(np.uint8)
    codes = model.encode(torch.from_numpy(ends.copy()))
    panels = [Panel("pixels", strip(cross_faded, "a cross-fade from one image to another"))]
    name = "latent space" if not model.vqvae.config.model.is_discrete else "between codes"
    panels.append(Panel(name, strip(mixtures(model, codes, weights), f"the same, {name}")))
    if model.vqvae.config.model.is_discrete:
        exchanged = model.decode(exchanged_codes(codes, weights)).numpy()
        panels.append(Panel("code by code", strip(exchanged, "the codes of one image replaced by those of the other")))
    yield Figure(
        "From one image to another",
        panels,
        "A cross-fade shows both images at once. Between codes, or in the latent space, things should change their "
        "form instead; what looks like a cross-fade is a code that knows textures and no shapes, as maps of many "
        "small patches do.",
    )


def _single_units(shown: Shown) -> Iterator[Block]:
    """The units of the greatest variance, each moved alone from one side of its mean to the other."""
    model, latents = shown.model, shown.codes[0].float()
    means, deviations = latents.mean(0, keepdim=True), latents.std((0, 2, 3)) if len(latents) > 1 else latents[0] * 0
    moved = np.linspace(-_REACH, _REACH, _MIXTURES)
    panels = []
    for unit in deviations.argsort(descending=True)[:_UNITS].tolist():
        images = model.decode((moved_unit(means, unit, float(deviations[unit]), moved),)).numpy()
        panels.append(Panel(f"unit {unit}", strip(images, f"unit {unit} moved from -3 to 3 standard deviations")))
    yield Figure(
        "Units of the greatest variance",
        panels,
        "The mean of all codes, with one unit moved by -3 to 3 standard deviations everywhere in the map. A row in "
        "which nothing changes is a unit that the decoder ignores; many of those are posterior collapse.",
    )


def moved_unit(
    means: Float[Tensor, "1 dim h w"], unit: int, deviation: float, moved: Float[np.ndarray, "m"]
) -> Float[Tensor, "m dim h w"]:
    """Latents with one unit moved by so many standard deviations."""
    latents = means.expand(len(moved), -1, -1, -1).clone()
    latents[:, unit] += torch.from_numpy(moved * deviation).float()[:, None, None]
    return latents
