"""The arithmetic of a codebook as pure functions: nearest codes, sums over codes, k-means, perplexity.

No matrix of all vectors by all codes is ever in memory, and nothing is one-hot: see `nearest_codes` and `code_sums`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

SAMPLES = 1024  # encoder outputs kept per micro-batch, onto which dead codes may be moved
_GROUP = 64  # codes per group in the two steps of argmax


@torch.no_grad()
def nearest_codes(vectors: Float[Tensor, "n dim"], codebook: Float[Tensor, "codes dim"]) -> Int[Tensor, "n"]:
    """The index of the nearest code of each vector, by Euclidean distance.

    argmin |z - e|^2 = argmax (z.e - |e|^2 / 2): one matrix product per block, with the bias folded in.
    """
    padding = -codebook.shape[0] % _GROUP  # codes that are never the nearest fill up the last group
    bias = F.pad(-0.5 * codebook.square().sum(1), (0, padding), value=-torch.inf)
    columns = F.pad(codebook, (0, 0, 0, padding)).T
    block = max(1, _block_bytes(vectors.device) // (columns.shape[1] * columns.element_size()))
    nearest = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    scores = vectors.new_empty(min(block, vectors.shape[0]), columns.shape[1])  # one for all blocks
    for part, result in zip(torch.split(vectors, block), torch.split(nearest, block), strict=True):
        result.copy_(_best(torch.addmm(bias, part, columns, out=scores[: part.shape[0]])))
    return nearest.clamp_(max=codebook.shape[0] - 1)  # of infinite vectors even the padding may be the nearest


def _block_bytes(device: torch.device) -> int:
    """Size of a block of scores: on a CPU about the cache of a core, elsewhere enough to be worth a kernel."""
    return 2 * 2**20 if device.type == "cpu" else 32 * 2**20


def _best(scores: Float[Tensor, "n codes"]) -> Int[Tensor, "n"]:
    """argmax in two steps, first over groups, then within one: on a CPU amax is 10 times faster than argmax."""
    n, codes = scores.shape
    groups = scores.view(-1, _GROUP)
    best = groups.amax(1).view(n, codes // _GROUP).argmax(1)
    first = torch.arange(0, groups.shape[0], codes // _GROUP, device=scores.device)
    return groups.index_select(0, first + best).argmax(1).add_(best, alpha=_GROUP)


def code_sums(vectors: Float[Tensor, "n dim"], codes: Int[Tensor, "n"], num_codes: int) -> Float[Tensor, "codes dim+1"]:
    """For each code the sum of its vectors and, in the last column, their number."""
    ones = vectors.new_ones(vectors.shape[0], 1)
    sums = vectors.new_zeros(num_codes, vectors.shape[1] + 1)
    return sums.index_add_(0, codes, torch.cat([vectors, ones], 1))


def count_codes(codes: Int[Tensor, "..."], num_codes: int) -> Float[Tensor, "codes"]:
    """How often each code occurs, in float64, which is exact."""
    ones = torch.ones(codes.numel(), dtype=torch.float64, device=codes.device)
    return ones.new_zeros(num_codes).index_add_(0, codes.flatten(), ones)


def perplexity(counts: Float[Tensor, "codes"]) -> Float[Tensor, ""]:
    """exp of the entropy of the code histogram: how many codes, used equally, would carry as much."""
    probabilities = counts / counts.sum().clamp(min=1)
    return torch.special.entr(probabilities).sum().exp()


class Revival(NamedTuple):
    """Which codes are moved, where to, and the mean count that a moved one starts with."""

    rows: Bool[Tensor, "codes"]
    vectors: Float[Tensor, "codes dim"]
    mean_count: Float[Tensor, ""]


def revival(
    mean_counts: Float[Tensor, "codes"],
    samples: Float[Tensor, "samples dim"],
    threshold: float,
    generator: torch.Generator,
) -> Revival:
    """Move each code used less than `threshold` times the mean onto an encoder output of its own.

    Written without a branch on the data, so that no step waits for the device.
    """
    mean = mean_counts.mean()
    dead = mean_counts < threshold * mean
    rank = dead.cumsum(0) - 1  # the r-th dead code takes the r-th sample of a random order
    order = torch.randperm(samples.shape[0], generator=generator, device=generator.device)
    vectors = samples[order][rank.clamp(0, samples.shape[0] - 1)]
    return Revival(dead & (rank < samples.shape[0]), vectors, mean)


def sample_vectors(vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "samples dim"]:
    """Up to SAMPLES of the vectors, without replacement: two codes moved onto the same vector would always tie."""
    return vectors.detach()[torch.randperm(vectors.shape[0], device=vectors.device)[:SAMPLES]]


class Clusters(NamedTuple):
    """Centres of clusters and how many vectors belong to each."""

    centres: Float[Tensor, "codes dim"]
    counts: Float[Tensor, "codes"]


def k_means(
    vectors: Float[Tensor, "n dim"], num_codes: int, generator: torch.Generator, iterations: int = 10
) -> Clusters:
    """Lloyd's algorithm, started at random distinct vectors; an empty cluster is moved onto a random vector.

    With fewer vectors than codes, vectors are repeated and the surplus clusters stay empty.
    """
    centres = vectors[_random_indices(vectors.shape[0], num_codes, generator)]
    for _ in range(iterations):
        sums = code_sums(vectors, nearest_codes(vectors, centres), num_codes)
        counts = sums[:, -1:]
        replacements = vectors[_random_indices(vectors.shape[0], num_codes, generator)]
        centres = torch.where(counts > 0, sums[:, :-1] / counts.clamp(min=1), replacements)
    return Clusters(centres, code_sums(vectors, nearest_codes(vectors, centres), num_codes)[:, -1])


def _random_indices(population: int, count: int, generator: torch.Generator) -> Int[Tensor, "count"]:
    """Random distinct indices below `population`; beyond that many, the same ones again in the same order."""
    order = torch.randperm(population, generator=generator, device=generator.device)
    return order.repeat(-(-count // population))[:count]
