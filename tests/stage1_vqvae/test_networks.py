"""Encoders and decoders: sizes, what a code depends on, where gradients go, the names that weights are saved under."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage1_vqvae.networks import NETWORKS
from stage1_vqvae.networks.residual import ChannelNorm, Decoder, Encoder, ResidualBlock, feature_widths


def config(**options: Any) -> VQVAEConfig:
    sizes = {"channels": 1, "height": 32, "width": 48, "hidden": 16, "residual_blocks": 1, "num_codes": 12}
    return VQVAEConfig(**{"network": "residual", "code_dim": 3, **sizes, **options})


def images(of: VQVAEConfig, n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, of.channels, of.height, of.width), dtype=torch.uint8)


def moved(network: nn.Module) -> nn.Module:
    """With other weights than a network starts with, so that none of them are alike."""
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("downsampling", [2**n for n in range(1, 9)])
def test_a_decoder_gives_an_image_of_the_size_that_its_encoder_took(
    name: Literal["strided", "residual"], downsampling: int
) -> None:
    rows, columns = (2, 3) if downsampling < 64 else (1, 2)
    height, width = rows * downsampling, columns * downsampling
    of = config(network=name, height=height, width=width, channels=3, downsampling=downsampling)
    features = NETWORKS[name].encoder(of)(torch.zeros(1, 3, height, width))
    assert features.shape == (1, of.hidden, rows, columns)
    assert NETWORKS[name].decoder(of, 3)(torch.zeros(1, 3, rows, columns)).shape == (1, 3, height, width)
    assert NETWORKS[name].up(of)(features).shape == (1, of.hidden, 2 * rows, 2 * columns)
    assert NETWORKS[name].down(of)(features.repeat(1, 1, 2, 2)).shape == features.shape


@pytest.mark.parametrize(
    ("downsampling", "widths"),
    [(2, [64]), (4, [32, 64]), (8, [16, 32, 64]), (16, [16, 16, 32, 64]), (32, [16, 16, 16, 32, 64])],
)
def test_finer_resolutions_have_half_the_channels_and_at_least_a_quarter(downsampling: int, widths: list[int]) -> None:
    of = config(hidden=64, downsampling=downsampling, height=64, width=64, residual_blocks=2)
    assert feature_widths(of) == widths
    for network, every in ((Encoder(of), widths), (Decoder(of, 3), widths[::-1])):
        blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
        channels = [len(list(module.parameters())[-1]) for module in blocks]  # its last bias
        assert channels == [width for width in every for _ in range(2)], "two blocks at each resolution"


def pixels_of_the_middle_code(of: VQVAEConfig) -> tuple[int, int, int]:
    """The first and the last row that a code in the middle depends on, by the gradient, and the row of that code."""
    inputs = torch.rand(1, 1, of.height, of.width, requires_grad=True)
    features = moved(Encoder(of))(inputs)
    middle = features.shape[2] // 2
    features[0, :, middle, middle].square().sum().backward()
    assert inputs.grad is not None
    rows = inputs.grad[0, 0].abs().sum(1).nonzero().flatten()
    return int(rows.min()), int(rows.max()), middle


@pytest.mark.parametrize(
    ("downsampling", "kernel", "blocks", "before", "after"),
    [
        # At half the resolution: 1 around by the first convolution, and 2 more by each block.
        (2, 1, 1, 2 * 1, 2 * 1 + 1),
        (2, 3, 2, 2 * 5, 2 * 5 + 1),
        # A kernel of 4 sees 1 before and 2 after the first of its two positions.
        (4, 1, 0, 2 * 2, 2 * 3 + 1),
        (4, 1, 1, 2 * 4, 2 * 5 + 1),
        (4, 1, 2, 2 * 6, 2 * 7 + 1),
        (4, 3, 1, 2 * 8, 2 * 9 + 1),
        (8, 1, 1, 2 * 10, 2 * 13 + 1),
    ],
)
def test_a_code_depends_on_what_lies_around_its_patch_alone(
    downsampling: int, kernel: Literal[1, 3], blocks: int, before: int, after: int
) -> None:
    of = config(downsampling=downsampling, encoder_kernel=kernel, residual_blocks=blocks, height=96, width=96)
    first, last, code = pixels_of_the_middle_code(of)
    assert (code * downsampling - first, last - code * downsampling) == (before, after)


def test_a_pixel_changes_the_codes_around_it_and_no_bit_of_any_other() -> None:
    of = config(height=96, width=96, downsampling=4)
    encoder, image = moved(Encoder(of)), torch.rand(1, 1, 96, 96)
    other = image.clone()
    other[0, 0, 40, 40] += 1
    rows, columns = (encoder(image) != encoder(other)).any(1)[0].nonzero().unbind(1)
    # Code j depends on the pixels from 4j - 8 to 4j + 11.
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(8, 13))


def test_a_code_changes_the_pixels_around_it_and_no_bit_of_any_other() -> None:
    of = config(height=96, width=96, downsampling=4)
    decoder, codes = moved(Decoder(of, 3)), torch.rand(1, 3, 24, 24)
    other = codes.clone()
    other[0, :, 12, 12] += 1
    rows = (decoder(codes) != decoder(other)).any(1)[0].nonzero()
    # 3 positions to each side and the convolution to finer ones 1; at half the height 2 of the block and 1 of the last.
    assert (int(rows.min()), int(rows.max())) == (2 * (2 * (12 - 4) - 3), 2 * (2 * (12 + 4) + 1 + 3) + 1)


@pytest.mark.parametrize(
    "options",
    [
        {"bottleneck": "vq"},
        {"bottleneck": "vq", "unit_codes": True, "code_dim": 4},
        {"bottleneck": "gumbel"},
        {"bottleneck": "gaussian", "likelihood": "gaussian"},
        {"bottleneck": "vq", "levels": 3, "level_kind": "hierarchical", "downsampling": 2},
        {"bottleneck": "vq", "levels": 2, "level_kind": "residual"},
    ],
)
def test_the_loss_reaches_every_weight_and_each_tensor_belongs_to_codes_or_decoder(options: dict[str, Any]) -> None:
    of = config(codebook_rule="gradient", **options) if options["bottleneck"] == "vq" else config(**options)
    task = VQVAETask(VQVAE(of, 0.08)).train()
    task(images(of), 0.5).loss.backward()
    still = [key for key, p in task.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert still == []
    tensors = [*task.network.code_tensors(), *task.network.decoder_tensors(), "data_variance"]
    assert sorted(tensors) == sorted(task.network.state_dict())


@pytest.mark.parametrize("downsampling", [2, 4, 16])
def test_images_begin_near_grey_and_a_few_steps_bring_them_nearer_to_the_target(downsampling: int) -> None:
    torch.manual_seed(0)
    of = config(downsampling=downsampling, hidden=32, residual_blocks=2, bottleneck="none", code_dim=8)
    task, batch = VQVAETask(VQVAE(of, 1 / 12)).train(), images(of, 1)
    batch = F.interpolate(batch[..., :4, :4].float(), (of.height, of.width), mode="bilinear").byte()
    assert float(task.network(batch).reconstruction.detach().abs().max()) < 0.25
    optimizer = torch.optim.AdamW(task.parameters(), 2e-3)
    losses = []
    for _ in range(20):
        loss = task(batch, 0.0).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_a_finer_grid_begins_with_four_pixels_alike_for_each_position() -> None:
    of = config()
    fine = NETWORKS["residual"].up(of)(torch.randn(1, 16, 5, 7))
    corners = [fine[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    assert all(torch.equal(corner, corners[0]) for corner in corners)
    assert not torch.equal(corners[0][:, 0], corners[0][:, 1])


def test_a_block_adds_to_its_input() -> None:
    block, features = ResidualBlock(8, 3), torch.randn(2, 8, 4, 4)
    assert not torch.equal(block(features), features)
    for parameter in block.second[-1].parameters():
        parameter.data.zero_()
    assert torch.equal(block(features), features)


def test_the_norm_is_over_the_channels_of_each_position() -> None:
    norm, features = ChannelNorm(6), 3 + 5 * torch.randn(2, 6, 4, 3)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    mean, variance = features.mean(1, keepdim=True), features.var(1, correction=0, keepdim=True)
    expected = (features - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(features), expected)


def test_in_bfloat16_nothing_is_kept_in_float32_and_channels_stay_last() -> None:
    network, kept = VQVAE(config(bottleneck="none")).to(memory_format=torch.channels_last), list[Tensor]()
    weights = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.ndim == 4 and tensor.data_ptr() not in weights:
            kept.append(tensor)
        return tensor

    batch = network.normalise(images(network.config, 3)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.decoder(network.levels.entry(network.encoder(batch)))
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    features = network.encoder[2](network.encoder[1](network.encoder[0](batch)))  # a block's
    assert features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def test_in_double_precision_codes_are_those_of_single_precision_but_for_ties() -> None:
    network, batch = VQVAE(config(hidden=32, height=64, width=64)).eval(), images(config(height=64, width=64), 4)
    [single], [double] = network.encode(batch), network.double().encode(batch)
    assert float((single != double).double().mean()) < 0.01


def test_options_that_mean_nothing_to_a_network_are_named_and_too_few_channels_refused() -> None:
    assert config().without_effect(["residual_channels", "residual_blocks", "hidden", "encoder_kernel"]) == [
        "--residual-channels belongs to --network strided; leave it out"
    ]
    assert replace(config(), network="strided").without_effect(["residual_channels"]) == []
    with pytest.raises(ValueError, match=r"--network residual needs --hidden of 16 or more.*; got 15"):
        config(hidden=15)
    assert config(hidden=15, network="strided").hidden == 15


def test_weights_of_the_strided_network_have_the_names_and_shapes_that_runs_on_disk_have() -> None:
    of = config(network="strided", channels=3, hidden=8, residual_channels=4, downsampling=4, levels=2)
    assert VQVAEConfig().network == "strided"
    state = VQVAE(of).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if "bottlenecks" not in name}
    assert found == {
        "data_variance": (),
        "encoder.0.weight": (4, 3, 4, 4),
        "encoder.0.bias": (4,),
        "encoder.2.weight": (8, 4, 4, 4),
        "encoder.2.bias": (8,),
        "encoder.4.weight": (8, 8, 1, 1),
        "encoder.4.bias": (8,),
        "encoder.5.0.conv.weight": (8, 8, 1, 1),
        "encoder.5.0.conv1x1.weight": (8, 8, 1, 1),
        "levels.heads.0.weight": (3, 8, 1, 1),
        "levels.heads.0.bias": (3,),
        "levels.heads.1.weight": (3, 16, 1, 1),
        "levels.heads.1.bias": (3,),
        "levels.tails.0.weight": (8, 3, 1, 1),
        "levels.tails.0.bias": (8,),
        "levels.tails.1.weight": (8, 3, 1, 1),
        "levels.tails.1.bias": (8,),
        "levels.downs.0.0.weight": (8, 8, 4, 4),
        "levels.downs.0.0.bias": (8,),
        "levels.downs.0.2.0.conv.weight": (8, 8, 1, 1),
        "levels.downs.0.2.0.conv1x1.weight": (8, 8, 1, 1),
        "levels.ups.0.0.0.conv.weight": (4, 8, 3, 3),
        "levels.ups.0.0.0.conv1x1.weight": (8, 4, 1, 1),
        "levels.ups.0.1.weight": (8, 8, 4, 4),
        "levels.ups.0.1.bias": (8,),
        "decoder.0.weight": (8, 8, 3, 3),
        "decoder.0.bias": (8,),
        "decoder.1.0.conv.weight": (4, 8, 3, 3),
        "decoder.1.0.conv1x1.weight": (8, 4, 1, 1),
        "decoder.2.weight": (8, 4, 4, 4),
        "decoder.2.bias": (4,),
        "decoder.4.weight": (4, 3, 4, 4),
        "decoder.4.bias": (3,),
    }
