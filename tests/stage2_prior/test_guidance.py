"""Classifier-free guidance: what it does to logits, what it needs, and labels that are hidden in training."""

from dataclasses import replace

import pytest
import torch

from stage2_prior import (
    CodeBatch,
    GuidanceSchedule,
    GuidedStepper,
    Noise,
    Prior,
    PriorConfig,
    PriorError,
    PriorTask,
    SamplingOptions,
    draw,
)
from stage2_prior.sampling.guidance import stepper_of
from tests.stage2_prior.priors import prior_classes, random_codes, randomised, small_prior
from tests.stage2_prior.test_incremental import teacher_forced

every_prior = pytest.mark.parametrize("kind", prior_classes())


def guidable(kind: type[Prior]) -> Prior:
    """A small prior that says of itself that it learned to do without a class."""
    prior = small_prior(kind, num_classes=3)
    prior.config = replace(prior.config, label_dropout=0.1)
    return prior


@every_prior
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_logits_are_beyond_those_of_the_class(kind: type[Prior], scale: float) -> None:
    prior, codes, labels = guidable(kind), random_codes(4, 4, 5), torch.tensor([0, 1, 2, 0])
    conditional, unconditional = (prior(codes, known).detach() for known in (labels, torch.full_like(labels, -1)))
    expected = unconditional + scale * (conditional - unconditional)
    actual = teacher_forced(GuidedStepper(prior, 4, scale), codes, labels)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    assert float((conditional - unconditional).abs().max()) > 1e-3


def test_a_schedule_takes_guidance_from_one_to_its_scale() -> None:
    prior, codes, labels = guidable(prior_classes()[0]), random_codes(4, 4, 5), torch.tensor([0, 1, 2, 0])
    conditional, unconditional = (prior(codes, known).detach() for known in (labels, torch.full_like(labels, -1)))
    fractions = torch.arange(20, dtype=torch.float64).reshape(4, 5) / 19
    growths: dict[GuidanceSchedule, torch.Tensor] = {
        "linear": fractions,
        "cosine": (torch.pi / 2 * fractions**2.5).sin() ** 2,
    }
    for schedule, grown in growths.items():
        scales = 1 + 2 * grown
        assert float(scales[0, 0]) == 1 and abs(float(scales[-1, -1]) - 3) < 1e-12
        actual = teacher_forced(GuidedStepper(prior, 4, 3.0, schedule), codes, labels)
        torch.testing.assert_close(actual, unconditional + scales * (conditional - unconditional), rtol=0, atol=1e-10)


@every_prior
def test_an_unknown_class_shifts_nothing(kind: type[Prior]) -> None:
    prior, codes = small_prior(kind, num_classes=3), random_codes(2, 4, 5)
    unknown = prior(codes, torch.tensor([-1, -1]))
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if name.endswith(("condition.weight", "shift.weight")):
                parameter.zero_()
    torch.testing.assert_close(prior(codes, torch.tensor([0, 2])), unknown)


def test_guidance_needs_classes_that_were_hidden_at_times() -> None:
    kind = prior_classes()[0]
    with pytest.raises(PriorError, match=r"guidance 2\.0 needs classes"):
        GuidedStepper(small_prior(kind), 2, 2.0)
    with pytest.raises(PriorError, match=r"label_dropout 0: train one with --label-dropout"):
        GuidedStepper(small_prior(kind, num_classes=3), 2, 2.0)


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.25, True), (0.25, False)])
def test_labels_are_hidden_in_training_alone(rate: float, training: bool) -> None:
    config = PriorConfig(height=2, width=2, num_codes=4, num_classes=3, hidden=16, layers=1, label_dropout=rate)
    task = PriorTask(prior_classes()[0](config)).train(training)
    seen: list[torch.Tensor] = []
    task.network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
    labels = torch.arange(4000) % 3
    task(CodeBatch(torch.zeros(4000, 2, 2, dtype=torch.int64), labels))
    hidden = seen[0] == -1
    assert torch.equal(seen[0][~hidden], labels[~hidden])
    expected = 4000 * rate if training else 0
    assert abs(int(hidden.sum()) - expected) <= 4 * (4000 * rate * (1 - rate)) ** 0.5


@every_prior
def test_more_guidance_shows_the_class_more(kind: type[Prior]) -> None:
    torch.manual_seed(0)
    config = PriorConfig(
        height=2, width=3, num_codes=4, num_classes=2, hidden=16, layers=2, first_kernel=3, head=16, label_dropout=0.3,
        dropout=0.0, code_dropout=0.0,
    )  # fmt: skip
    task = PriorTask(kind(config)).train()
    labels = torch.arange(1024) % 2
    biased = torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]])
    codes = torch.multinomial(biased[labels], 6, replacement=True).reshape(1024, 2, 3)
    optimizer = torch.optim.Adam(task.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(task(CodeBatch(codes, labels)).loss)
        optimizer.step()
    task.eval()
    shown = []
    for scale in (0.0, 1.0, 4.0):
        stepper = GuidedStepper(task.network, 400, scale)
        stepper.begin(torch.zeros(400, dtype=torch.int64))
        shown.append(float((draw(stepper, Noise(0, torch.arange(400)), SamplingOptions()).codes == 0).double().mean()))
    assert shown[0] + 0.1 < shown[1] < shown[2] - 0.03


def test_only_a_scale_of_one_needs_no_second_pass() -> None:
    prior = guidable(prior_classes()[0])
    assert [isinstance(stepper_of(prior, 2, scale), GuidedStepper) for scale in (0.0, 0.5, 1.0, 2.0)] == [
        True,
        True,
        False,
        True,
    ]


@every_prior
def test_guidance_is_conditioned_on_coarser_levels_in_both_halves(kind: type[Prior]) -> None:
    config = PriorConfig(
        height=4, width=6, num_codes=7, num_classes=3, hidden=16, layers=2, head=8, coarser=(7,), label_dropout=0.1
    )
    prior = randomised(kind(config))
    codes, labels = random_codes(3, 4, 6), torch.tensor([0, 1, 2])
    coarser = [random_codes(3, 2, 3).flip(0)]
    known, unknown = (prior(codes, given, coarser).detach() for given in (labels, torch.full_like(labels, -1)))
    actual = teacher_forced(GuidedStepper(prior, 3, 2.5), codes, labels, coarser)
    torch.testing.assert_close(actual, unknown + 2.5 * (known - unknown), rtol=0, atol=1e-9)
