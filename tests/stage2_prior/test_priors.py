"""What every prior must satisfy: its logits depend on all earlier codes and on no later one."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior import CodeBatch, PixelCNN, Prior, PriorConfig, PriorError, PriorTask, make_prior
from tests.stage2_prior.priors import prior_classes, random_codes, randomised, small_prior

every_prior = pytest.mark.parametrize("kind", prior_classes())


def test_the_package_has_a_prior() -> None:
    assert PixelCNN in prior_classes()


def influence(prior: Prior, codes: Tensor, row: int, column: int) -> Tensor:
    """The size of the gradient of the logits at a position with respect to the embedded code of each position."""
    embedded: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    hook = prior.get_submodule("embedding").register_forward_hook(keep)
    logits = prior(codes, None)
    hook.remove()
    weights = torch.randn(logits.shape[1], dtype=logits.dtype, generator=torch.Generator().manual_seed(3))
    (logits[0, :, row, column] * weights).sum().backward()
    assert embedded[0].grad is not None
    return embedded[0].grad[0].abs().sum(-1)


@every_prior
@pytest.mark.parametrize(("height", "width"), [(4, 5), (5, 3), (1, 4), (4, 1)])
def test_logits_depend_on_all_earlier_codes_and_on_no_later_one(kind: type[Prior], height: int, width: int) -> None:
    prior = small_prior(kind, height, width)
    codes = random_codes(1, height, width)
    for position in range(height * width):
        gradient = influence(prior, codes, position // width, position % width).flatten()
        assert (gradient[position:] == 0).all(), f"position {position} sees itself or the future"
        assert (gradient[:position] > 0).all(), f"position {position} is blind to the past"


@every_prior
def test_changing_a_code_changes_only_later_logits(kind: type[Prior]) -> None:
    prior, codes = small_prior(kind), random_codes(1, 4, 5)
    before = prior(codes, None).flatten(2)
    for position in range(20):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 7
        difference = (prior(changed, None).flatten(2) - before).abs().amax((0, 1))
        assert (difference[: position + 1] == 0).all()
        assert (difference[position + 1 :] > 0).all()


@every_prior
def test_a_forward_pass_over_the_first_rows_gives_the_logits_of_the_whole(kind: type[Prior]) -> None:
    prior, codes = small_prior(kind), random_codes(3, 4, 5)
    torch.testing.assert_close(prior(codes[:, :2], None), prior(codes, None)[:, :, :2], rtol=0, atol=1e-12)


@every_prior
def test_each_class_has_logits_of_its_own_at_every_position(kind: type[Prior]) -> None:
    prior, codes = small_prior(kind, num_classes=3), random_codes(1, 4, 5).expand(3, 4, 5)
    logits = prior(codes, torch.arange(3))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert ((logits[first] - logits[second]).abs().amax(0) > 1e-6).all()


@every_prior
def test_labels_must_be_given_exactly_where_there_are_classes(kind: type[Prior]) -> None:
    codes = random_codes(2, 4, 5)
    with pytest.raises(PriorError, match="3 classes; labels were not given"):
        small_prior(kind, num_classes=3)(codes, None)
    with pytest.raises(PriorError, match="0 classes; labels were given"):
        small_prior(kind)(codes, torch.zeros(2, dtype=torch.int64))


@every_prior
def test_the_probabilities_of_all_maps_sum_to_one(kind: type[Prior]) -> None:
    prior = small_prior(kind, height=2, width=2)
    maps = torch.cartesian_prod(*[torch.arange(7)] * 4).reshape(-1, 2, 2)
    nats = F.cross_entropy(prior(maps, None).detach(), maps, reduction="none").sum((1, 2))
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)


@every_prior
def test_the_loss_is_the_mean_over_codes_and_evaluation_its_sum(kind: type[Prior]) -> None:
    task, codes = PriorTask(small_prior(kind)), random_codes(6, 4, 5)
    log_probabilities = task.network(codes, None).detach().log_softmax(1).gather(1, codes[:, None])
    loss = task(CodeBatch(codes, None)).loss.detach()
    assert float(loss) == pytest.approx(float(-log_probabilities.mean()), rel=1e-6)
    parts = [task.evaluate(CodeBatch(part, None)) for part in (codes[:2], codes[2:])]
    summed = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert task.summarise(summed).values["nats"] == pytest.approx(float(loss), rel=1e-6)


@every_prior
def test_a_prior_learns_a_deterministic_pattern(kind: type[Prior]) -> None:
    torch.manual_seed(0)
    config = PriorConfig(height=3, width=4, num_codes=4, hidden=16, layers=3, first_kernel=3, head=16, dropout=0.0)
    task = PriorTask(kind(config))
    start = torch.randint(4, (64, 1, 1))
    codes = (start + torch.arange(12).reshape(3, 4)) % 4  # all follows from the first code
    optimizer = torch.optim.Adam(task.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = task(CodeBatch(codes, None)).loss
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) == pytest.approx(math.log(4) / 12, abs=0.02), "only the first code is uncertain"


def test_logits_see_as_many_rows_and_columns_back_as_the_reach_says() -> None:
    config = PriorConfig(height=9, width=9, num_codes=7, hidden=16, layers=3, first_kernel=5, kernel=3, head=16)
    prior, codes = randomised(make_prior(config)), random_codes(1, 9, 9)
    before = prior(codes, None)[0, :, 8, 8]

    def sees(row: int, column: int) -> bool:
        other = codes.clone()
        other[0, row, column] = (codes[0, row, column] + 1) % 7
        return not torch.equal(prior(other, None)[0, :, 8, 8], before)

    assert config.reach == 2 + 1 + 1
    assert sees(8 - 4, 8) and sees(8, 8 - 4) and not sees(8 - 5, 8) and not sees(8, 8 - 5)
    assert replace(config, prior="pixelsnail").reach is None


def test_even_windows_are_refused_all_at_once() -> None:
    with pytest.raises(ValueError, match="kernel = 4, first_kernel = 6"):
        PriorConfig(kernel=4, first_kernel=6)


def test_convolutions_hold_their_causal_taps_only() -> None:
    prior = small_prior(PixelCNN)
    shapes = {tuple(w.shape[2:]) for name, w in prior.named_parameters() if name.endswith("vertical.weight")}
    assert shapes == {(2, 5), (2, 3)}
    shapes = {tuple(w.shape[2:]) for name, w in prior.named_parameters() if name.endswith("horizontal.weight")}
    assert shapes == {(1, 2)}
