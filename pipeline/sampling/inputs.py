"""What a caller gives in Python, images or codes, made arrays and tensors of the right kind, or refused."""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.errors import UsageError
from stage1_vqvae import Codes, VQVAEConfig

Images: TypeAlias = UInt8[Tensor, "n c h w"] | UInt8[np.ndarray, "n c h w"]


def as_array(given: object, name: str) -> np.ndarray:
    """An array of an array, a tensor on any device, or nested lists. Raises UsageError for what holds no numbers."""
    try:
        array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, and tensors of device meta or of bfloat16
        raise UsageError(f"{name} must be an array or a tensor; these cannot be read ({error})") from error
    if array.dtype.kind not in "biufc":
        raise UsageError(f"{name} must be an array or a tensor of numbers; got {type(given).__name__}: {given!r:.60}")
    return array


def check_images(images: Images, config: VQVAEConfig) -> Images:
    """The images, as an array or a tensor, if stage 1 can encode them. Raises UsageError."""
    found = images if isinstance(images, Tensor) and not images.is_meta else as_array(images, "images")
    expected = (config.channels, config.height, config.width)
    dtype = str(found.dtype).removeprefix("torch.")
    if dtype != "uint8" or found.ndim != 4 or tuple(found.shape[1:]) != expected:
        raise UsageError(
            f"this model encodes uint8 images of shape (n, {', '.join(map(str, expected))}); "
            f"got {dtype} of shape {tuple(found.shape)}"
        )
    return found


def batch_of(images: Images, start: int, size: int) -> UInt8[Tensor, "m c h w"]:
    """A few of the images as a tensor. Of an array they are copied: it may be mapped from a file, read-only, or turned
    in a way that torch does not know."""
    few = images[start : start + size]
    return few if isinstance(few, Tensor) else torch.from_numpy(np.array(few))


def check_codes(codes: Codes, config: VQVAEConfig) -> Codes:
    """The codes, a tensor a level, if they are of a type that can be codes, and of as many images at every level.

    Shapes and bounds are checked by stage 1, where they are decoded. Raises UsageError.
    """
    if isinstance(codes, Tensor | np.ndarray) or not isinstance(codes, Iterable):
        raise UsageError(f"codes are a tuple of levels, an array each; got {type(codes).__name__}: write (codes,)")
    arrays = [as_array(level, "codes") for level in codes]
    kinds, needed = ("iu", "whole numbers") if config.is_discrete else ("f", "floating-point numbers")
    wrong = [str(array.dtype) for array in arrays if array.dtype.kind not in kinds]
    if wrong:
        raise UsageError(f"codes of a {config.bottleneck} bottleneck are {needed}; got {' and '.join(wrong)}")
    if any(array.ndim == 0 for array in arrays) or len({len(array) for array in arrays}) != 1:
        shapes = ", ".join(str(array.shape) for array in arrays) or "no level"
        raise UsageError(f"codes of as many images at every level are needed; got {shapes}")
    if not config.is_discrete and not all(np.isfinite(array).all() for array in arrays):
        raise UsageError("codes must be finite; these hold nan or inf")
    return tuple(map(_as_signed, arrays))


def _as_signed(array: np.ndarray) -> Tensor:
    """Without a copy where torch can use the array: it computes on no unsigned numbers but bytes, and knows no array
    that is turned or read-only."""
    if array.dtype.kind == "u":
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(np.require(array, requirements=("C", "W")))
