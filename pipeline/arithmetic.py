"""How float32 numbers are multiplied where codes and likelihoods are at stake: in float32.

torch may be told to round factors to TF32 or bfloat16 (and does so by itself in convolutions on a GPU). A code is an
argmin and a draw an argmax: some would differ from those of another machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol

import torch

_EXACT, _FAST = "ieee", "tf32"


class Backend(Protocol):
    """A library's setting for float32 factors: "ieee" for what they are, "tf32", "bf16", or "none" for the usual."""

    fp32_precision: str


@contextmanager
def exact_products(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Matrix products and convolutions in the precision of their factors, whatever autocast and settings are around;
    these return afterwards. With `tf32` a GPU may round float32 to TF32, which is faster."""
    backends, on_gpu = _backends(), _FAST if tf32 else _EXACT
    asked = [(backends[name], on_gpu if name.startswith("cu") else _EXACT) for name in backends]
    before = [backend.fp32_precision for backend, _ in asked]
    try:
        for backend, value in asked:
            backend.fp32_precision = value
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (backend, _), value in zip(asked, before, strict=True):
            backend.fp32_precision = value


def _backends() -> dict[str, Backend]:
    """What multiplies. Annotations of torch have not all of it."""
    cudnn: ModuleType = torch.backends.cudnn
    onednn: ModuleType = torch.backends.mkldnn
    return {
        "cublas": torch.backends.cuda.matmul,
        "cudnn": cudnn.conv,
        "onednn products": onednn.matmul,
        "onednn convolutions": onednn.conv,
    }
