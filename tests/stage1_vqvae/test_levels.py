"""Several levels of codes: grids, residuals, the order of conditioning, and what the top levels alone decode to."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage1_vqvae.bottlenecks import DiscreteBottleneck, VectorQuantizer

Kind = Literal["hierarchical", "residual"]
Name = Literal["vq", "gumbel", "fsq"]
every_kind = pytest.mark.parametrize("kind", ["hierarchical", "residual"])
every_discrete_one = pytest.mark.parametrize("name", ["vq", "gumbel", "fsq"])


def model(kind: Kind, name: Name = "vq", levels: int = 3, **options: Any) -> VQVAE:
    config = VQVAEConfig(
        bottleneck=name,
        levels=levels,
        level_kind=kind,
        num_codes=12,
        code_dim=3,
        channels=1,
        height=16,
        width=32,
        downsampling=2,
        hidden=8,
        residual_channels=4,
        **options,
    )
    return VQVAE(config).eval()


def random_images(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 16, 32), dtype=torch.uint8)


def test_hierarchical_grids_are_halved_and_residual_ones_repeated() -> None:
    assert model("hierarchical").config.grids == ((2, 4), (4, 8), (8, 16))
    assert model("residual").config.grids == ((8, 16), (8, 16), (8, 16))
    assert model("hierarchical", levels=1).config.grids == model("residual", levels=1).config.grids == ((8, 16),)


def test_all_strided_convolutions_have_kernels_that_divide_by_the_stride() -> None:
    """4x4, so that every pixel counts alike in both directions; of a 3x3 kernel of stride 2 every second one would."""
    convolutions = [m for m in model("hierarchical").modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    strided = [convolution.kernel_size for convolution in convolutions if convolution.stride == (2, 2)]
    assert strided == [(4, 4)] * (1 + 2 + 2 + 1), "encoder, two levels down, two up, decoder"


@every_kind
@every_discrete_one
def test_codes_decode_to_what_the_forward_pass_reconstructs(kind: Kind, name: Name) -> None:
    network, images = model(kind, name), random_images()
    output = network(images, 1.0)
    codes = network.encode(images)
    assert [tuple(level.shape[1:]) for level in codes] == list(network.config.grids)
    assert all(torch.equal(one, other) for one, other in zip(codes, output.codes, strict=True))
    reconstructed = ((output.reconstruction + 0.5) * 255).round().clamp(0, 255).byte()
    assert (network.decode(codes).int() - reconstructed.int()).abs().max() <= 1


@every_kind
@every_discrete_one
def test_the_loss_reaches_every_weight(kind: Kind, name: Name) -> None:
    task = VQVAETask(model(kind, name, codebook_rule="gradient")).train()
    for head in task.network.levels.heads.parameters():
        head.data *= 20  # or all first codes of fsq are 0
    task(random_images(), 0.5).loss.backward()
    still = [key for key, p in task.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert still == []


def test_residual_levels_of_vq_code_what_is_left() -> None:
    network, images = model("residual"), random_images()
    with torch.no_grad():
        outputs = network.levels.entry(network.encoder(network.normalise(images)))
    left = outputs.movedim(1, -1).double().numpy()
    for codes, bottleneck in zip(network.encode(images), network.levels.bottlenecks, strict=True):
        assert isinstance(bottleneck, VectorQuantizer)
        codebook = bottleneck.codebook.double().numpy()
        nearest = ((left[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
        assert np.array_equal(codes.numpy(), nearest)
        left = left - codebook[nearest]
    decoded = network.levels.decode(network.encode(images)).movedim(1, -1).double().numpy()
    np.testing.assert_allclose(outputs.movedim(1, -1).double().numpy() - decoded, left, atol=1e-5)


def test_the_straight_through_gradient_passes_once() -> None:
    network = model("residual", commitment=0.0).train()
    network.levels.entry = torch.nn.Identity()
    features = torch.randn(2, 3, 8, 16, requires_grad=True)
    weights = torch.randn(2, 3, 8, 16)
    (network.levels(features, 0.0).decoder_input * weights).sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, weights)


def test_each_level_leaves_less() -> None:
    network = model("residual")
    batches = [random_images(20) for _ in range(2)]
    VQVAETask(network).initialise(batches, torch.Generator().manual_seed(0))
    features = network.encoder(network.normalise(batches[0]))
    outputs, codes = network.levels.entry(features), network.levels.encode(features)
    errors = [float((outputs - network.levels.decode(codes[:count])).detach().square().mean()) for count in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.5 * errors[0]


@every_kind
def test_coarse_codes_do_not_depend_on_fine_levels_and_fine_ones_do_on_coarse(kind: Kind) -> None:
    network, images = model(kind), random_images()
    VQVAETask(network).initialise([images], torch.Generator().manual_seed(0))
    before = network.encode(images)
    finest = network.levels.bottlenecks[2]
    assert isinstance(finest, VectorQuantizer)
    finest.codebook.copy_(torch.randn(12, 3))
    assert all(torch.equal(one, other) for one, other in zip(before[:2], network.encode(images)[:2], strict=True))
    coarsest = network.levels.bottlenecks[0]
    assert isinstance(coarsest, VectorQuantizer)
    coarsest.codebook.copy_(torch.randn(12, 3))
    assert not torch.equal(before[1], network.encode(images)[1])


@every_kind
@every_discrete_one
def test_levels_left_out_are_decoded_from_their_mean(kind: Kind, name: Name) -> None:
    network, images = model(kind, name), random_images()
    for bottleneck in network.levels.in_order():
        assert isinstance(bottleneck, DiscreteBottleneck)
        bottleneck.mean_counts.copy_(torch.rand(12))
    codes = network.encode(images)
    top = network.decode(codes[:1])
    assert top.shape == images.shape
    other = (*codes[:1], *(torch.randint(0, 12, level.shape) for level in codes[1:]))
    assert torch.equal(network.decode(other[:1]), top)
    # With one code, used alone, in all left-out levels, their mean is that code.
    for bottleneck in network.levels.in_order():
        assert isinstance(bottleneck, DiscreteBottleneck)
        bottleneck.mean_counts.copy_(torch.eye(12)[5])
    fives = (codes[0], *(torch.full_like(level, 5) for level in codes[1:]))
    assert (network.decode(fives).int() - network.decode(codes[:1]).int()).abs().max() <= 1


@every_kind
def test_usage_and_bits_are_summarised_level_by_level(kind: Kind) -> None:
    network, images = model(kind, likelihood="discretized-logistic"), random_images(6)
    task = VQVAETask(network).eval()
    values, levels = task.summarise(task.evaluate(images))
    assert len(levels) == 3 and values.keys() == {"nmse", "psnr", "bits_per_dim"}
    for level, codes, (rows, columns) in zip(levels, network.encode(images), network.config.grids, strict=True):
        assert level["codebook_usage"] == pytest.approx(len(set(codes.flatten().tolist())) / 12)
        assert level["bits_per_image"] == pytest.approx(rows * columns * np.log2(12))
    assert values["bits_per_dim"] > sum(level["bits_per_image"] for level in levels) / (16 * 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"height": 8, "levels": 4, "level_kind": "hierarchical"},
            r"downsampling \* 2\^\(levels - 1\) = 16; .* fewer --levels",
        ),
        ({"levels": 2, "bottleneck": "gaussian"}, "--levels 2 needs a discrete bottleneck, and gaussian is continuous"),
        (
            {"levels": 2, "level_kind": "residual", "unit_codes": True},
            "--unit-codes cannot code what other levels left",
        ),
    ],
)
def test_levels_that_do_not_fit_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAEConfig(**{"height": 16, "width": 16, "downsampling": 2, **options})


def test_the_commitment_of_every_residual_level_reaches_the_encoder() -> None:
    """Each level's term is that of what the levels before it left, which are as given."""
    network = model("residual", commitment=0.25).train()
    network.levels.entry = torch.nn.Identity()
    features = torch.randn(2, 3, 8, 16, requires_grad=True)
    output = network.levels(features, 0.0)
    torch.autograd.backward(torch.stack([level.loss for level in output.levels]).sum())
    left, expected = features.detach(), torch.zeros_like(features)
    for codes, bottleneck in zip((level.codes for level in output.levels), network.levels.in_order(), strict=True):
        left = left - bottleneck.decode(codes)
        expected += 0.25 * 2 * left / left.numel()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, expected, rtol=1e-4, atol=1e-7)


def test_of_what_a_fine_level_reads_its_features_come_before_the_coarser_codes() -> None:
    """Weights that are on disk keep their meaning."""
    network, images = model("hierarchical"), random_images()
    VQVAETask(network).initialise([images], torch.Generator().manual_seed(0))
    coarsest, head = network.levels.bottlenecks[0], network.levels.heads[1]
    assert isinstance(coarsest, VectorQuantizer) and isinstance(head, torch.nn.Conv2d)
    assert head.weight.shape[1] == 2 * 8
    head.weight.data[:, 8:] = 0
    before = network.encode(images)[1]
    coarsest.codebook.copy_(torch.randn(12, 3))
    assert torch.equal(network.encode(images)[1], before)
