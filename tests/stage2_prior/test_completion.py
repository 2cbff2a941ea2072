"""The mathematics of completion, against enumeration of everything that the known codes leave open."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from stage2_prior import (
    ClassProposal,
    Noise,
    Prior,
    PriorConfig,
    SamplingOptions,
    choose_candidate,
    code_nats,
    draw,
    draw_classes,
    draw_levels,
    draws_before_known,
    known_nats_per_class,
    make_prior,
    propose_classes,
)
from tests.stage2_prior.priors import prior_classes, random_codes, randomised, small_prior


def gumbel(size: int, *index: int) -> Tensor:
    """Standard Gumbel noise, float64."""
    return torch.from_numpy(np.random.default_rng([0, *index]).gumbel(size=size))


class Pair:
    """A Stepper of maps of two codes, whose joint probabilities are a table."""

    size = (1, 2)

    def __init__(self, table: Tensor, n: int) -> None:
        self.table, self.n = table, n
        self.first = torch.zeros(n, dtype=torch.int64)

    def begin(self, labels: Tensor | None, coarser: Sequence[Tensor] = ()) -> None:
        pass

    def begin_row(self, row: int) -> None:
        pass

    def logits(self, column: int) -> Tensor:
        return self.table.sum(1).log().expand(self.n, -1) if column == 0 else self.table[self.first].log()

    def accept(self, column: int, codes: Tensor) -> None:
        self.first = codes if column == 0 else self.first

    def memory(self) -> int:
        return 0


@pytest.mark.parametrize("candidates", [1, 100])
def test_a_choice_among_many_candidates_follows_the_known_code_after_the_drawn_one(candidates: int) -> None:
    joint = torch.tensor([[0.3, 0.01, 0.1], [0.1, 0.1, 0.1], [0.05, 0.19, 0.05]], dtype=torch.float64)
    # The second code is known: 1.
    known, n, counts = torch.tensor([[[-1, 1]]]).expand(candidates, 1, 2), 1500, np.zeros(3)
    for index in range(n):
        noise = Noise(0, torch.arange(index * candidates, (index + 1) * candidates))
        drawn = draw(Pair(joint, candidates), noise, SamplingOptions(), known)
        counts[drawn.codes[choose_candidate(drawn.known_log_probability, gumbel(candidates, 10, index)), 0, 0]] += 1
    posterior, alone = (joint[:, 1] / joint[:, 1].sum()).numpy(), joint.sum(1).numpy()
    distances = [float(np.abs(counts / n - law).sum()) for law in (posterior, alone)]
    followed, other = distances if candidates > 1 else distances[::-1]
    assert followed < 0.08 and other > 0.5


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (([[[0, 0], [-1, -1]]],), False),
        (([[[0, -1], [0, -1]]],), True),
        (([[[-1, -1], [0, 0]]],), True),
        (([[[0]]], [[[0, -1]]]), False),
        (([[[-1]]], [[[0, -1]]]), True),
    ],
)
def test_whether_a_code_is_drawn_before_a_known_one(known: tuple[list[int], ...], expected: bool) -> None:
    assert draws_before_known(tuple(torch.tensor(level) for level in known)) is expected


def test_the_log_probability_of_known_codes_is_counted_apart() -> None:
    prior, codes = small_prior(prior_classes()[0]), random_codes(3, 4, 5)
    known = torch.where(torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5, codes, -1)
    stepper = prior.stepper(3)
    stepper.begin(None)
    drawn = draw(stepper, Noise(0, torch.arange(3)), SamplingOptions(), known)
    nats = code_nats(prior, drawn.codes, None).detach().double()
    torch.testing.assert_close(drawn.known_log_probability, -(nats * (known >= 0)).sum((1, 2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.log_probability, -nats.sum((1, 2)), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def levels() -> list[Prior]:
    """Priors of two levels of 1x2 codes, each 0 or 1, and three classes."""
    top = PriorConfig(height=1, width=2, num_codes=2, num_classes=3, hidden=8, layers=2, head=8)
    below = PriorConfig(height=1, width=2, num_codes=2, num_classes=3, coarser=(2,), hidden=8, layers=2, head=8)
    return [randomised(make_prior(config), 0.45) for config in (top, below)]


CLASS_WEIGHTS = torch.tensor([5.0, 3.0, 2.0], dtype=torch.float64)
MAPS = torch.tensor(list(product((0, 1), repeat=4)))  # all that the two levels together can be


@torch.no_grad()
def joint(levels: list[Prior]) -> Tensor:
    """p(map, class) of all maps and classes (16, 3): the law that everything here is compared with."""
    top, below = MAPS[:, :2].reshape(-1, 1, 2), MAPS[:, 2:].reshape(-1, 1, 2)
    columns = []
    for label, weight in enumerate(CLASS_WEIGHTS / CLASS_WEIGHTS.sum()):
        labels = torch.full((len(MAPS),), label)
        nats = code_nats(levels[0], top, labels) + code_nats(levels[1], below, labels, [top])
        columns.append(weight * (-nats.sum((1, 2))).exp())
    return torch.stack(columns, 1)


def as_levels(row: Sequence[int]) -> list[Tensor]:
    return [torch.tensor(row[:2]).reshape(1, 1, 2), torch.tensor(row[2:]).reshape(1, 1, 2)]


def agreeing(known: Sequence[int]) -> Tensor:
    """Which of all maps have the known codes (those that are not -1)."""
    wanted = torch.tensor(known)
    return ((wanted == MAPS) | (wanted < 0)).all(1)


def test_the_joint_law_sums_to_one(levels: list[Prior]) -> None:
    law = joint(levels)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    posteriors = law / law.sum(1, keepdim=True)
    assert float(posteriors.max()) > 0.7, "some maps say much about their class"


@pytest.mark.parametrize("known", list(product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1), (0, 1)))[::5])
def test_known_nats_given_all_codes_before_them_are_a_sum_over_the_known_positions(
    levels: list[Prior], known: tuple[int, ...]
) -> None:
    law, context = joint(levels), [max(code, 0) for code in known]  # 0 is the guess
    expected = torch.zeros(3, dtype=torch.float64)
    for position, code in enumerate(known):
        if code >= 0:  # p(code | codes before it, class), by sums over all maps
            before = law[agreeing([*context[:position], *[-1] * (4 - position)])].sum(0)
            expected -= (law[agreeing([*context[: position + 1], *[-1] * (3 - position)])].sum(0) / before).log()
    nats = known_nats_per_class(levels, as_levels(known), as_levels(context))
    assert nats.dtype == torch.float64
    torch.testing.assert_close(nats, expected, rtol=1e-10, atol=1e-12)


def test_known_nats_do_not_depend_on_how_many_classes_are_computed_at_a_time(
    levels: list[Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, context = as_levels([-1, 1, 0, -1]), as_levels([1, 1, 0, 0])
    together = known_nats_per_class(levels, known, context)
    monkeypatch.setattr("stage2_prior.sampling.completion.LOGITS_AT_A_TIME", 1)
    torch.testing.assert_close(known_nats_per_class(levels, known, context), together, rtol=1e-12, atol=0)


def test_as_many_classes_are_computed_at_a_time_as_their_logits_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, codes, counts = small_prior(prior_classes()[0], num_classes=5), random_codes(1, 4, 5), list[int]()
    prior.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
    monkeypatch.setattr("stage2_prior.sampling.completion.LOGITS_AT_A_TIME", 2 * 20 * 7)
    known_nats_per_class([prior], [codes], [codes])
    assert counts == [2, 2, 1]


def test_known_nats_are_empty_without_classes() -> None:
    codes = random_codes(1, 4, 5)
    assert known_nats_per_class([small_prior(prior_classes()[0])], [codes], [codes]).shape == (0,)


@pytest.mark.parametrize("prefix", list(product((0, 1), repeat=3)))
def test_the_proposed_classes_are_bayes_posterior_where_the_known_codes_come_first(
    levels: list[Prior], prefix: tuple[int, ...]
) -> None:
    law = joint(levels)[agreeing([*prefix, -1])].sum(0)
    posterior, before = law / law.sum(), CLASS_WEIGHTS / CLASS_WEIGHTS.sum()
    nats = known_nats_per_class(levels, as_levels([*prefix, -1]), as_levels([*prefix, 0]))
    for mixed, expected in ((False, posterior), (True, 0.9 * posterior + 0.1 * before)):
        proposal = propose_classes(CLASS_WEIGHTS, nats, mixed)
        torch.testing.assert_close(proposal.logits.exp(), expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(proposal.log_weights.exp(), expected / before, rtol=1e-10, atol=0)


def test_a_class_without_training_images_is_never_proposed() -> None:
    for mixed in (False, True):
        proposal = propose_classes(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3.0, 0.1, 3.0]).double(), mixed)
        torch.testing.assert_close(proposal.logits.exp(), torch.tensor([2 / 3, 0, 1 / 3]).double())
        assert not (draw_classes(proposal, gumbel(300).reshape(100, 3)) == 1).any()


def test_drawn_classes_follow_the_proposal() -> None:
    n, law = 40_000, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    classes = draw_classes(ClassProposal(law.log(), torch.zeros(3)), gumbel(3 * n).reshape(n, 3))
    counts = torch.bincount(classes, minlength=3)
    assert float(((counts - n * law) ** 2 / (n * law)).sum()) < 13.8  # 99.9 % for 2 degrees of freedom; fixed noise


def test_the_chosen_candidate_is_drawn_in_proportion_to_its_weight() -> None:
    n, law = 20_000, torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    chosen = torch.tensor([choose_candidate(law.log() + 7, gumbel(3, 1, index)) for index in range(n)])
    counts = torch.bincount(chosen, minlength=3)
    assert float(((counts - n * law) ** 2 / (n * law)).sum()) < 13.8


@pytest.mark.parametrize("known", [(-1, -1, 0, 1), (-1, -1, 1, 0), (-1, -1, -1, 1)])
def test_a_choice_among_many_candidates_follows_the_law_of_the_rest_given_the_known_codes(
    levels: list[Prior], known: tuple[int, ...]
) -> None:
    n, candidates = 3000, 16
    codes, context = as_levels(known), as_levels([max(code, 0) for code in known])
    assert draws_before_known(codes)
    proposal = propose_classes(CLASS_WEIGHTS, known_nats_per_class(levels, codes, context), mixed=True)
    labels = draw_classes(proposal, gumbel(3 * n * candidates).reshape(-1, 3))
    noise = Noise(5, torch.arange(n * candidates))
    kept = [level.expand(n * candidates, -1, -1) for level in codes]
    steppers = [prior.stepper(n * candidates) for prior in levels]
    drawn = draw_levels(steppers, noise, labels, SamplingOptions(), kept)
    weights = (drawn.known_log_probability - proposal.log_weights[labels]).reshape(n, candidates)
    chosen = torch.tensor([choose_candidate(own, gumbel(candidates, 2, i)) for i, own in enumerate(weights)])
    maps = torch.cat([level.flatten(1) for level in drawn.codes], 1).reshape(n, candidates, 4)
    numbers = (maps[torch.arange(n), chosen] * torch.tensor([8, 4, 2, 1])).sum(1)
    law = joint(levels).sum(1) * agreeing(known)
    law = law / law.sum()
    counts = torch.bincount(numbers, minlength=16)
    assert int(counts[law == 0].sum()) == 0, "the known codes are kept"
    assert float((counts / n - law).abs().sum()) < 0.06
    single = torch.bincount((maps.flatten(0, 1) * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16) / (n * candidates)
    assert float((single - law).abs().sum()) > 0.1, "a candidate by itself takes no account of later known codes"
