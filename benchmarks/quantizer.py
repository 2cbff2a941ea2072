"""The vector quantizer beside vector-quantize-pytorch, and beside the matrix product that neither can do without.

    pip install vector-quantize-pytorch
    python -m benchmarks.quantizer [--threads 2]

Prints one JSON line for each number of vectors, codes and dimensions: milliseconds (median and quartiles, all three
taken in turn) of forward, backward and moving averages of a training step. `floor` is the product of all vectors and
codes, in the fastest of several block sizes, and one read of the vectors. The peer has moving averages and no rotation
trick, as we do; its dead codes are left alone, ours revived. Then the memory that comparing 2^20 vectors with 8,192
codes takes.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

import click
import psutil
import torch
from torch import Tensor

from pipeline.storage import JsonObject
from stage1_vqvae import VQVAEConfig
from stage1_vqvae.bottlenecks import VectorQuantizer
from stage1_vqvae.bottlenecks.codebook import nearest_codes

SIZES = ((32_768, 512), (8_192, 8_192))
DIMS = (8, 64)
ROUNDS = 15


def ours(vectors: Tensor, codes: int) -> Callable[[], None]:
    """A training step of ours; vectors as a channels-last convolution leaves them."""
    n, dim = vectors.shape
    layer = VectorQuantizer(VQVAEConfig(num_codes=codes, code_dim=dim)).train()
    generator = torch.Generator().manual_seed(0)
    layer.initialise([vectors[: 2 * codes]], generator)
    outputs = vectors.reshape(n // 64, 8, 8, dim).movedim(-1, 1).requires_grad_()

    def step() -> None:
        output = layer(outputs, 0.0)
        torch.autograd.backward([output.quantized.sum() + output.loss])
        outputs.grad = None
        layer.update(output.statistics, 0.0, generator)

    return step


def peer(vectors: Tensor, codes: int) -> Callable[[], None]:
    """A training step of vector-quantize-pytorch, in the layout that it is made for."""
    from vector_quantize_pytorch import VectorQuantize  # a dependency of this benchmark alone

    n, dim = vectors.shape
    layer = VectorQuantize(dim, codes, decay=0.99, commitment_weight=0.25, rotation_trick=False).train()
    outputs = vectors.reshape(n // 64, 64, dim).clone().requires_grad_()

    def step() -> None:
        quantized, _, loss = layer(outputs)
        torch.autograd.backward([quantized.sum() + loss.sum()])
        outputs.grad = None

    return step


def floor(vectors: Tensor, codes: int, block_bytes: int) -> Callable[[], None]:
    """The product, a block of rows at a time into the same memory, and one read of the vectors."""
    codebook = torch.randn(codes, vectors.shape[1])
    rows = min(len(vectors), max(1, block_bytes // (4 * codes)))
    scores = torch.empty(rows, codes)

    def work() -> None:
        for part in torch.split(vectors, rows):
            torch.mm(part, codebook.T, out=scores[: len(part)])
        vectors.sum()

    return work


def in_turn(works: list[Callable[[], None]]) -> list[list[float]]:
    """Milliseconds of each, over some rounds, after two that do not count."""
    taken: list[list[float]] = [[] for _ in works]
    for turn in range(ROUNDS + 2):
        for work, durations in zip(works, taken, strict=True):
            started = perf_counter()
            work()
            if turn >= 2:
                durations.append(1000 * (perf_counter() - started))
    return taken


def measure(n: int, codes: int, dim: int) -> JsonObject:
    """One line."""
    torch.manual_seed(0)
    vectors = torch.randn(n, dim)
    floors = [floor(vectors, codes, size) for size in (2**20, 2**21, 2**23, 2**25)]
    mine, theirs, *bare = in_turn([ours(vectors, codes), peer(vectors, codes), *floors])
    least = min(bare, key=statistics.median)
    medians = {name: statistics.median(values) for name, values in (("ours", mine), ("peer", theirs), ("floor", least))}
    return {
        "vectors": n,
        "codes": codes,
        "dim": dim,
        **{name: round(value, 2) for name, value in medians.items()},
        "quartiles": [[round(q, 2) for q in statistics.quantiles(values)[::2]] for values in (mine, theirs, least)],
        "peer / ours": round(medians["peer"] / medians["ours"], 2),
        "ours / floor": round(medians["ours"] / medians["floor"], 2),
    }


def scratch() -> JsonObject:
    """How far memory rises over the vectors, the codes and the result."""
    vectors, codebook = torch.randn(2**20, 8), torch.randn(8192, 8)
    nearest_codes(vectors[:1000], codebook)
    highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ballast = torch.ones(max(0, highest - psutil.Process().memory_info().rss) + 2**24, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # as much as is held now: any more of it shows
    result = nearest_codes(vectors, codebook)
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(result) == len(vectors) and len(ballast)
    return {
        "vectors": 2**20,
        "codes": 8192,
        "dim": 8,
        "scratch, MiB, with the result's 8": round(rise, 1),
    }


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--only-scratch", is_flag=True, hidden=True)
def main(threads: int, only_scratch: bool) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    if only_scratch:
        print(json.dumps(scratch()), flush=True)
        return
    for n, codes in SIZES:
        for dim in DIMS:
            print(json.dumps(measure(n, codes, dim)), flush=True)
    own = [sys.executable, "-m", "benchmarks.quantizer", "--only-scratch", "--threads", str(threads)]
    subprocess.run(own, check=True)


if __name__ == "__main__":
    main()
