"""Randomness as a pure function of (seed, image index, level, position, code): no generator, no state.

An image is then the same in whichever batch or process it is drawn. The hash is the finaliser of SplitMix64
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), applied once per key.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd number nearest 2^64 / golden ratio, as a signed int64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift_right(words: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Logical shift: torch shifts int64 with the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def mix(words: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A bijection of 64-bit words in which every bit of the input changes each bit of the output half the time."""
    words = (words ^ _shift_right(words, 30)) * _FIRST
    words = (words ^ _shift_right(words, 27)) * _SECOND
    return words ^ _shift_right(words, 31)


def combine(words: Int[Tensor, "..."], key: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """Hash one more key into the hashes `words`."""
    return mix(words + _GOLDEN * (torch.as_tensor(key, dtype=torch.int64, device=words.device) + 1))


def uniform(words: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Hashes to float64 in the open interval (0, 1), from their upper 52 bits (with 53 the largest rounds to 1)."""
    return (_shift_right(words, 12).double() + 0.5) * 2.0**-52


def image_words(seed: int, image_indices: Int[Tensor, "n"], level: int) -> Int[Tensor, "n"]:
    """One hash per image at a level."""
    start = mix(torch.full_like(image_indices, seed % 2**63) + _GOLDEN)
    return combine(combine(start, image_indices), level)


def gumbel(words: Int[Tensor, "n"], positions: Int[Tensor, "p"], num_codes: int) -> Float[Tensor, "p n num_codes"]:
    """Standard Gumbel noise for every code at these positions of each image: -ln(-ln u), in float64."""
    at_position = combine(words, positions[:, None])
    codes = torch.arange(num_codes, device=words.device)
    return uniform(combine(at_position[:, :, None], codes)).log_().neg_().log_().neg_()
