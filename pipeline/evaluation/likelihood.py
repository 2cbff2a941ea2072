"""How probable held-out codes are under the priors of a run: by class, and by position."""

from math import log
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import stage_errors_as_usage
from pipeline.evaluation.measures.means import mean_of
from pipeline.evaluation.parts import Labelled
from pipeline.evaluation.score import images_at_a_time
from pipeline.reporting import Reporter
from pipeline.runs.evaluation import Figure
from pipeline.sampling.inputs import batch_of
from pipeline.sampling.labels import class_probabilities
from pipeline.sampling.model import Model
from stage2_prior import code_nats, mixture_bits


class Likelihood(NamedTuple):
    """Nats of each code (n, height, width), an array a level, and of the pixels of each image given its codes (n) where
    the decoder is a likelihood."""

    levels: tuple[Float[np.ndarray, "n h w"], ...]
    pixels: Float[np.ndarray, "n"] | None


def likelihood(model: Model, images: Labelled, reporter: Reporter) -> Likelihood:
    """-ln p of the codes of images given their classes; of images without, under the mixture of all classes."""
    levels: list[tuple[Tensor, ...]] = []
    pixels: list[Tensor] = []
    size = images_at_a_time(model)
    with stage_errors_as_usage(), torch.no_grad(), model.arithmetic():
        for step in reporter.steps(range(-(-len(images.images) // size)), "nats"):
            batch = batch_of(images.images, step * size, size).to(model.device)
            codes = model.vqvae.network.encode(batch)
            labels = None if images.labels is None else images.labels[step * size : step * size + size]
            levels.append(_nats(model, codes, labels))
            nats = model.vqvae.network.pixel_nats(batch, codes)
            pixels += [] if nats is None else [nats.cpu()]
    joined = tuple(torch.cat(level).numpy() for level in zip(*levels, strict=True))
    return Likelihood(joined, torch.cat(pixels).numpy() if pixels else None)


def _nats(model: Model, codes: tuple[Tensor, ...], labels: np.ndarray | None) -> tuple[Float[Tensor, "n h w"], ...]:
    priors, config = [prior.network for prior in model.priors], model.priors[0].config
    if config.class_names and labels is None:
        return tuple(log(2) * level for level in mixture_bits(priors, codes, class_probabilities(None, config)))
    known = torch.from_numpy(labels).to(model.device) if config.class_names and labels is not None else None
    return tuple(
        code_nats(prior, level, known, codes[:index]).double().cpu()
        for index, (prior, level) in enumerate(zip(priors, codes, strict=True))
    )


def figures(found: Likelihood, values_per_image: int) -> dict[str, Figure]:
    """Nats per code, of each level where there are several; bits per image, and per dimension (a number a pixel value)
    where the decoder is a likelihood: a bound on -log2 p(image)."""
    per_image = [level.sum((1, 2)) for level in found.levels]
    positions = [level[0].size for level in found.levels]
    total = np.sum(per_image, 0)
    named = {"nats_per_code": mean_of(total / sum(positions))}
    if len(found.levels) > 1:
        for index, (nats, count) in enumerate(zip(per_image, positions, strict=True)):
            named[f"nats_per_code/{index}"] = mean_of(nats / count)
    named["bits_per_image"] = mean_of(total / log(2))
    if found.pixels is not None:
        named["bits_per_dim"] = mean_of((total + found.pixels) / log(2) / values_per_image)
    return named


def by_class(found: Likelihood, images: Labelled, class_names: tuple[str, ...]) -> dict[str, Figure]:
    """Nats per code of the images of each class that there are."""
    if images.labels is None:
        return {}
    positions = sum(level[0].size for level in found.levels)
    nats = np.sum([level.sum((1, 2)) for level in found.levels], 0) / positions
    chosen = {name: nats[images.labels == number] for number, name in enumerate(class_names)}
    return {name: mean_of(values) for name, values in chosen.items() if len(values)}
