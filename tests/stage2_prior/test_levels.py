"""Priors conditioned on coarser levels: what they depend on, the same logits one position at a time, and all levels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stage2_prior import (
    Noise,
    PrefixStepper,
    Prior,
    PriorConfig,
    PriorError,
    SamplingOptions,
    code_nats,
    draw,
    draw_levels,
    stepper_of,
)
from stage2_prior.priors.conditioning import CoarserLevels
from tests.stage2_prior.priors import prior_classes, random_codes, randomised
from tests.stage2_prior.test_incremental import BOUND, teacher_forced

every_prior = pytest.mark.parametrize("kind", prior_classes())


def third_level(kind: type[Prior], num_classes: int = 0) -> Prior:
    """A prior conditioned on a 2x3 and a 4x6 level, in float64, whose every weight is random."""
    config = PriorConfig(
        height=4, width=6, num_codes=7, num_classes=num_classes, coarser=(5, 6), hidden=16, layers=3, head=16
    )
    return randomised(kind(config), 0.2)


def coarser_codes(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, (n, 2, 3), generator=generator), torch.randint(6, (n, 4, 6), generator=generator)]


@every_prior
def test_logits_depend_on_coarser_codes_nearby_even_at_later_positions(kind: type[Prior]) -> None:
    prior, codes, coarser = third_level(kind), random_codes(1, 4, 6), coarser_codes(1)
    before = prior(codes, None, coarser).detach()
    for level, (row, column), fine in ((0, (1, 2), (2, 3)), (1, (3, 5), (2, 4)), (1, (0, 0), (0, 0))):
        changed = [codes.clone() for codes in coarser]
        changed[level][0, row, column] = (changed[level][0, row, column] + 1) % 5
        difference = (prior(codes, None, changed).detach() - before).abs().amax(1)[0]
        assert float(difference[fine]) > 1e-6, "a coarser code of a later position exists already"


@every_prior
def test_no_later_code_of_the_level_itself_is_seen_conditioned_coarser_levels(kind: type[Prior]) -> None:
    prior, codes, coarser = third_level(kind), random_codes(1, 4, 6), coarser_codes(1)
    before = prior(codes, None, coarser).flatten(2)
    for position in range(24):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 7
        difference = (prior(changed, None, coarser).flatten(2) - before).abs().amax((0, 1))
        assert (difference[: position + 1] == 0).all()
        assert (difference[position + 1 :] > 0).all()


@every_prior
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_codes_conditioned_coarser_levels_are_those_of_the_plain_sampler(
    kind: type[Prior], num_classes: int, dtype: torch.dtype
) -> None:
    prior, coarser = third_level(kind, num_classes).to(dtype), coarser_codes(9)
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1, 0]) if num_classes else None
    drawn = []
    for stepper in (prior.stepper(9), PrefixStepper(prior, 9)):
        stepper.begin(labels, coarser)
        drawn.append(draw(stepper, Noise(4, torch.arange(9)), SamplingOptions()))
    assert torch.equal(drawn[0].codes, drawn[1].codes)
    nats = code_nats(prior, drawn[0].codes, labels, coarser).sum((1, 2)).double()
    torch.testing.assert_close(drawn[0].log_probability, -nats, rtol=0, atol=100 * BOUND[dtype])


@every_prior
def test_a_stepper_starts_anew_conditioned_other_coarser_codes(kind: type[Prior]) -> None:
    prior, codes, coarser = third_level(kind), random_codes(3, 4, 6), coarser_codes(3)
    stepper = prior.stepper(3)
    first = teacher_forced(stepper, codes, None, coarser)
    teacher_forced(stepper, 6 - codes, None, [level.flip(0) for level in coarser])
    assert torch.equal(teacher_forced(stepper, codes, None, coarser), first)


@every_prior
def test_steppers_of_wider_windows_agree_as_well(kind: type[Prior]) -> None:
    config = PriorConfig(height=5, width=6, num_codes=7, hidden=8, layers=3, kernel=5, first_kernel=7, head=8)
    prior, codes = kind(config).double().eval(), random_codes(3, 5, 6)
    expected = prior(codes, None).detach()
    torch.testing.assert_close(teacher_forced(prior.stepper(3), codes, None), expected, rtol=0, atol=1e-12)


@every_prior
def test_a_wrong_number_of_coarser_levels_is_refused(kind: type[Prior]) -> None:
    with pytest.raises(PriorError, match="has 2 coarser levels; 1 were given"):
        third_level(kind)(random_codes(1, 4, 6), None, coarser_codes(1)[:1])
    with pytest.raises(PriorError, match="has 2 coarser levels; 0 were given"):
        third_level(kind).stepper(1).begin(None)


def two_levels(kind: type[Prior], num_classes: int = 0) -> tuple[Prior, Prior]:
    """Priors of a 2x3 level, and of a 4x6 level conditioned on it; both have 7 codes."""
    coarse = PriorConfig(height=2, width=3, num_codes=7, num_classes=num_classes, hidden=16, layers=3, head=16)
    fine = replace(coarse, height=4, width=6, coarser=(7,))
    return randomised(kind(coarse)), randomised(kind(fine))


@every_prior
def test_each_level_is_drawn_with_its_own_noise_conditioned_those_before_it(kind: type[Prior]) -> None:
    priors, labels, indices = two_levels(kind, num_classes=3), torch.arange(6) % 3, torch.arange(6) + 2
    drawn = draw_levels([stepper_of(prior, 6, 1.0) for prior in priors], Noise(8, indices), labels, SamplingOptions())
    expected: list[Tensor] = []
    total = torch.zeros(6, dtype=torch.float64)
    for level, prior in enumerate(priors):
        stepper = PrefixStepper(prior, 6)
        stepper.begin(labels, expected)
        codes, log_probability, _ = draw(stepper, Noise(8, indices, level), SamplingOptions())
        expected.append(codes)
        total += log_probability
    assert len(drawn.codes) == 2 and all(map(torch.equal, drawn.codes, expected))
    torch.testing.assert_close(drawn.log_probability, total, rtol=0, atol=1e-11)
    assert (drawn.known_log_probability == 0).all()
    conditioned = draw_levels(
        [stepper_of(priors[1], 6, 1.0)], Noise(8, indices), labels, SamplingOptions(), None, expected[:1]
    )
    assert all(map(torch.equal, conditioned.codes, expected))
    torch.testing.assert_close(
        conditioned.log_probability, -code_nats(priors[1], expected[1], labels, expected[:1]).detach().sum((1, 2))
    )


@every_prior
def test_known_codes_of_every_level_are_kept_and_scored(kind: type[Prior]) -> None:
    priors, indices = two_levels(kind), torch.arange(5)
    given = [random_codes(5, 2, 3), random_codes(5, 4, 6)]
    known = [level.clone() for level in given]
    known[0][:, 0, 1:] = -1
    known[1][:, 1:3] = -1
    drawn = draw_levels(
        [stepper_of(prior, 5, 1.0) for prior in priors], Noise(1, indices), None, SamplingOptions(), known
    )
    nats = [
        code_nats(prior, drawn.codes[level], None, drawn.codes[:level]).detach() for level, prior in enumerate(priors)
    ]
    total, known_total = torch.zeros(2, 5, dtype=torch.float64)
    for codes, original, kept, cost in zip(drawn.codes, given, known, nats, strict=True):
        assert torch.equal(codes[kept >= 0], original[kept >= 0]) and not torch.equal(codes, original)
        total -= cost.sum((1, 2))
        known_total -= (cost * (kept >= 0)).sum((1, 2))
    torch.testing.assert_close(drawn.log_probability, total, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.known_log_probability, known_total, rtol=0, atol=1e-5)


def test_a_coarse_code_conditions_all_positions_that_it_covers_alike() -> None:
    levels = CoarserLevels((7, 5), 4, 0, 0.0)
    coarse, middle = torch.arange(6).reshape(1, 2, 3), torch.arange(24).reshape(1, 4, 6) % 5
    first, second = (levels.get_parameter(f"embeddings.{level}.weight").detach() for level in range(2))
    expected = first[coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)]
    expected = expected + second[middle.repeat_interleave(2, 1).repeat_interleave(2, 2)]
    torch.testing.assert_close(levels([coarse, middle], (8, 12)).detach(), expected.movedim(-1, 1))
