"""The processes of a run: what accelerate is asked for, and what is refused by name."""

import ctypes
import gc
import importlib.util
import os
import platform
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from pipeline.errors import UsageError
from pipeline.settings import Precision

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def start(log: str | None = None, folder: Path | None = None) -> Accelerator:
    """Join the processes that were launched. Raises UsageError for a launch that would go wrong silently.

    Precision is left to `autocast`: accelerate keeps it in a singleton, which two trainings in one process share.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise UsageError(f"mixed precision {precision!r} is not supported; use --precision bfloat16 or float32")
    if log is not None and importlib.util.find_spec(log) is None:
        raise UsageError(f"--log {log} needs a package that is not installed; pip install 'gen-images[{log}]'")
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process decodes, the others wait
    # Without CUDA the CPU: other devices lack the float64 that statistics and noise are computed in.
    on_cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision="no", log_with=log, project_dir=folder, kwargs_handlers=[patience]
    )
    if accelerator.distributed_type not in _SUPPORTED:
        raise UsageError(
            f"{accelerator.distributed_type.value} is not supported; launch with --multi_gpu, or without options"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UsageError(
            f"{launched} processes were launched, but each sees {accelerator.num_processes}: all would write the same "
            "files. Without a GPU set ACCELERATE_USE_CPU=1; see README, 'Several processes'"
        )
    return accelerator


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees on the CPU: each step frees and asks for the same blocks again.

    Given back to the system and faulted in anew they cost about a tenth of a training step. Elsewhere, nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def stop() -> None:
    """Leave the processes that `start` joined, before the program ends; the API leaves them joined."""
    if torch.distributed.is_initialized():
        gc.collect()  # finished trainings still hold the group, and gloo's threads must not outlive it
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Let the main process do something while the others wait. What it raises stops all of them, none waits in vain."""
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            action()
        except Exception as error:  # raised below, once the others know
            failure = error
    failed = torch.tensor(int(failure is not None), device=accelerator.device)
    if int(accelerator.reduce(failed, "sum")):
        raise failure or UsageError("the main process could not go on; its message says why")


def all_agree(accelerator: Accelerator, wish: bool) -> bool:
    """Whether every process wishes something: the same answer on all of them."""
    wishes = torch.tensor(int(wish), device=accelerator.device)
    return int(accelerator.reduce(wishes, "sum")) == accelerator.num_processes


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """`auto` as what this device does fast; the answer is saved, so that a resumed run computes alike."""
    if precision != "auto":
        return precision
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16" or _has_bfloat16(device):
        return "bfloat16"
    return "float32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def find_device(name: str | torch.device) -> torch.device:
    """A device by its name. Raises UsageError when there is none of that name here."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} is not to be had here ({reason}); `gen doctor` lists the devices") from error


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Run matrix products in the configured precision; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
