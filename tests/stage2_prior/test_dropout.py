"""Dropout by bytes, against its definition."""

import pytest
import torch
from torch import Tensor

from stage2_prior.priors.dropout import Dropout


def drop(features: Tensor, rate: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    result: Tensor = Dropout(rate).train()(features)
    return result


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_feature_is_dropped_at_this_rate_and_the_mean_stays(rate: float, layout: torch.memory_format) -> None:
    ones = torch.ones(7, 33, 31, 29).to(memory_format=layout)
    result, kept = drop(ones, rate), 1 - round(256 * rate) / 256
    assert sorted(set(result.flatten().tolist())) == pytest.approx([0, 1 / kept])
    error = (kept * (1 - kept) / ones.numel()) ** 0.5
    assert abs(float((result > 0).double().mean()) - kept) < 5 * error
    for dim in range(4):  # no image, channel, row or column is dropped more than others
        own = (result > 0).double().mean([other for other in range(4) if other != dim])
        assert (own - kept).abs().max() < 5 * error * ones.shape[dim] ** 0.5
    assert result.stride() == ones.stride()


def test_neighbours_are_dropped_independently() -> None:
    dropped = (drop(torch.ones(2**16), 0.5) == 0).double() - 0.5
    for distance in (1, 2, 4, 7, 8, 9, 64):
        assert abs(float((dropped[distance:] * dropped[:-distance]).mean())) < 5 * 0.25 / 2**8


def test_the_gradient_passes_where_features_do() -> None:
    features = torch.randn(5, 13, requires_grad=True)
    result = drop(features, 0.5)
    [gradient] = torch.autograd.grad(result.sum(), [features])
    torch.testing.assert_close(gradient * features, result)
    assert (gradient == 0).any() and (gradient > 0).any()


def test_masks_follow_the_seed_and_evaluation_drops_nothing() -> None:
    features = torch.randn(64)
    dropped = drop(features, 0.5)
    assert torch.equal(drop(features, 0.5), dropped) and not torch.equal(drop(features, 0.5, seed=1), dropped)
    assert torch.equal(Dropout(0.5).eval()(features), features) and torch.equal(drop(features, 0.0), features)
    assert torch.equal(drop(features, 0.0019), features), "nearer to 0 than to 1 of 256"
    assert drop(torch.ones(2**16), 0.9999).max() == 256, "one of 256 stays"


def test_features_without_values_have_a_shape() -> None:
    assert Dropout(0.5).train()(torch.ones(4, 6, device="meta")).shape == (4, 6)
    assert drop(torch.ones(0, 3), 0.5).shape == (0, 3)
