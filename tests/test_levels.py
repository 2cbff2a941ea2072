"""Several levels of codes: grids, residuals, the order of conditioning, and what the top levels alone give."""

from typing import Any, Literal

import numpy as np
import pytest
import torch

from pipeline import CheckpointError, generate, load, train_vqvae
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAEError
from stage1_vqvae.bottlenecks import VectorQuantizer
from tests.conftest import TINY_VQVAE, shapes

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
        halvings=1,
        hidden=8,
        residual_channels=4,
        **options,
    )
    return VQVAE(config).eval()


def some_images(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 16, 32), dtype=torch.uint8)


def test_hierarchical_grids_are_halved_and_residual_ones_repeated() -> None:
    assert model("hierarchical").config.grids == ((2, 4), (4, 8), (8, 16))
    assert model("residual").config.grids == ((8, 16), (8, 16), (8, 16))
    assert model("hierarchical", levels=1).config.grids == model("residual", levels=1).config.grids == ((8, 16),)


@every_kind
@every_discrete_one
def test_what_is_decoded_is_what_the_decoder_saw(kind: Kind, name: Name) -> None:
    network, images = model(kind, name), some_images()
    output = network(images, 1.0)
    codes = network.encode(images)
    assert [tuple(level.shape[1:]) for level in codes] == list(network.config.grids)
    assert all(torch.equal(one, other) for one, other in zip(codes, output.codes, strict=True))
    reconstructed = ((output.reconstruction + 0.5) * 255).round().clamp(0, 255).byte()
    assert (network.decode(codes).int() - reconstructed.int()).abs().max() <= 1


@every_kind
@every_discrete_one
def test_the_loss_reaches_every_weight(kind: Kind, name: Name) -> None:
    network = model(kind, name, codebook_rule="gradient").train()
    for head in network.levels.heads.parameters():
        head.data *= 20  # or all first codes of fsq are 0
    network(some_images(), 0.5).loss.backward()
    still = [key for key, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert still == []


def test_residual_levels_of_vq_code_what_is_left() -> None:
    network, images = model("residual"), some_images()
    with torch.no_grad():
        outputs = network.levels.entry(network.encoder(network._normalise(images)))
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
    (network.levels(features, 0.0).decoded * weights).sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, weights)


def test_each_level_leaves_less() -> None:
    network = model("residual")
    batches = [some_images(20) for _ in range(2)]
    network.initialise(batches, torch.Generator().manual_seed(0))
    features = network.encoder(network._normalise(batches[0]))
    outputs, codes = network.levels.entry(features), network.levels.encode(features)
    errors = [float((outputs - network.levels.decode(codes[:known])).detach().square().mean()) for known in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.5 * errors[0]


@every_kind
def test_coarse_codes_do_not_depend_on_fine_levels_and_fine_ones_do_on_coarse(kind: Kind) -> None:
    network, images = model(kind), some_images()
    network.initialise([images], torch.Generator().manual_seed(0))
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
def test_levels_left_out_stand_at_their_mean(kind: Kind, name: Name) -> None:
    network, images = model(kind, name), some_images()
    for bottleneck in network.levels._bottlenecks():
        bottleneck.mean_counts.copy_(torch.rand(12))  # type: ignore[operator]
    codes = network.encode(images)
    top = network.decode(codes[:1])
    assert top.shape == images.shape
    other = (*codes[:1], *(torch.randint(0, 12, level.shape) for level in codes[1:]))
    assert torch.equal(network.decode(other[:1]), top)
    # With one code, used alone, in all left-out levels, their mean is that code.
    for bottleneck in network.levels._bottlenecks():
        bottleneck.mean_counts.copy_(torch.eye(12)[5])  # type: ignore[operator]
    fives = (codes[0], *(torch.full_like(level, 5) for level in codes[1:]))
    assert (network.decode(fives).int() - network.decode(codes[:1]).int()).abs().max() <= 1


@every_kind
def test_health_and_bits_are_told_level_by_level(kind: Kind) -> None:
    network, images = model(kind, likelihood="discretized-logistic"), some_images(6)
    health = network.summarise(network.evaluate(images))
    for level, (codes, (rows, columns)) in enumerate(zip(network.encode(images), network.config.grids, strict=True)):
        assert health[f"code_use_{level}"] == pytest.approx(len(set(codes.flatten().tolist())) / 12)
        assert health[f"bits_an_image_{level}"] == pytest.approx(rows * columns * np.log2(12))
    assert health["bits_per_dim"] > sum(health[f"bits_an_image_{level}"] for level in range(3)) / (16 * 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 8, "levels": 4, "level_kind": "hierarchical"}, r"2\^\(halvings \+ levels - 1\) = 16"),
        ({"levels": 2, "bottleneck": "gaussian"}, "--levels 2 needs a discrete bottleneck, and gaussian is continuous"),
        (
            {"levels": 2, "level_kind": "residual", "unit_codes": True},
            "--unit-codes cannot code what other levels left",
        ),
    ],
)
def test_levels_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAEConfig(**{"height": 16, "width": 16, "halvings": 1, **options})


@every_kind
def test_levels_are_trained_saved_and_loaded(kind: Kind) -> None:
    images, targets = shapes(size=(16, 24))
    options = {**TINY_VQVAE, "levels": 2, "level_kind": kind, "evaluations": 1}
    done = train_vqvae(out="run", images=images, targets=targets, **options)
    assert {"perplexity_0", "perplexity_1", "bits_an_image_0"} <= done.held_out.keys()
    loaded = load("run")
    batch = torch.from_numpy(images[:4])
    codes = loaded.encode(batch)
    assert len(codes) == 2 and torch.equal(loaded.reconstruct(batch, levels=1), loaded.decode(codes[:1]))
    with pytest.raises(VQVAEError, match=r"got \[\(4, 4, 6\), \(4, 4, 6\), \(4, 4, 6\)\]|got \[\(4, 2, 3\), "):
        loaded.decode((codes[0], codes[1], codes[1]))
    with pytest.raises(CheckpointError, match="no finished prior of level 0, 1, of 2 levels"):
        generate("run", 1)
