"""The processes of a run: what accelerate is asked for, and what is refused by name."""

import ctypes
import gc
import hashlib
import os
import platform
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs, LoggerType

from pipeline.arithmetic import reserve_workspace
from pipeline.config.training import Precision
from pipeline.errors import UsageError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
T = TypeVar("T")

TRACKERS = tuple(sorted(set(LoggerType.list()) - {"all"}))
_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def start(log: str | None = None, folder: Path | None = None) -> Accelerator:
    """Join the processes that were launched. Raises UsageError for a launch that would go wrong silently.

    Precision is left to `autocast`: accelerate keeps it in a singleton, which two trainings in one process share.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise UsageError(f"mixed precision {precision!r} is not supported; use --precision bfloat16 or float32")
    if log is not None and not (isinstance(log, str) and log in TRACKERS):
        raise UsageError(f"--log {log!r:.60} is not supported; choose one of {', '.join(TRACKERS)}")
    if log is not None and log not in map(str, get_available_trackers()):
        raise UsageError(f"--log {log} needs a package that is not installed: pip install {log}")
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # while one process decodes, the others wait
    reserve_workspace()  # before anything is computed: whether a training wants it may be known only once it is read
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
            "files. Without a GPU set ACCELERATE_USE_CPU=1; docs/processes.md has the whole command"
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


def alike(accelerator: Accelerator, work: Callable[[], T], identity: Callable[[T], str], what: str) -> T:
    """Do something on every process, and go on only where all came to the same, by the words of `identity`.

    Raises, on every process alike, what `work` raised there; UsageError where it failed on another process or came to
    something else, as on a node that does not see the same files. `what` names it.
    """
    failure: Exception | None = None
    found = ""
    try:
        result = work()
        found = identity(result)
    except Exception as error:  # raised below, once the others know
        failure = error
    if true_on_all(accelerator, failure is None):
        digest = torch.frombuffer(bytearray(hashlib.sha256(found.encode()).digest()), dtype=torch.int64)
        digests = accelerator.gather(digest.to(accelerator.device)).reshape(accelerator.num_processes, -1)
        if bool((digests == digests[0]).all()):
            return result
        failure = UsageError(
            f"the processes do not see the same of {what} (this is number {accelerator.process_index} of "
            f"{accelerator.num_processes}); several machines need a file system that they share, and the same data"
        )
    raise failure or UsageError(f"another process could not go on with {what}; its message says why")


def true_on_all(accelerator: Accelerator, condition: bool) -> bool:
    """Whether a condition holds on every process: the same answer on all of them."""
    count = torch.tensor(int(condition), device=accelerator.device)
    return int(accelerator.reduce(count, "sum")) == accelerator.num_processes


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """`auto` as what this device does fast; the answer is saved, so that a resumed run computes alike."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        in_hardware = device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    return "bfloat16" if asked or in_hardware else "float32"


def find_device(name: str | torch.device | None) -> torch.device:
    """A device by its name; without one, that of this process: a GPU where there is one, else the CPU.

    Raises UsageError when there is none of that name here, or none that computes in float64, as noise does.
    """
    if name is None:
        device: torch.device = start().device
        return device
    try:
        device = torch.empty(0, device=name).device
        torch.ones(1, device=device, dtype=torch.float64).sum().item()  # torch knows devices that cannot compute this
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError, OverflowError, UserWarning) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device {name!s:.60} is not to be had here ({reason}); `gen doctor` lists the devices, and --device cpu "
            "works everywhere"
        ) from error
    return device


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Run matrix products in the configured precision; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
