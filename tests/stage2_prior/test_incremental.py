"""The stepper that every prior draws with, against its forward pass and against the plain sampler."""

from collections import deque
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from stage2_prior import Noise, PrefixStepper, Prior, PriorError, SamplingOptions, Stepper, draw
from stage2_prior.priors.stepping import Buffers
from tests.stage2_prior.priors import prior_classes, random_codes, small_prior

every_prior = pytest.mark.parametrize("kind", prior_classes())
SIZES = [(1, 1), (1, 6), (6, 1), (4, 5), (7, 3), (5, 8)]
# Each size, with and without classes and in either precision; and at one size either precision with and without.
CASES = [(*size, *options) for size in SIZES for options in ((0, torch.float64), (3, torch.float32))]
CASES += [(4, 5, 3, torch.float64), (4, 5, 0, torch.float32)]
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}


@torch.no_grad()
def teacher_forced(stepper: Stepper, codes: Tensor, labels: Tensor | None, coarser: Sequence[Tensor] = ()) -> Tensor:
    """Logits (n, num_codes, h, w) of given codes, computed one position at a time."""
    stepper.begin(labels, coarser)
    rows = []
    for row in range(codes.shape[1]):
        stepper.begin_row(row)
        columns = []
        for column in range(codes.shape[2]):
            columns.append(stepper.logits(column).clone())
            stepper.accept(column, codes[:, row, column])
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows, 2)


def test_the_memory_of_a_stepper_counts_each_storage_once_and_whole() -> None:
    part = Buffers()
    numbers = torch.zeros(6, 5, dtype=torch.float64)
    part.whole, part.views, part.other = numbers, [numbers[:2], numbers[4:]], 3  # type: ignore[attr-defined]
    part.small = torch.zeros(10)[:2]  # type: ignore[attr-defined]
    assert part.memory() == 30 * 8 + 10 * 4


def storages(part: object) -> dict[int, int]:
    """Bytes of all storages that an object holds, in whatever attributes, sequences and parts, but in no module."""
    if isinstance(part, Tensor):
        return {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()}
    if isinstance(part, torch.nn.Module) or not (isinstance(part, list | tuple | deque) or hasattr(part, "__dict__")):
        return {}
    inner = part if isinstance(part, list | tuple | deque) else vars(part).values()
    return {key: size for each in inner for key, size in storages(each).items()}


@every_prior
@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_memory_of_a_stepper_is_that_of_all_tensors_it_holds(kind: type[Prior], num_classes: int) -> None:
    prior = small_prior(kind, num_classes=num_classes)
    held = [sum(storages(prior.stepper(n)).values()) for n in (1, 50)]
    assert [prior.stepper(n).memory() for n in (1, 50)] == held
    assert held[1] > 2 * held[0]


@every_prior
@pytest.mark.parametrize(("height", "width", "num_classes", "dtype"), CASES)
def test_teacher_forced_logits_are_those_of_the_forward_pass(
    kind: type[Prior], height: int, width: int, num_classes: int, dtype: torch.dtype
) -> None:
    prior = small_prior(kind, height, width, num_classes).to(dtype)
    for n in (1, 2, 33):
        codes = random_codes(n, height, width)
        labels = torch.arange(n) % num_classes if num_classes else None
        expected = prior(codes, labels).detach()
        actual = teacher_forced(prior.stepper(n), codes, labels)
        assert float((actual - expected).abs().max()) <= BOUND[dtype] * max(1.0, float(expected.abs().max()))


@every_prior
def test_a_stepper_starts_anew_with_every_batch(kind: type[Prior]) -> None:
    prior = small_prior(kind, num_classes=3)
    stepper, labels = prior.stepper(4), torch.tensor([0, 1, 2, 0])
    first = teacher_forced(stepper, random_codes(4, 4, 5), labels)
    teacher_forced(stepper, 6 - random_codes(4, 4, 5), labels.flip(0))
    assert torch.equal(teacher_forced(stepper, random_codes(4, 4, 5), labels), first)


@every_prior
@pytest.mark.parametrize(
    "options",
    [SamplingOptions(), SamplingOptions(temperature=0.7), SamplingOptions(top_k=3), SamplingOptions(top_p=0.6)],
)
def test_codes_are_those_of_the_plain_sampler(kind: type[Prior], options: SamplingOptions) -> None:
    prior, labels, noise = small_prior(kind, num_classes=3), torch.arange(9) % 3, Noise(4, torch.arange(9))
    drawn = []
    for stepper in (prior.stepper(9), PrefixStepper(prior, 9)):
        stepper.begin(labels)
        drawn.append(draw(stepper, noise, options))
    assert torch.equal(drawn[0].codes, drawn[1].codes)
    torch.testing.assert_close(drawn[0].log_probability, drawn[1].log_probability, rtol=0, atol=1e-11)


@every_prior
def test_drawn_maps_follow_the_law_of_the_prior(kind: type[Prior]) -> None:
    prior, n = small_prior(kind, height=2, width=1), 20_000
    stepper = prior.stepper(n)
    stepper.begin(None)
    codes = draw(stepper, Noise(1, torch.arange(n)), SamplingOptions()).codes.flatten(1)
    maps = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    log_probability = prior(maps.reshape(-1, 2, 1), None).detach().log_softmax(1).flatten(2)
    expected = n * log_probability.gather(1, maps[:, None]).sum((1, 2)).exp()
    counts = torch.bincount(codes[:, 0] * 7 + codes[:, 1], minlength=49)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert float(expected.min()) > 5, "enough of each for the approximation"
    assert chi_square < 48 + 4 * (2 * 48) ** 0.5  # mean and deviation for 48 degrees of freedom; the noise is fixed


@every_prior
def test_a_stepper_checks_labels_as_forward_does(kind: type[Prior]) -> None:
    with pytest.raises(PriorError, match="3 classes; labels were not given"):
        small_prior(kind, num_classes=3).stepper(2).begin(None)
    with pytest.raises(PriorError, match="0 classes; labels were given"):
        small_prior(kind).stepper(2).begin(torch.zeros(2, dtype=torch.int64))
