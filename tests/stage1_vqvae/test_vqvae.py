"""The model around the quantizer: shapes, errors, and which tensors identify codes and decoders."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from stage1_vqvae import VQVAE, VQVAEConfig, VQVAEError
from stage1_vqvae.networks.strided import Encoder

Bottleneck = Literal["vq", "gumbel", "fsq", "gaussian", "mmd", "none"]


def model(channels: int = 3, height: int = 16, width: int = 8, downsampling: int = 4) -> VQVAE:
    config = VQVAEConfig(
        channels=channels,
        height=height,
        width=width,
        downsampling=downsampling,
        hidden=8,
        residual_channels=4,
        num_codes=10,
    )
    return VQVAE(config, data_variance=0.04).eval()


@pytest.mark.parametrize(
    ("channels", "height", "width", "downsampling"), [(1, 48, 32, 8), (3, 16, 8, 4), (1, 6, 10, 2)]
)
def test_codes_are_smaller_by_the_downsampling_and_images_come_back_in_size(
    channels: int, height: int, width: int, downsampling: int
) -> None:
    images = torch.randint(0, 256, (5, channels, height, width), dtype=torch.uint8)
    network = model(channels, height, width, downsampling)
    (codes,) = network.encode(images)
    assert codes.shape == (5, height // downsampling, width // downsampling)
    decoded = network.decode((codes,))
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8


def test_decoding_codes_is_what_the_forward_pass_reconstructs() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 8), dtype=torch.uint8)
    network = model()
    output = network(images)
    reconstructed = ((output.reconstruction + 0.5) * 255).round().clamp(0, 255).byte()
    assert (network.decode(output.codes).int() - reconstructed.int()).abs().max() <= 1  # z + (e - z) rounds


def test_misfits_are_named_with_both_shapes() -> None:
    network = model()
    with pytest.raises(VQVAEError, match=r"\(n, 3, 16, 8\).*\(2, 1, 16, 8\)"):
        network.encode(torch.zeros(2, 1, 16, 8, dtype=torch.uint8))
    with pytest.raises(VQVAEError, match=r"\[0, 10\); got 0 to 10"):
        network.decode((torch.full((1, 4, 2), 10).tril(),))
    with pytest.raises(VQVAEError, match=r"\(n, 4, 2\); got \[\(1, 4, 2\), \(1, 4, 2\)\]"):
        network.decode((torch.zeros(1, 4, 2).long(), torch.zeros(1, 4, 2).long()))
    with pytest.raises(VQVAEError, match=r"\(n, 4, 2\).*; got \[\]"):
        network.decode(())
    with pytest.raises(VQVAEError, match=r"\(n, 4, 2\); got \[\(1, 2, 4\)\]"):
        network.decode((torch.zeros(1, 2, 4).long(),))


def test_levels_of_different_numbers_of_images_are_refused_before_they_are_decoded() -> None:
    network = VQVAE(VQVAEConfig(height=16, width=8, hidden=8, residual_channels=4, num_codes=10, levels=2, channels=1))
    coarse, fine = network.encode(torch.zeros(3, 1, 16, 8, dtype=torch.uint8))
    with pytest.raises(VQVAEError, match="the levels are of 1 and 3 images; give as many"):
        network.decode((coarse[:1], fine))  # torch would repeat the one for all


def test_blocks_of_1x1_kernels_are_as_wide_inside_as_outside() -> None:
    network = VQVAE(VQVAEConfig(height=16, width=8, hidden=8, residual_channels=4, residual_blocks=1, num_codes=10))
    widths = {name: tuple(p.shape) for name, p in network.named_parameters() if name.endswith(".conv.weight")}
    assert sorted(widths.values()) == [(4, 8, 3, 3), (8, 8, 1, 1)], "of the decoder and of the encoder"


def test_of_options_without_effect_only_those_that_were_given_are_named() -> None:
    config = VQVAEConfig(num_codes=10, codebook_rule="simvq")
    assert config.without_effect(["num_codes", "hidden"]) == []
    assert config.without_effect(["revival_ends"]) == ["--revival-ends belongs to other codebook rules; leave it out"]


def test_codes_of_one_number_are_refused_on_the_unit_sphere_alone() -> None:
    assert VQVAEConfig(code_dim=1, num_codes=10).code_dim == 1
    with pytest.raises(ValueError, match="--unit-codes of --code-dim 1 are 1 and -1 alone"):
        VQVAEConfig(code_dim=1, num_codes=10, unit_codes=True)


def test_a_number_of_codes_that_is_no_product_is_refused_for_fsq_alone() -> None:
    assert [VQVAEConfig(bottleneck=name, num_codes=11).num_codes for name in ("vq", "gumbel")] == [11, 11]
    with pytest.raises(ValueError, match="--num-codes 11 is no product of 2 to 8"):
        VQVAEConfig(bottleneck="fsq", num_codes=11)


def test_a_size_that_the_stride_does_not_divide_is_refused_with_one_that_fits() -> None:
    with pytest.raises(ValueError, match=r"30x32 pixels.*= 8.*32x32"):
        VQVAEConfig(height=30, width=32, downsampling=8)


@pytest.mark.parametrize(("downsampling", "kernel", "side"), [(2, 1, 4), (4, 1, 10), (8, 1, 22), (4, 3, 34)])
def test_a_code_describes_its_own_patch_and_with_larger_kernels_more(
    downsampling: int, kernel: Literal[1, 3], side: int
) -> None:
    config = VQVAEConfig(
        channels=1, height=80, width=80, downsampling=downsampling, hidden=8, residual_channels=4, encoder_kernel=kernel
    )
    images = torch.rand(1, 1, 80, 80, requires_grad=True)
    features = Encoder(config)(images)
    middle = features.shape[2] // 2
    features[0, :, middle, middle].square().sum().backward()
    assert images.grad is not None
    reached = images.grad[0, 0].nonzero()
    first = (middle * downsampling) - (side - downsampling) // 2
    assert int(reached.min()) >= first and int(reached.max()) < first + side
    assert int(reached.max() - reached.min()) > side // 2


def test_a_downsampling_that_is_no_power_of_two_is_refused_with_both_neighbours_beside_all_else_that_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"--downsampling 6 is no power of two; choose 4 or 8") as error:
        VQVAEConfig(downsampling=6, bottleneck="fsq", num_codes=509)
    assert "--num-codes 509 is no product of 2 to 8" in str(error.value)
    with pytest.raises(ValueError, match="--downsampling 255 is no power of two; choose 128 or 256"):
        VQVAEConfig(downsampling=255)
    for downsampling in (1, 512):
        with pytest.raises(ValueError, match="downsampling"):
            VQVAEConfig(height=1024, width=1024, downsampling=downsampling)
    grids = [VQVAEConfig(height=256, width=512, downsampling=2**n).grids for n in range(1, 9)]
    assert grids == [((256 // 2**n, 512 // 2**n),) for n in range(1, 9)]


def test_a_smaller_downsampling_is_proposed_only_where_there_is_one() -> None:
    with pytest.raises(ValueError, match=r"--downsampling = 4; choose --image-size 32x32, or a smaller --downsampling"):
        VQVAEConfig(height=30, width=30)
    with pytest.raises(ValueError, match=r"--downsampling = 2; choose --image-size 32x32(?!,)"):
        VQVAEConfig(height=31, width=31, downsampling=2)


@pytest.mark.parametrize(
    ("bottleneck", "levels"),
    [
        ("vq", 1),
        ("vq", 2),
        ("gumbel", 1),
        ("gumbel", 2),
        ("fsq", 1),
        ("fsq", 2),
        ("gaussian", 1),
        ("mmd", 1),
        ("none", 1),
    ],
)
def test_each_tensor_belongs_to_the_codes_or_to_the_decoder(bottleneck: Bottleneck, levels: int) -> None:
    config = VQVAEConfig(
        bottleneck=bottleneck, levels=levels, num_codes=10, hidden=8, likelihood="gaussian", objective="sharp"
    )
    network = VQVAE(config)
    codes, decoder, every = network.code_tensors(), network.decoder_tensors(), network.state_dict()
    assert sorted([*codes, *decoder, "data_variance"]) == sorted(every)
    assert all(torch.equal(tensor, every[name]) for name, tensor in {**codes, **decoder}.items())
    assert "likelihood.slow_log_scale" in decoder and "encoder.0.weight" in codes
    assert any(name.startswith("levels.") for name in codes)


def test_nats_of_an_image_are_those_of_its_pixels_around_what_its_codes_decode_to() -> None:
    images = torch.randint(256, (2, 3, 16, 8)).byte()
    assert model().pixel_nats(images, model().encode(images)) is None
    network = VQVAE(replace(model().config, likelihood="gaussian"), data_variance=0.04).eval()
    nats = network.pixel_nats(images, network.encode(images))
    assert nats is not None and network.likelihood is not None
    expected = network.likelihood.nats(network(images).reconstruction.double(), images).flatten(1).sum(1)
    torch.testing.assert_close(nats, expected.detach(), rtol=1e-5, atol=0)


def test_codes_depend_on_the_code_tensors_alone() -> None:
    images = torch.randint(0, 256, (5, 3, 16, 8), dtype=torch.uint8)
    network = model()
    before, decoded = network.encode(images)[0], network.decode(network.encode(images))
    for tensor in network.decoder_tensors().values():
        tensor.copy_(torch.randn_like(tensor))
    assert torch.equal(network.encode(images)[0], before)
    assert not torch.equal(network.decode((before,)), decoded)
    for name, tensor in network.code_tensors().items():
        if name.startswith("encoder."):
            tensor.copy_(torch.randn_like(tensor))
    assert not torch.equal(network.encode(images)[0], before)


class Fixed(torch.nn.Module):
    """A decoder that gives the same image for any codes."""

    def __init__(self, pixels: torch.Tensor) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.pixels.expand(len(codes), -1, -1, -1)


def test_pixels_are_rounded_to_the_nearest_grey_level_and_cut_to_those_there_are() -> None:
    network, greys = model(1, 8, 8), torch.linspace(-20, 280, 64).reshape(1, 1, 8, 8)
    network.decoder = Fixed(greys / 255 - 0.5)  # type: ignore[assignment]
    decoded = network.decode((torch.zeros(1, 2, 2, dtype=torch.int64),))
    assert torch.equal(decoded, greys.round().clamp(0, 255).byte())
    assert (
        int(decoded.min()) == 0 and int(decoded.max()) == 255 and not torch.equal(decoded, greys.clamp(0, 255).byte())
    )


@pytest.mark.parametrize(
    ("options", "unit", "dimension"),
    [
        ({}, True, 32),
        ({"levels": 2}, True, 32),
        ({"code_dim": 8}, False, 8),
        ({"unit_codes": False}, False, 8),
        ({"code_dim": 16, "unit_codes": True}, True, 16),
        ({"channels": 1}, False, 8),
        ({"objective": "nmse"}, False, 8),
        ({"height": 64, "width": 64}, False, 8),
        ({"bottleneck": "gumbel"}, False, 8),
        ({"codebook_rule": "simvq"}, False, 8),
        ({"levels": 2, "level_kind": "residual"}, False, 8),
    ],
)
def test_small_pictures_in_colour_have_codes_of_length_1_unless_others_are_chosen(
    options: dict[str, Any], unit: bool, dimension: int
) -> None:
    resolved = VQVAEConfig(**options).resolved()
    assert (resolved.unit_codes, resolved.code_dim, resolved.dimension) == (unit, dimension, dimension)
    assert resolved.resolved() == resolved
