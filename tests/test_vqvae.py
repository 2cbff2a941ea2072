"""The model around the quantizer: shapes, loss, errors."""

from typing import Literal

import numpy as np
import pytest
import torch

from stage1_vqvae import VQVAE, VQVAEConfig, VQVAEError
from stage1_vqvae.networks import Encoder


def model(channels: int = 3, height: int = 16, width: int = 8, halvings: int = 2) -> VQVAE:
    config = VQVAEConfig(
        channels=channels, height=height, width=width, halvings=halvings, hidden=8, residual_channels=4, num_codes=10
    )
    return VQVAE(config, data_variance=0.04).eval()


@pytest.mark.parametrize(("channels", "height", "width", "halvings"), [(1, 48, 32, 3), (3, 16, 8, 2), (1, 6, 10, 1)])
def test_codes_are_smaller_by_the_halvings_and_images_come_back_in_size(
    channels: int, height: int, width: int, halvings: int
) -> None:
    images = torch.randint(0, 256, (5, channels, height, width), dtype=torch.uint8)
    network = model(channels, height, width, halvings)
    (codes,) = network.encode(images)
    assert codes.shape == (5, height // 2**halvings, width // 2**halvings)
    decoded = network.decode((codes,))
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8


def test_decoding_codes_is_what_the_forward_pass_reconstructs() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 8), dtype=torch.uint8)
    network = model()
    output = network(images)
    reconstructed = ((output.reconstruction + 0.5) * 255).round().clamp(0, 255).byte()
    assert (network.decode(output.codes).int() - reconstructed.int()).abs().max() <= 1  # z + (e - z) rounds


def test_the_reconstruction_loss_is_the_error_over_the_datas_variance() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 8), dtype=torch.uint8)
    output = model()(images)
    error = output.reconstruction.detach().double().numpy() - (images.double().numpy() / 255 - 0.5)
    assert float(output.metrics["nmse"]) == pytest.approx((error**2).mean() / 0.04, rel=1e-4)
    expected = output.metrics["nmse"] + output.metrics["bottleneck_loss"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_evaluation_adds_up_over_batches() -> None:
    network = model()
    images = torch.randint(0, 256, (7, 3, 16, 8), dtype=torch.uint8)
    whole = network.summarise(network.evaluate(images))
    parts = [network.evaluate(images[:3]), network.evaluate(images[3:]), network.evaluate(images[:0])]
    summed = network.summarise({name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in parts[0]})
    assert summed == pytest.approx(whole, rel=1e-5)
    output = network(images)
    mse = float(((output.reconstruction.detach().double() - (images.double() / 255 - 0.5)) ** 2).mean())
    assert whole["nmse"] == pytest.approx(mse / 0.04, rel=1e-4)
    assert whole["psnr"] == pytest.approx(10 * np.log10(1 / mse), rel=1e-4)
    codes = network.encode(images)[0].numpy()
    frequencies = np.bincount(codes.ravel()) / codes.size
    entropy = -sum(p * np.log(p) for p in frequencies if p)
    assert whole["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)
    assert whole["code_use"] == pytest.approx(len(np.unique(codes)) / 10)


def test_misfits_are_named_with_both_shapes() -> None:
    network = model()
    with pytest.raises(VQVAEError, match=r"\(n, 3, 16, 8\).*\(2, 1, 16, 8\)"):
        network.encode(torch.zeros(2, 1, 16, 8, dtype=torch.uint8))
    with pytest.raises(VQVAEError, match=r"\[0, 10\); got 0 to 10"):
        network.decode((torch.full((1, 4, 2), 10).tril(),))
    with pytest.raises(VQVAEError, match=r"\(n, 4, 2\); got \[\(1, 4, 2\), \(1, 4, 2\)\]"):
        network.decode((torch.zeros(1, 4, 2).long(), torch.zeros(1, 4, 2).long()))
    with pytest.raises(VQVAEError, match=r"\(n, 4, 2\); got \[\(1, 2, 4\)\]"):
        network.decode((torch.zeros(1, 2, 4).long(),))


def test_a_size_that_the_stride_does_not_divide_is_refused_with_one_that_fits() -> None:
    with pytest.raises(ValueError, match=r"30x32 pixels.*= 8.*32x32"):
        VQVAEConfig(height=30, width=32, halvings=3)


@pytest.mark.parametrize(("halvings", "kernel", "side"), [(1, 1, 4), (2, 1, 10), (3, 1, 22), (2, 3, 34)])
def test_a_code_describes_its_own_patch_and_with_wider_windows_more(
    halvings: int, kernel: Literal[1, 3], side: int
) -> None:
    config = VQVAEConfig(
        channels=1, height=80, width=80, halvings=halvings, hidden=8, residual_channels=4, encoder_kernel=kernel
    )
    images = torch.rand(1, 1, 80, 80, requires_grad=True)
    features = Encoder(config)(images)
    middle = features.shape[2] // 2
    features[0, :, middle, middle].square().sum().backward()
    assert images.grad is not None
    reached = images.grad[0, 0].nonzero()
    stride = 2**halvings
    first = (middle * stride) - (side - stride) // 2
    assert int(reached.min()) >= first and int(reached.max()) < first + side
    assert int(reached.max() - reached.min()) > side // 2
