"""Bits of codes under the mixture of classes, against sums over every map and class."""

from dataclasses import replace
from itertools import product
from math import log2

import pytest
import torch
from torch import Tensor

from stage2_prior import Prior, PriorConfig, code_nats, mixture_bits
from tests.stage2_prior.priors import prior_classes, random_codes, randomised, small_prior

every_prior = pytest.mark.parametrize("kind", prior_classes())
PROBABILITIES: dict[int | None, float] = {0: 0.5, 1: 0.3, 2: 0.2}
MAPS = torch.tensor(list(product((0, 1), repeat=6)))  # all that a 1x2 and a 2x2 level of two codes can be


def two_levels(kind: type[Prior]) -> list[Prior]:
    """Priors of a 1x2 level, and of a 2x2 level conditioned on it, with three classes and codes of 0 and 1."""
    top = PriorConfig(height=1, width=2, num_codes=2, num_classes=3, hidden=16, layers=2, head=8)
    return [randomised(kind(config)) for config in (top, replace(top, height=2, coarser=(2,)))]


@torch.no_grad()
def law(levels: list[Prior]) -> Tensor:
    """p(map), a sum over classes, of all maps (64,)."""
    top, below = MAPS[:, :2].reshape(-1, 1, 2), MAPS[:, 2:].reshape(-1, 2, 2)
    total = torch.zeros(len(MAPS), dtype=torch.float64)
    for label, probability in PROBABILITIES.items():
        labels = torch.full((len(MAPS),), label or 0)
        nats = code_nats(levels[0], top, labels).sum((1, 2)) + code_nats(levels[1], below, labels, [top]).sum((1, 2))
        total += probability * (-nats).exp()
    return total


def bits_per_image(levels: list[Prior], codes: list[Tensor], probabilities: dict[int | None, float]) -> Tensor:
    return torch.stack([level.sum((1, 2)) for level in mixture_bits(levels, codes, probabilities)]).sum(0)


@every_prior
def test_bits_are_those_of_the_mixture_by_enumeration(kind: type[Prior]) -> None:
    levels = two_levels(kind)
    probabilities = law(levels)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    top, below = mixture_bits(levels, [MAPS[:, :2].reshape(-1, 1, 2), MAPS[:, 2:].reshape(-1, 2, 2)], PROBABILITIES)
    bits = torch.cat([top.flatten(1), below.flatten(1)], 1)
    assert top.shape == (64, 1, 2) and below.shape == (64, 2, 2) and bits.dtype == torch.float64
    for position in range(6):
        same = (MAPS[:, None, : position + 1] == MAPS[None, :, : position + 1]).all(2)  # the code and all before it
        before = (MAPS[:, None, :position] == MAPS[None, :, :position]).all(2)
        expected = (before.double() @ probabilities / (same.double() @ probabilities)).log2()
        torch.testing.assert_close(bits[:, position], expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(bits.sum(1), -probabilities.log2(), rtol=1e-9, atol=1e-10)


@every_prior
def test_one_class_or_none_is_the_prior_itself(kind: type[Prior]) -> None:
    codes = random_codes(3, 4, 5)
    for num_classes, label in ((0, None), (3, 1)):
        prior = small_prior(kind, num_classes=num_classes)
        labels = None if label is None else torch.full((3,), label)
        (bits,) = mixture_bits([prior], [codes], {label: 1.0})
        expected = code_nats(prior, codes, labels).detach() / torch.tensor(2.0, dtype=torch.float64).log()
        torch.testing.assert_close(bits, expected, rtol=1e-9, atol=1e-10)


@every_prior
def test_an_image_costs_no_more_than_its_class_and_its_codes_given_that_class(kind: type[Prior]) -> None:
    levels, codes = two_levels(kind), [MAPS[:, :2].reshape(-1, 1, 2), MAPS[:, 2:].reshape(-1, 2, 2)]
    mixed = bits_per_image(levels, codes, PROBABILITIES)
    for label, probability in PROBABILITIES.items():
        alone = bits_per_image(levels, codes, {label: 1.0})
        assert (mixed <= alone - log2(probability) + 1e-9).all()
