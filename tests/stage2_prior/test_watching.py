"""Whoever watches a drawing sees the codes so far, changes none of them, and can end it between two rows."""

import pytest
import torch
from torch import Tensor

from stage2_prior import Noise, SamplingOptions, WatchedStepper, draw_levels, stepper_of
from tests.stage2_prior.priors import prior_classes
from tests.stage2_prior.test_levels import two_levels

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", prior_classes())
def test_what_is_watched_is_the_beginning_of_what_is_drawn(kind: type) -> None:
    priors, noise, seen = two_levels(kind), Noise(3, torch.arange(5)), list[tuple[Tensor, ...]]()
    plain = [stepper_of(prior, 5, 1.0) for prior in priors]
    expected = draw_levels(plain, noise, None, SamplingOptions()).codes
    watched = [WatchedStepper(stepper, 5, seen.append, CPU) for stepper in plain]
    drawn = draw_levels(watched, noise, None, SamplingOptions()).codes
    assert all(map(torch.equal, drawn, expected))
    moments = [(level, row) for level, codes in enumerate(expected) for row in range(codes.shape[1])]
    assert len(seen) == len(moments) == 6
    for levels, (level, row) in zip(seen, moments, strict=True):
        assert len(levels) == level + 1 and all(map(torch.equal, levels[:-1], expected))
        assert torch.equal(levels[-1][:, :row], expected[level][:, :row]) and (levels[-1][:, row:] == -1).all()


def test_an_error_of_whoever_watches_ends_the_drawing_before_the_next_row() -> None:
    def stop_at_second_row(levels: tuple[Tensor, ...]) -> None:
        seen.append(levels)
        if len(seen) == 2:
            raise KeyError("enough")

    seen = list[tuple[Tensor, ...]]()
    [_, prior] = two_levels(prior_classes()[0])
    stepper = WatchedStepper(stepper_of(prior, 1, 1.0), 1, stop_at_second_row, CPU)
    with pytest.raises(KeyError, match="enough"):
        draw_levels([stepper], Noise(0, torch.arange(1)), None, SamplingOptions(), None, [torch.zeros(1, 2, 3).long()])
    assert len(seen) == 2 and (stepper.codes[:, 1:] == -1).all() and (stepper.codes[:, 0] >= 0).all()
