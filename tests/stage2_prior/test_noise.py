"""Sampling noise: the hash against whole-number arithmetic, and the law of what it yields."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stage2_prior.sampling.noise import combine, gumbel, image_words, mix, uniform

MASK = 2**64 - 1


def mix_integer(word: int) -> int:
    """The finaliser of SplitMix64 on Python's unbounded integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


@given(st.integers(0, MASK))
def test_mix_is_the_splitmix64_finaliser(word: int) -> None:
    assert int(mix(torch.tensor([signed(word)]))) == signed(mix_integer(word))


def test_the_first_output_of_splitmix64_is_the_published_one() -> None:
    # Seed 1234567: the first value of the reference implementation's test vector.
    state = (1234567 + 0x9E3779B97F4A7C15) & MASK
    assert mix_integer(state) == 6457827717110365317
    assert int(mix(torch.tensor([signed(state)]))) == 6457827717110365317


def test_uniforms_are_never_zero_or_one() -> None:
    extremes = uniform(torch.tensor([0, -1, 2**63 - 1, -(2**63)]))
    assert (extremes > 0).all() and (extremes < 1).all()
    assert torch.isfinite(extremes.log().neg().log()).all()


def draws(n: int, seed: int = 0, position: int = 0, codes: int = 4) -> torch.Tensor:
    return gumbel(image_words(seed, torch.arange(n), 0), torch.tensor([position]), codes)[0]


def test_noise_has_the_moments_of_the_gumbel_law() -> None:
    noise = draws(50_000).flatten()
    assert float(noise.mean()) == pytest.approx(0.5772156649, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_noise_is_uncorrelated_over_codes_positions_images_and_seeds() -> None:
    reference = draws(20_000)
    others = {
        "codes": reference.roll(1, dims=1),
        "positions": draws(20_000, position=1),
        "images": reference.roll(1, dims=0),
        "seeds": draws(20_000, seed=1),
        "levels": gumbel(image_words(0, torch.arange(20_000), 1), torch.tensor([0]), 4)[0],
    }
    for name, other in others.items():
        correlation = torch.corrcoef(torch.stack([reference.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4.5 / math.sqrt(80_000), name


def test_draws_follow_the_categorical_law() -> None:
    n, logits = 40_000, torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    counts = torch.bincount((logits + draws(n)).argmax(1), minlength=4)
    expected = n * logits.softmax(0)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.27  # the 99.9 % point for 3 degrees of freedom; the noise is fixed, so this cannot flicker


def test_an_images_noise_is_its_own_in_any_batch() -> None:
    together = gumbel(image_words(5, torch.tensor([3, 8, 1]), 0), torch.tensor([0, 2]), 6)
    alone = gumbel(image_words(5, torch.tensor([8]), 0), torch.tensor([2]), 6)
    assert torch.equal(together[1:, 1:2], alone)


def test_the_order_of_keys_matters() -> None:
    word = torch.tensor([7])
    assert int(combine(combine(word, 1), 2)) != int(combine(combine(word, 2), 1))


# What a seed means for all time: with other hashes every picture would be another one. (seed, image, level, position,
# code), then the hash, from a reference in whole numbers, and the noise.
GOLDEN = [
    ((0, 0, 0, 0, 0), 8695987549771912286, 0.284984163),
    ((3, 17, 0, 5, 11), 1380877939454549989, -0.952494744),
    ((3, 17, 1, 5, 11), 6495658709826934018, -0.042823656),
    ((2**40 + 1, 123456, 2, 63, 511), 9824868813719126795, 0.462081371),
]


@pytest.mark.parametrize(("keys", "expected", "noise"), GOLDEN)
def test_the_noise_of_seed_image_level_position_and_code_is_written_down(
    keys: tuple[int, int, int, int, int], expected: int, noise: float
) -> None:
    seed, image, level, position, code = keys
    word = mix_integer((seed + 0x9E3779B97F4A7C15) & MASK)
    for key in (image, level, position, code):
        word = mix_integer((word + 0x9E3779B97F4A7C15 * (key + 1)) & MASK)
    assert word == expected, "the reference"
    words = image_words(seed, torch.tensor([image]), level)
    assert int(combine(combine(words, position), code)) == signed(expected)
    assert float(gumbel(words, torch.tensor([position]), code + 1)[0, 0, code]) == pytest.approx(noise, abs=1e-8)


def test_the_largest_noises_of_an_image_are_written_down() -> None:
    for level, expected in enumerate(([1, 4, 0, 4, 3, 4, 3, 2, 4, 1, 3, 3], [1, 3, 0, 2, 2, 3, 2, 3, 2, 0, 2, 2])):
        noise = gumbel(image_words(3, torch.tensor([17]), level), torch.arange(12), 5)[:, 0]
        assert noise.argmax(1).tolist() == expected


def test_uniforms_are_the_middles_of_two_to_the_52_bins() -> None:
    for word in (0, 1 << 12, 0xABCDEF9876543210, MASK):
        assert float(uniform(torch.tensor([signed(word)]))) == ((word >> 12) + 0.5) / 2**52
