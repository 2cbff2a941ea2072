"""The arithmetic of a codebook as pure functions: nearest codes, sums over codes, k-means, perplexity.

No matrix of all vectors by all codes is ever held, and nothing is one-hot: see `nearest_codes` and `code_sums`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK_BYTES = 8 * 2**20  # scores of one block of vectors against all codes: about a last-level cache


def nearest_codes(vectors: Float[Tensor, "n dim"], codebook: Float[Tensor, "codes dim"]) -> Int[Tensor, "n"]:
    """The index of the nearest code of each vector, by Euclidean distance.

    argmin |z - e|^2 = argmax (z.e - |e|^2 / 2): one matrix product a block, with the bias folded in.
    """
    bias = -0.5 * codebook.square().sum(1)
    block = max(1, BLOCK_BYTES // (codebook.shape[0] * codebook.element_size()))
    indices = [torch.addmm(bias, part, codebook.T).argmax(1) for part in torch.split(vectors, block)]
    return torch.cat(indices)


def code_sums(vectors: Float[Tensor, "n dim"], codes: Int[Tensor, "n"], num_codes: int) -> Float[Tensor, "codes dim+1"]:
    """For each code the sum of its vectors and, in the last column, their number."""
    ones = vectors.new_ones(vectors.shape[0], 1)
    sums = vectors.new_zeros(num_codes, vectors.shape[1] + 1)
    return sums.index_add_(0, codes, torch.cat([vectors, ones], 1))


def perplexity(counts: Float[Tensor, "codes"]) -> Float[Tensor, ""]:
    """exp of the entropy of the code histogram: how many codes, used equally, would carry as much."""
    probabilities = counts / counts.sum().clamp(min=1)
    return torch.special.entr(probabilities).sum().exp()


class Clusters(NamedTuple):
    """Centres and how many vectors each of them stands for."""

    centres: Float[Tensor, "codes dim"]
    counts: Float[Tensor, "codes"]


def k_means(
    vectors: Float[Tensor, "n dim"], num_codes: int, generator: torch.Generator, iterations: int = 10
) -> Clusters:
    """Lloyd's algorithm from random distinct vectors; an empty cluster is moved onto a random vector.

    With fewer vectors than codes, vectors repeat and the surplus clusters stay empty.
    """
    centres = vectors[_draw(vectors.shape[0], num_codes, generator)]
    for _ in range(iterations):
        sums = code_sums(vectors, nearest_codes(vectors, centres), num_codes)
        counts = sums[:, -1:]
        strangers = vectors[_draw(vectors.shape[0], num_codes, generator)]
        centres = torch.where(counts > 0, sums[:, :-1] / counts.clamp(min=1), strangers)
    return Clusters(centres, code_sums(vectors, nearest_codes(vectors, centres), num_codes)[:, -1])


def _draw(population: int, wanted: int, generator: torch.Generator) -> Int[Tensor, "wanted"]:
    """Random distinct indices, repeated in turn where more are wanted than there are."""
    order = torch.randperm(population, generator=generator, device=generator.device)
    return order.repeat(-(-wanted // population))[:wanted]
