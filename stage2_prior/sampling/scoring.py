"""How probable codes are under the priors of all levels."""

from collections.abc import Mapping, Sequence
from math import log

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Prior, code_nats


@torch.no_grad()
def mixture_bits(
    priors: Sequence[Prior],
    codes: Sequence[Int[Tensor, "n _ _"]],
    class_probabilities: Mapping[int | None, float],
) -> tuple[Float[Tensor, "n _ _"], ...]:
    """-log2 p of each code given all before it, under the mixture of classes: a float64 map per level, on the CPU.

    `codes` has all levels, coarsest first, on the device of the priors. `class_probabilities` are above 0 and sum to 1;
    {None: 1.0} for priors without classes. p(z_t | z_<t) = p(z_<=t) / p(z_<t), and each of these is a sum over classes;
    t counts the codes of all levels in the order of sampling.
    """
    joint = []
    for number, probability in class_probabilities.items():
        labels = None if number is None else torch.full((len(codes[0]),), number, device=codes[0].device)
        nats = [
            code_nats(prior, level, labels, codes[:index]).double().flatten(1)
            for index, (prior, level) in enumerate(zip(priors, codes, strict=True))
        ]
        joint.append(log(probability) - torch.cat(nats, 1).cumsum(1))
    prefixes = torch.stack(joint).logsumexp(0)  # ln p(z_<=t)
    before = torch.cat([torch.zeros_like(prefixes[:, :1]), prefixes[:, :-1]], 1)
    bits = ((before - prefixes) / log(2)).cpu()
    sizes = [level[0].numel() for level in codes]
    levels = zip(torch.split(bits, sizes, 1), codes, strict=True)
    return tuple(rearrange(flat, "n (h w) -> n h w", h=level.shape[1]) for flat, level in levels)
