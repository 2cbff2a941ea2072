"""How float32 numbers are multiplied where codes and likelihoods are at stake: in float32.

torch may be told to round factors to TF32 or bfloat16 (and does so by itself in convolutions on a GPU). A code is an
argmin and a draw an argmax: some would differ from those of another machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol

import torch

_EXACT, _FAST, _INHERITED = "ieee", "tf32", "none"


class Backend(Protocol):
    """A library's setting for float32 factors: "ieee" for what they are, "tf32", "bf16", or "none" for the usual."""

    fp32_precision: str


@contextmanager
def exact_products(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Matrix products and convolutions in the precision of their factors, whatever autocast and settings are around;
    these return afterwards. With `tf32` a GPU may round float32 to TF32, which is faster. The settings are those of the
    process: threads that use this at the same time change each other's."""
    backends, on_gpu = _backends(), _FAST if tf32 else _EXACT
    asked = [(backends[name], on_gpu if name.startswith("cu") else _EXACT) for name in backends]
    before = [_own_setting(backend) for backend, _ in asked]
    try:
        for backend, value in asked:
            backend.fp32_precision = value
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (backend, _), value in zip(asked, before, strict=True):
            backend.fp32_precision = value


def _own_setting(backend: Backend) -> str:
    """Its own setting: "none" where it follows a more general one, which torch answers in its place."""
    answered = backend.fp32_precision
    backend.fp32_precision = _INHERITED
    follows = backend.fp32_precision == answered
    backend.fp32_precision = answered
    return _INHERITED if follows else answered


def _backends() -> dict[str, Backend]:
    """What multiplies. Annotations of torch have not all of it."""
    cudnn: ModuleType = torch.backends.cudnn
    onednn: ModuleType = torch.backends.mkldnn
    return {
        "cublas": torch.backends.cuda.matmul,
        "cudnn": cudnn.conv,
        "cudnn of recurrent networks": cudnn.rnn,  # none here, but torch wants both alike
        "onednn products": onednn.matmul,
        "onednn convolutions": onednn.conv,
    }
