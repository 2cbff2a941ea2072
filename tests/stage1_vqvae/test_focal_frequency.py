"""The focal frequency loss, against numpy and against Parseval's theorem."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stage1_vqvae.perceptual import focal_frequency
from tests.stage1_vqvae.pictures import drawn_images

shapes = pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 7, 5), (1, 3, 4, 9), (2, 1, 1, 1)])


@shapes
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_it_is_the_weighted_mean_over_all_frequencies(shape: tuple[int, ...], alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    size = np.abs(np.fft.fft2(images.numpy(), norm="ortho") - np.fft.fft2(others.numpy(), norm="ortho"))
    weight = size**alpha / (size**alpha).max((2, 3), keepdims=True)
    assert float(focal_frequency(images, others, alpha)) == pytest.approx((weight * size**2).mean(), rel=1e-10)


@shapes
def test_with_equal_weights_it_is_the_squared_error_and_so_is_its_gradient(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    images.requires_grad_()
    own, expected = focal_frequency(images, others, 0.0), F.mse_loss(images, others)
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(torch.autograd.grad(own, images), torch.autograd.grad(expected, images))
    assert torch.autograd.gradcheck(lambda images: focal_frequency(images, others, 0.0), images)


def test_no_gradient_passes_through_the_weights() -> None:
    """The gradient is that of a weighted error with the weights held constant."""
    images, others = drawn_images(2, size=8).double().requires_grad_(), drawn_images(2, size=8, seed=9).double()
    difference = torch.fft.fft2(images - others, norm="ortho").abs()
    weight = difference.detach() / difference.detach().amax((2, 3), keepdim=True)
    expected = torch.autograd.grad((weight * difference.square()).mean(), images)
    torch.testing.assert_close(torch.autograd.grad(focal_frequency(images, others), images), expected)


def test_of_equal_images_it_is_zero_with_no_gradient() -> None:
    images = drawn_images(2).requires_grad_()
    loss = focal_frequency(images, drawn_images(2))
    torch.autograd.backward([loss])
    assert float(loss.detach()) == 0 and images.grad is not None and float(images.grad.abs().max()) == 0


def test_the_precision_around_does_not_matter() -> None:
    images, others = drawn_images(2), drawn_images(2, seed=9)
    with torch.autocast("cpu", torch.bfloat16):
        inside = focal_frequency(images, others)
        of_half = focal_frequency(images.bfloat16(), others)
    assert inside.dtype == of_half.dtype == torch.float32
    assert torch.equal(inside, focal_frequency(images, others))
