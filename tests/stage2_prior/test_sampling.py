"""Drawing: sharpening against naive computations, the loop against the definition, and the same image in any batch."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stage2_prior import Noise, Prior, PriorConfig, SamplingOptions, Stepper, draw, make_prior
from stage2_prior.config import PriorName
from stage2_prior.sampling.noise import gumbel, image_words
from tests.stage2_prior.priors import prior_classes, random_codes, small_prior

every_prior = pytest.mark.parametrize("kind", prior_classes())
OPTIONS = [
    SamplingOptions(),
    SamplingOptions(temperature=0.7),
    SamplingOptions(top_k=3),
    SamplingOptions(top_p=0.6),
    SamplingOptions(temperature=1.3, top_k=5, top_p=0.8),
]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9, unique=True), st.integers(1, 9))
def test_top_k_keeps_the_k_largest(logits: list[float], count: int) -> None:
    kept = (
        SamplingOptions(top_k=count)
        .sharpen(torch.tensor([logits], dtype=torch.float64))[0]
        .isfinite()
        .nonzero()
        .flatten()
        .tolist()
    )
    largest = sorted(range(len(logits)), key=lambda i: -logits[i])[:count]
    assert kept == sorted(largest)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9, unique=True), st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_codes_that_hold_the_mass(logits: list[float], mass: float) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    kept = SamplingOptions(top_p=mass).sharpen(row)[0].isfinite()
    probabilities = row.softmax(1)[0]
    held = float(probabilities[kept].sum())
    assert held >= mass - 1e-9
    assert held - float(probabilities[kept].min()) < mass + 1e-9
    assert bool((probabilities[kept].min() >= probabilities[~kept]).all())


def test_temperature_comes_first_then_top_k_then_top_p() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    # At temperature 2 the two largest of the three kept hold 0.82 of the mass; at temperature 1 one alone holds 0.67.
    assert SamplingOptions(temperature=2.0, top_k=3, top_p=0.6).sharpen(logits).isfinite().tolist() == [
        [True, True, False, False]
    ]
    assert SamplingOptions(top_k=3, top_p=0.6).sharpen(logits).isfinite().tolist() == [[True, False, False, False]]
    # Of all four, the first two hold 0.72: top-p before top-k would keep a third at 0.75.
    assert SamplingOptions(temperature=2.0, top_k=3, top_p=0.75).sharpen(logits).isfinite().tolist() == [
        [True, True, False, False]
    ]


def test_temperature_divides_the_logits() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(SamplingOptions(temperature=0.5).sharpen(logits), 2 * logits)
    for one in (SamplingOptions(), SamplingOptions(temperature=1), SamplingOptions(guidance="best")):
        assert torch.equal(one.sharpen(logits), logits)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("guidance", lambda: SamplingOptions(guidance=-1.0)),
        ("guidance takes a number or best", lambda: SamplingOptions(guidance="bets")),  # type: ignore[arg-type]
        ("guidance best has a temperature", lambda: SamplingOptions(guidance="best", temperature=0.9)),
        ("temperature", lambda: SamplingOptions(temperature=0.0)),
        ("top_k", lambda: SamplingOptions(top_k=0)),
        ("top_p", lambda: SamplingOptions(top_p=0.0)),
        ("top_p", lambda: SamplingOptions(top_p=1.5)),
    ],
)
def test_impossible_options_are_refused(name: str, make: Callable[[], SamplingOptions]) -> None:
    with pytest.raises(ValueError, match=name):
        make()


def begun(prior: Prior, n: int, labels: Tensor | None = None) -> Stepper:
    stepper = prior.stepper(n)
    stepper.begin(labels)
    return stepper


def drawn(
    prior: Prior, indices: Tensor, options: SamplingOptions | None = None, labels: Tensor | None = None
) -> Tensor:
    return draw(begun(prior, len(indices), labels), Noise(3, indices), options or SamplingOptions()).codes


@every_prior
@pytest.mark.parametrize("options", OPTIONS)
def test_each_code_is_the_argmax_of_sharpened_logits_and_noise(kind: type[Prior], options: SamplingOptions) -> None:
    prior, indices = small_prior(kind), torch.arange(4)
    codes = drawn(prior, indices, options)
    logits, words = prior(codes, None), image_words(3, indices, 0)
    for row in range(4):
        for column in range(5):
            expected = (
                options.sharpen(logits[:, :, row, column]) + gumbel(words, torch.tensor([row * 5 + column]), 7)[0]
            ).argmax(1)
            assert torch.equal(codes[:, row, column], expected)


@every_prior
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_same_images_come_out_of_any_batch(kind: type[Prior], batch: int) -> None:
    prior = small_prior(kind, num_classes=3)
    indices, labels = torch.arange(70), torch.arange(70) % 3
    whole = drawn(prior, indices, None, labels)
    batches = list(zip(torch.split(indices, batch), torch.split(labels, batch), strict=True))[:10]
    again = torch.cat([drawn(prior, i, None, y) for i, y in batches])
    assert torch.equal(again, whole[: len(again)])
    assert len({tuple(codes.flatten().tolist()) for codes in whole}) > 60, "images differ from each other"


@every_prior
def test_known_codes_are_kept_and_do_not_change_the_noise_of_others(kind: type[Prior]) -> None:
    prior, indices = small_prior(kind), torch.arange(3)
    free = draw(begun(prior, 3), Noise(0, indices), SamplingOptions()).codes
    known = torch.full((3, 4, 5), -1)
    known[:, :2] = free[:, :2]
    assert torch.equal(draw(begun(prior, 3), Noise(0, indices), SamplingOptions(), known).codes, free)
    known[:, 3, 4] = 6
    assert (draw(begun(prior, 3), Noise(0, indices), SamplingOptions(), known).codes[:, 3, 4] == 6).all()


@every_prior
@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**62))
def test_scoring_is_drawing_with_all_codes_known(kind: type[Prior], seed: int) -> None:
    prior, codes = small_prior(kind), random_codes(3, 4, 5)
    scored = draw(begun(prior, 3), Noise(seed, torch.arange(3)), SamplingOptions(temperature=0.5), codes)
    assert torch.equal(scored.codes, codes)
    expected = prior(codes, None).log_softmax(1).gather(1, codes[:, None]).sum((1, 2, 3))
    torch.testing.assert_close(scored.log_probability, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mass", "kept"), [(0.2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.75, 3), (0.9, 4), (1.0, 4)]
)
def test_the_code_that_crosses_p_is_kept_and_none_after_it(mass: float, kept: int) -> None:
    """Of four codes of exactly a quarter each: sums of their probabilities meet p exactly."""
    logits = torch.full((2, 4), 3.0, dtype=torch.float64)
    assert logits.softmax(1).tolist() == [[0.25] * 4] * 2
    expected = [index < kept for index in range(4)]
    assert SamplingOptions(top_p=mass).sharpen(logits).isfinite().tolist() == [expected] * 2


def test_of_equal_logits_at_the_boundary_top_k_keeps_all() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert SamplingOptions(top_k=2).sharpen(logits).isfinite().tolist() == [[False, True, True, True, False]]
    kept = SamplingOptions(top_k=2).sharpen(logits)
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])


MAPS: dict[tuple[PriorName, int], list[list[list[int]]]] = {
    ("pixelcnn", 0): [[[3, 2, 1], [3, 1, 3]], [[3, 3, 4], [1, 2, 1]], [[4, 1, 3], [3, 1, 1]]],
    ("pixelcnn", 1): [[[1, 3, 4], [3, 4, 2]], [[1, 1, 3], [1, 1, 3]], [[0, 2, 3], [3, 1, 2]]],
    ("pixelsnail", 0): [[[3, 2, 2], [0, 1, 0]], [[3, 3, 0], [0, 2, 0]], [[4, 1, 0], [0, 1, 2]]],
    ("pixelsnail", 1): [[[0, 2, 4], [2, 4, 2]], [[0, 0, 3], [0, 0, 3]], [[0, 0, 0], [3, 1, 2]]],
    ("transformer", 0): [[[0, 0, 2], [0, 2, 3]], [[0, 1, 3], [2, 4, 3]], [[3, 3, 4], [2, 2, 1]]],
    ("transformer", 1): [[[1, 0, 2], [2, 2, 3]], [[3, 0, 2], [1, 3, 2]], [[3, 2, 2], [2, 3, 2]]],
}
SEEDS: dict[PriorName, int] = {"pixelcnn": 7, "pixelsnail": 7, "transformer": 8}  # with which no rounding decides


# Of transformers from before format 7.
RMS_MAPS: dict[tuple[PriorName, int], list[list[list[int]]]] = {
    ("transformer", 0): MAPS["transformer", 0],
    ("transformer", 1): [[[1, 0, 2], [2, 2, 3]], [[3, 0, 2], [1, 3, 2]], [[3, 3, 2], [2, 3, 2]]],
}


@pytest.mark.parametrize(
    ("name", "level", "normalisation", "maps"),
    [(*which, "layer", maps) for which, maps in MAPS.items()]
    + [(*which, "rms", maps) for which, maps in RMS_MAPS.items()],
)
@torch.no_grad()
def test_what_fixed_weights_draw_is_written_down(
    name: PriorName, level: int, normalisation: Literal["layer", "rms"], maps: list[list[list[int]]]
) -> None:
    """The same weights and seed are the same pictures in every later version."""
    sizes: dict[str, Any] = {"height": 2, "width": 3, "num_codes": 5, "num_classes": 2, "hidden": 4, "layers": 2}
    sizes |= {"head": 4, "attention_heads": None if name == "pixelcnn" else 1, "normalisation": normalisation}
    prior = make_prior(PriorConfig(prior=name, coarser=(5,) * level, **sizes)).double().eval()
    for number, parameter in enumerate(prior.parameters()):
        steps = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.copy_((((7 * steps + 3 * number) % 11 - 5) / 6).reshape(parameter.shape))
    labels, indices = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 17])
    coarser = [torch.arange(18).reshape(3, 2, 3) % 5] * level
    stepper = prior.stepper(3)
    stepper.begin(labels, coarser)
    codes = draw(stepper, Noise(SEEDS[name], indices, level), SamplingOptions()).codes
    words = image_words(SEEDS[name], indices, level)
    noise = gumbel(words, torch.arange(6), 5).reshape(2, 3, 3, 5).permute(2, 3, 0, 1)
    first, second = (prior(codes, labels, coarser) + noise).topk(2, dim=1).values.unbind(1)
    assert float((first - second).min()) > 0.02, "no rounding decides"
    assert codes.tolist() == maps


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 4, 100])
def test_noise_belongs_to_its_position_however_many_are_made_at_a_time(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    prior, indices = small_prior(prior_classes()[0]), torch.arange(4)
    expected = drawn(prior, indices)
    monkeypatch.setattr("stage2_prior.sampling.draw.NOISE_BLOCK", at_a_time * 4 * 7)
    assert torch.equal(drawn(prior, indices), expected)
