"""How float32 numbers are multiplied where codes and likelihoods are at stake: in float32; and added in a fixed order.

torch may be told to round factors to TF32 or bfloat16 (and does so by itself in convolutions on a GPU). A code is an
argmin and a draw an argmax: some would differ from those of another machine. On a GPU many threads add to the same
number, by default in the order in which they come.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol, cast

import torch

from pipeline.errors import UsageError

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")  # with which cuBLAS repeats itself (its manual, "Results Reproducibility")
_EXACT, _FAST, _INHERITED = "ieee", "tf32", "none"


class Backend(Protocol):
    """A library's setting for float32 factors: "ieee" for what they are, "tf32", "bf16", or "none" for the usual."""

    fp32_precision: str


class CudnnSettings(Protocol):
    """How cuDNN chooses among its kernels. Annotations of torch leave it out."""

    deterministic: bool
    benchmark: bool


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


def reserve_workspace() -> None:
    """Let cuBLAS repeat its results, where it is not in use yet: it reads this setting once, at its first product."""
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
    if torch.cuda.is_available() and not in_use:
        os.environ.setdefault(CUBLAS_WORKSPACE, FIXED_WORKSPACES[0])


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Kernels that add in the same order every time, and so give the same bits; torch's settings return afterwards.

    Raises UsageError where cuBLAS may have begun without a workspace of fixed size, and for an operation that has no
    such kernel on this device.
    """
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    if device.type == "cuda" and workspace not in FIXED_WORKSPACES:
        raise UsageError(
            f"--deterministic needs {CUBLAS_WORKSPACE}={FIXED_WORKSPACES[0]} in the environment before the GPU is "
            f"first used, and it is {workspace or 'not set'}; set it, and start a new process"
        )
    cudnn: CudnnSettings = cast(CudnnSettings, torch.backends.cudnn)
    asked, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    of_cudnn = cudnn.deterministic, cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(True)
        # Without `benchmark`, which would choose a kernel by a race that another may win the next time.
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UsageError(f"--deterministic: {str(error).partition('.')[0]}; train without it") from error
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warned)
        cudnn.deterministic, cudnn.benchmark = of_cudnn


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
