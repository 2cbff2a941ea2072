"""Codes, pictures and likelihoods do not depend on what torch was told to round to."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import Model, load, processes, score
from pipeline.arithmetic import _backends
from pipeline.config.data import DataConfig
from pipeline.data.image_set import from_array
from pipeline.evaluation.likelihood import likelihood
from pipeline.evaluation.parts import Labelled
from pipeline.reporting import Silent
from pipeline.training.inputs.extract import Encoder
from tests.tiny import shapes

IMAGES, TARGETS = shapes(24)


def settings() -> dict[str, str]:
    found = {name: backend.fp32_precision for name, backend in _backends().items()}
    return found | {"autocast": str(torch.is_autocast_enabled("cpu"))}


@pytest.fixture
def rounding() -> Iterator[dict[str, str]]:
    """Everything rounds to what is fast, outside."""
    before = settings()
    with ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        for name, backend in _backends().items():
            stack.callback(setattr, backend, "fp32_precision", before[name])
            backend.fp32_precision = "tf32" if name.startswith("cu") else "bf16"
        yield settings()
    assert settings() == before


def an_encoder(model: Model) -> Encoder:
    image_set = from_array(IMAGES, TARGETS, (), DataConfig())
    return Encoder(model.vqvae.network, image_set, processes.start(), Silent())


EXACT = {**dict.fromkeys(_backends(), "ieee"), "autocast": "False"}
WORK: dict[str, Callable[[Model], Any]] = {
    "extract": lambda model: an_encoder(model).codes(np.arange(24))[0],
    "encode": lambda model: model.encode(IMAGES),
    "decode": lambda model: model.decode((torch.arange(24).reshape(4, 2, 3) % 12,)),
    "reconstruct": lambda model: model.reconstruct(IMAGES),
    "draw": lambda model: model.sample(4).codes,
    "score": lambda model: score(model, IMAGES, label=0).bits,
    "likelihood": lambda model: likelihood(model, Labelled(IMAGES, TARGETS), Silent()).levels[0],
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_settings_are_exact_within_and_return_afterwards(
    trained: Path, rounding: dict[str, str], work: str, precision: Any
) -> None:
    model, seen = load(trained, precision=precision), []
    networks: list[nn.Module] = [model.vqvae.network, *(prior.network for prior in model.priors)]
    for network in networks:
        for module in network.modules():
            module.register_forward_pre_hook(lambda *_: seen.append(settings()))
    WORK[work](model)
    faster = precision == "tf32" and work != "extract"  # the codes that a prior learns are always exact
    expected = EXACT | ({name: "tf32" for name in _backends() if name.startswith("cu")} if faster else {})
    assert seen and all(found == expected for found in seen)
    assert settings() == rounding


@pytest.mark.parametrize("work", WORK)
def test_results_are_those_without_any_rounding(trained: Path, work: str, request: pytest.FixtureRequest) -> None:
    exact = WORK[work](load(trained))
    request.getfixturevalue("rounding")
    for ours, theirs in zip(exact, WORK[work](load(trained)), strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


FOLLOWING = """
import torch
from pipeline.arithmetic import _backends, exact_products

def found():
    return {backend.fp32_precision for backend in _backends().values()}

torch.backends.fp32_precision = "tf32"
with exact_products(torch.device("cpu")):
    assert found() == {"ieee"}
assert found() == {"tf32"}
torch.backends.fp32_precision = "ieee"
assert found() == {"ieee"}
"""


def test_what_followed_a_general_setting_follows_it_afterwards() -> None:
    """In a process of its own: torch cannot be brought back to the settings that it begins with."""
    subprocess.run([sys.executable, "-c", FOLLOWING], check=True)
