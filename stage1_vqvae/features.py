"""What an image becomes for use elsewhere, as by a classifier: how often it has each code, and pooled encoder outputs.

van den Oord et al. 2017, section 3, sees in codes what a representation learned without labels is for. Alain and Bengio
2016, "Understanding intermediate layers using linear classifier probes", measure what one is worth.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from stage1_vqvae.model import VQVAE

POOLED = 2  # rows and columns that maps are averaged to: where in the image something is tells of what it shows


@torch.no_grad()
def image_features(network: VQVAE, images: UInt8[Tensor, "n c h w"]) -> dict[str, Tensor]:
    """Features of images by name, a row an image; a number at the end of a name is that of the level, coarsest first.

    `encoder`: the encoder's outputs (n, hidden, 2, 2), the mean over each quarter of the map (1 in place of 2 where a
    side has one position). Of each level, `vectors0`: the same of what its bottleneck is given (n, dim, 2, 2), before
    the nearest code is looked for; and where codes are integers `histogram0`: how often each occurs (n, num_codes),
    which adds up to the number of positions. Where they are numbers, `latents`: all of them (n, dim, rows, columns).
    """
    outputs = network.encoder(network.normalise(images))
    features = {"encoder": pooled(outputs)}
    for level, (inputs, codes) in enumerate(network.levels.inputs_and_codes(outputs)):
        features[f"vectors{level}"] = pooled(inputs)
        if network.config.is_discrete:
            features[f"histogram{level}"] = histograms(codes, network.config.num_codes)
        else:
            features["latents"] = codes.float()
    return features


def histograms(codes: Int[Tensor, "n rows columns"], num_codes: int) -> Int[Tensor, "n num_codes"]:
    """How often each code occurs in each map, as int32."""
    flat = rearrange(codes, "n rows columns -> n (rows columns)")
    counts = torch.zeros(len(flat), num_codes, dtype=torch.int32, device=codes.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))


def pooled(maps: Float[Tensor, "n c rows columns"]) -> Float[Tensor, "n c height width"]:
    """Means over the quarters of maps, in float32. Quarters of an odd number of rows share the middle one."""
    rows, columns = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps.float(), (min(POOLED, rows), min(POOLED, columns)))
