"""`gen doctor`: what is installed here, and whether it fits together."""

import importlib.metadata
import platform
import sys
from pathlib import Path

import torch
from accelerate.commands.config.config_args import default_config_file

from pipeline.data.cache import cache_folder
from pipeline.data.datasets import import_torchvision_datasets
from pipeline.errors import DataError
from pipeline.processes import resolve_precision
from pipeline.reporting import table

_PACKAGES = (
    "gen-images",
    "torch",
    "torchvision",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "einops",
    "click",
)


def report() -> tuple[str, bool]:
    """A table, and whether all is well."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["none; the CPU will do"]
    fits = torchvision_fits()
    rows = [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        *((name, _version(name)) for name in _PACKAGES),
        ("torchvision fits torch", fits or "yes"),
        ("GPUs", ", ".join(devices)),
        (
            "CPU",
            f"{torch.get_num_threads()} threads, {resolve_precision('auto', torch.device('cpu'))} by default",
        ),
        ("accelerate's defaults", default_config_file if Path(default_config_file).exists() else "none set"),
        ("cache", str(cache_folder())),
    ]
    return table(rows), not fits


def torchvision_fits() -> str:
    """Why torchvision cannot be imported beside this torch; empty when it can."""
    try:
        import_torchvision_datasets()
    except DataError as error:
        return f"NO: {error}"
    return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
