"""How a CPU multiplies matrices while codes are drawn: by which library, and with how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

_ROWS_A_THREAD = 4  # of a product; with fewer, threads wait for each other longer than they compute
_LARGE = 64  # rows from which on oneDNN is at least as fast
_SIDE = 512  # of the weights it is tried with


@contextmanager
def fast_products(device: torch.device, n: int) -> Iterator[None]:
    """The fastest exact way to multiply n rows by weights; the caller's settings return afterwards."""
    if device.type != "cpu":
        yield
        return
    threads, route = torch.get_num_threads(), _products().fp32_precision
    try:
        torch.set_num_threads(threads_for(n, threads))
        _products().fp32_precision = route_for(n, route)
        yield
    finally:
        torch.set_num_threads(threads)
        _products().fp32_precision = route


def threads_for(n: int, most: int) -> int:
    """How many of the threads n rows keep busy."""
    return max(1, min(most, n // _ROWS_A_THREAD))


def route_for(n: int, usual: str) -> str:
    """The setting for float32 products of n rows: "bf16" where that is exact, else the usual.

    The setting sends float32 products to oneDNN. On a processor with instructions for whole matrices, oneDNN then
    rounds their factors to bfloat16; on others it computes in float32, and on some twice as fast as the library that
    torch calls otherwise. What is taken depends on the processor and on n alone, not on a stopwatch.
    """
    return "bf16" if n >= _LARGE and is_exact("bf16") else usual


@lru_cache
def is_exact(route: str) -> bool:
    """Whether a setting multiplies float32 matrices in float32: its errors stay near those of rounding the result."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    usual, generator = _products().fp32_precision, torch.Generator().manual_seed(0)
    rows, weights = (torch.randn(_SIDE, _SIDE, generator=generator) for _ in range(2))
    try:
        _products().fp32_precision = route
        error = rows @ weights - rows.double() @ weights.double()
    finally:
        _products().fp32_precision = usual
    return float(error.abs().max()) < 16 * torch.finfo(torch.float32).eps * _SIDE**0.5  # bfloat16 errs 10^4 times more


def _products() -> Any:
    """torch's settings for matrix products on CPUs (its annotations do not have them)."""
    backends: Any = torch.backends
    return backends.mkldnn.matmul
