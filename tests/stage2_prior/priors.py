"""Every prior class in the package, made small: a prior that is added later is tested automatically."""

import importlib
import inspect
import pkgutil

import torch

import stage2_prior
from stage2_prior import Prior, PriorConfig


def prior_classes() -> list[type[Prior]]:
    """All subclasses of Prior that stage2_prior defines, found by importing every module of it."""
    for module in pkgutil.walk_packages(stage2_prior.__path__, "stage2_prior."):
        importlib.import_module(module.name)
    found, waiting = [], [Prior]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        found += [c for c in subclasses if not inspect.isabstract(c) and c.__module__.startswith("stage2_prior.")]
    return sorted(set(found), key=lambda c: c.__name__)


def small_prior(kind: type[Prior], height: int = 4, width: int = 5, num_classes: int = 0) -> Prior:
    """A small prior of 7 codes with random weights, in float64 and evaluation mode."""
    config = PriorConfig(
        height=height, width=width, num_codes=7, num_classes=num_classes, hidden=16, layers=3, first_kernel=5, head=16
    )
    return randomised(kind(config))


def randomised(prior: Prior, scale: float = 0.25) -> Prior:
    """The prior in float64 and evaluation mode, with random numbers in every weight, biases and embeddings included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.double().eval().parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return prior


def random_codes(n: int, height: int, width: int) -> torch.Tensor:
    """Codes of a small prior."""
    return torch.randint(7, (n, height, width), generator=torch.Generator().manual_seed(2))
