"""What images become for use elsewhere, against independent counts and means."""

from typing import Any

import numpy as np
import pytest
import torch
from einops import reduce

from stage1_vqvae import VQVAE, VQVAEConfig
from stage1_vqvae.features import image_features, pooled

SIZES: dict[str, Any] = {"channels": 1, "height": 16, "width": 24, "hidden": 8, "residual_channels": 4, "num_codes": 12}


def network_and_images(**options: Any) -> tuple[VQVAE, torch.Tensor]:
    network = VQVAE(VQVAEConfig(**{**SIZES, **options})).eval()
    return network, torch.randint(0, 256, (5, 1, 16, 24), dtype=torch.uint8)


@pytest.mark.parametrize(
    "options",
    [{}, {"bottleneck": "fsq"}, {"levels": 2, "level_kind": "residual"}, {"levels": 2}, {"unit_codes": True}],
)
def test_histograms_count_the_codes_of_each_image_and_level(options: dict[str, Any]) -> None:
    network, images = network_and_images(**options)
    found, codes = image_features(network, images), network.encode(images)
    for level, (maps, grid) in enumerate(zip(codes, network.config.grids, strict=True)):
        histogram = found[f"histogram{level}"]
        expected = [np.bincount(one.numpy().ravel(), minlength=12) for one in maps]
        assert histogram.dtype == torch.int32 and np.array_equal(histogram.numpy(), expected)
        assert set(histogram.sum(1).tolist()) == {grid[0] * grid[1]}
    assert "latents" not in found and f"histogram{len(codes)}" not in found


def test_pooled_outputs_are_means_over_quarters() -> None:
    network, images = network_and_images()
    found = image_features(network, images)
    with torch.no_grad():
        outputs = network.encoder(images.float() / 255 - 0.5)
        vectors = network.levels.entry(outputs)
    quarters = "n c (rows h) (columns w) -> n c rows columns"
    for name, maps in (("encoder", outputs), ("vectors0", vectors)):
        torch.testing.assert_close(found[name], reduce(maps, quarters, "mean", rows=2, columns=2))
        torch.testing.assert_close(found[name].mean((2, 3)), reduce(maps, "n c h w -> n c", "mean"))
    assert found["encoder"].shape == (5, 8, 2, 2) and found["vectors0"].shape == (5, 8, 2, 2)


def test_levels_are_pooled_from_what_each_bottleneck_is_given() -> None:
    """Of residual levels the second is given what the first has left over."""
    network, images = network_and_images(levels=2, level_kind="residual")
    found = image_features(network, images)
    with torch.no_grad():
        vectors = network.levels.entry(network.encoder(network.normalise(images)))
        first = network.levels.in_order()[0]
        left_over = vectors - first.decode(first.encode(vectors))
    torch.testing.assert_close(found["vectors1"].mean((2, 3)), left_over.mean((2, 3)))


@pytest.mark.parametrize("bottleneck", ["gaussian", "mmd", "none"])
def test_latents_are_what_a_continuous_bottleneck_encodes_to(bottleneck: Any) -> None:
    network, images = network_and_images(bottleneck=bottleneck)
    found = image_features(network, images)
    assert torch.equal(found["latents"], network.encode(images)[0])
    assert found.keys() == {"encoder", "vectors0", "latents"}


def test_quarters_of_an_odd_number_of_rows_have_the_middle_one_in_common() -> None:
    maps = torch.arange(6.0).reshape(1, 1, 3, 2)  # rows 0 1, 2 3, 4 5
    assert pooled(maps).tolist() == [[[[1.0, 2.0], [3.0, 4.0]]]]
    assert pooled(maps[:, :, :1]).tolist() == [[[[0.0, 1.0]]]]
