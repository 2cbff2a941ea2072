"""What stage 1 keeps of images that it has not seen."""

from math import log2

import numpy as np
from jaxtyping import UInt8

from pipeline.evaluation.measures.fidelity import high_frequency_power, similarities, squared_errors
from pipeline.evaluation.measures.means import mean_of, psnr_of, ratio_of
from pipeline.evaluation.parts import Labelled
from pipeline.evaluation.yardstick import Yardstick
from pipeline.runs.evaluation import Figure
from pipeline.sampling.model import Model
from stage1_vqvae import Codes
from stage1_vqvae.bottlenecks.codebook import count_codes, perplexity


def stage1_figures(
    model: Model, images: Labelled, codes: Codes, restored: UInt8[np.ndarray, "n c h w"], yardstick: Yardstick
) -> dict[str, Figure]:
    """Error of reconstructions, what they keep of detail and of their class, and use and cost of the codes."""
    original = images.images
    errors = squared_errors(original, restored)
    variance = float(model.vqvae.network.data_variance)
    found = {"nmse": mean_of(errors / variance), "psnr": psnr_of(errors)}
    similar = similarities(original, restored)
    if similar is not None:
        found["ssim"] = mean_of(similar)
    found["high_frequency_power"] = ratio_of(high_frequency_power(restored), high_frequency_power(original))
    if yardstick.with_classes and images.labels is not None:
        found["class_shown"] = mean_of(yardstick.judge.is_right(restored, images.labels).astype(float))
    return found | _of_codes(model, codes)


def _of_codes(model: Model, codes: Codes) -> dict[str, Figure]:
    config = model.vqvae.config.model
    if not config.is_discrete:
        return {}
    found = {}
    for level, maps in enumerate(codes):
        counts = count_codes(maps.long(), config.num_codes)
        suffix = f"/{level}" if len(codes) > 1 else ""
        found[f"codebook_usage{suffix}"] = Figure(float((counts > 0).double().mean()))
        found[f"perplexity{suffix}"] = Figure(float(perplexity(counts)))
    bits = sum(rows * columns for rows, columns in config.grids) * log2(config.num_codes)
    pixels = config.height * config.width
    return {**found, "code_bits_per_image": Figure(bits), "code_bits_per_pixel": Figure(bits / pixels)}
