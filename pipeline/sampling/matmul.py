"""How a CPU multiplies matrices while codes are drawn: by which library, and with how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from time import perf_counter
from types import ModuleType

import torch
from torch import Tensor

_POSITIONS_A_THREAD = 4  # of a row of all maps; with fewer, threads wait for each other longer than they compute
_LARGE = 64  # rows from which on oneDNN may be faster
_SIDE = 256  # of the weights it is tried with
_CLEARLY = 1.4  # times as fast: where it matters the factor is 2, elsewhere 1, and noise lies between


@contextmanager
def fast_products(device: torch.device, n: int, width: int) -> Iterator[None]:
    """The fastest exact way to draw n maps of this width; the caller's settings return afterwards."""
    if device.type != "cpu":
        yield
        return
    threads, usual = torch.get_num_threads(), _onednn().matmul.fp32_precision
    try:
        torch.set_num_threads(threads_for(n * width, threads))
        with _route(route_for(n, usual)):
            yield
    finally:
        torch.set_num_threads(threads)


def threads_for(positions: int, most: int) -> int:
    """How many of the threads so many positions keep busy."""
    return max(1, min(most, positions // _POSITIONS_A_THREAD))


def route_for(n: int, usual: str) -> str:
    """The setting for float32 products of n rows: "bf16" where that is exact and clearly faster, else the usual.

    The setting sends float32 products to oneDNN. On a processor with instructions for whole matrices, oneDNN then
    rounds their factors to bfloat16; on others it computes in float32, and on some twice as fast as the library that
    torch calls otherwise.
    """
    return "bf16" if n >= _LARGE and is_exact("bf16") and is_faster("bf16") else usual


@lru_cache
def is_exact(route: str) -> bool:
    """Whether a setting multiplies float32 matrices in float32.

    Its errors then grow as the root of the number of products that are added (Higham & Mary 2019), in whatever order
    that is; factors rounded to bfloat16 err a thousand times more, those rounded to TF32 a hundred times.
    """
    if not _onednn().is_available():
        return False
    rows, weights = _factors(_SIDE)
    with _route(route):
        errors = (rows @ weights - rows.double() @ weights.double()).abs()
    terms = rows.double().abs() @ weights.double().abs()
    return float((errors / terms).max()) < torch.finfo(torch.float32).eps * _SIDE**0.5


@lru_cache
def is_faster(route: str) -> bool:
    """Whether a setting multiplies matrices clearly faster than the usual one does."""
    rows, weights = _factors(_LARGE)
    usual = _seconds(rows, weights)
    with _route(route):
        return usual > _CLEARLY * _seconds(rows, weights)


def _factors(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, _SIDE, generator=generator), torch.randn(_SIDE, _SIDE, generator=generator)


def _seconds(rows: Tensor, weights: Tensor) -> float:
    """The fastest of some products."""
    taken = []
    for _ in range(20):
        started = perf_counter()
        torch.mm(rows, weights)
        taken.append(perf_counter() - started)
    return min(taken)


@contextmanager
def _route(route: str) -> Iterator[None]:
    usual = _onednn().matmul.fp32_precision
    try:
        _onednn().matmul.fp32_precision = route
        yield
    finally:
        _onednn().matmul.fp32_precision = usual


def _onednn() -> ModuleType:
    """torch's module for oneDNN; as any module, since its annotations do not have the settings of products."""
    return torch.backends.mkldnn
