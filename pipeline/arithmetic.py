"""How a CPU multiplies matrices while codes are drawn: by which library, and with how many threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ROWS_A_THREAD = 4  # of a product; with fewer, threads wait for each other longer than they compute
_LARGE = 32  # rows from which on oneDNN is tried
_SIDE = 256  # of the weights it is tried with
_WORTHWHILE = 1.1  # times as fast


@contextmanager
def fast_products(device: torch.device, n: int) -> Iterator[None]:
    """The fastest exact way to multiply n rows by weights; the caller's settings return afterwards."""
    if device.type != "cpu":
        yield
        return
    threads, route = torch.get_num_threads(), _products().fp32_precision
    try:
        torch.set_num_threads(threads_for(n, threads))
        _products().fp32_precision = route_for(n, threads, route)
        yield
    finally:
        torch.set_num_threads(threads)
        _products().fp32_precision = route


def threads_for(n: int, most: int) -> int:
    """How many of the threads n rows keep busy."""
    return max(1, min(most, n // _ROWS_A_THREAD))


@lru_cache
def route_for(n: int, threads: int, usual: str) -> str:
    """The setting for float32 products: "bf16" where that is faster and yet exact, else the usual.

    The setting sends float32 products to oneDNN. Where the processor has instructions for whole matrices, oneDNN then
    rounds their factors to bfloat16; on others it computes in float32, up to twice as fast as the library that torch
    calls otherwise. So it is taken only after a product that was exact.
    """
    if n < _LARGE or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return usual
    generator = torch.Generator().manual_seed(0)
    rows, weights = (torch.randn(size, _SIDE, generator=generator) for size in (n, _SIDE))
    measured = {}
    for route in (usual, "bf16"):
        _products().fp32_precision = route
        error = float((rows @ weights - rows.double() @ weights.double()).abs().max())
        measured[route] = Measured(error, _fastest(lambda: rows @ weights))
    return "bf16" if is_better(measured["bf16"], measured[usual]) else usual


def _products() -> Any:
    """torch's settings for matrix products on CPUs (its annotations do not have them)."""
    backends: Any = torch.backends
    return backends.mkldnn.matmul


class Measured(NamedTuple):
    """A way to multiply: its largest error, and the seconds it takes."""

    error: float
    seconds: float


def is_better(other: Measured, usual: Measured) -> bool:
    """Whether another way is worth taking: about as exact as the usual one, and clearly faster."""
    return other.error <= 4 * usual.error and usual.seconds > _WORTHWHILE * other.seconds


def _fastest(product: Callable[[], Tensor]) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(20):
        started = perf_counter()
        product()
        seconds.append(perf_counter() - started)
    return min(seconds)
