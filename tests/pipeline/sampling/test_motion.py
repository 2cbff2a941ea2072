"""How maps are drawn, and what lies between two images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import UsageError, film, generate, interpolate, load, train_vqvae
from pipeline.cli.main import main
from pipeline.data import pixels
from pipeline.sampling.motion.film import moments
from pipeline.sampling.motion.interpolate import exchanged_codes, mixtures, nearest_codes_between
from tests.tiny import TINY_VQVAE, shapes, tiny_vqvae

IMAGES, _ = shapes(8)


def test_a_map_is_drawn_from_nothing_to_the_sample(trained: Path) -> None:
    """As many pixels are drawn as codes are; the last moment is the samples themselves."""
    model = load(trained)
    samples = model.sample(3)
    seen = list(moments(model, samples.codes, 4))
    assert np.allclose([moment.drawn.mean() for moment in seen], [0.25, 0.5, 0.75, 1], atol=0.1)
    assert np.array_equal(seen[-1].images, samples.images.numpy()) and seen[-1].drawn.all()
    (level,) = samples.codes
    assert level.shape[1:] == (2, 3), "so half of it is the first row, which goes on downwards"
    assert np.array_equal(seen[1].images, model.decode((level[:, :1].repeat(1, 2, 1),)).numpy())


def test_levels_are_drawn_one_after_another(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, levels=2, downsampling=2, **TINY_VQVAE)
    model = load(tmp_path / "run")
    codes = model.encode(IMAGES)
    coarse, fine = (level[0].numel() for level in codes)
    seen = list(moments(model, codes, coarse + fine))
    assert np.array_equal(seen[coarse - 1].images, model.decode(codes[:1]).numpy()) and seen[coarse - 1].drawn.all()
    assert not seen[coarse].drawn.all(), "of the next level one code alone"
    assert np.array_equal(seen[-1].images, model.decode(codes).numpy())


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_a_film_ends_with_the_grid_of_samples(trained: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"drawn{suffix}"
    options = ["sample", str(trained), "--n", "5", "--seed", "3", "--out", str(tmp_path / "samples")]
    done = CliRunner().invoke(main, [*options, "--film", str(path), "--quiet"])
    assert done.exit_code == 0 and f"wrote {path}" in done.stdout, done.output
    expected = np.asarray(pixels.grid(generate(trained, 5, seed=3).images.numpy(), 3).convert("RGB"))
    with Image.open(path) as pictures:
        assert pictures.n_frames == 6  # type: ignore[attr-defined]  # of formats that may have several
        first = np.asarray(pictures.convert("RGB")).astype(int)
        pictures.seek(pictures.n_frames - 1)  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(pictures.convert("RGB")), expected)
        assert pictures.info["duration"] > 1000
    assert np.abs(first - expected).max() > 50, "it begins faint"


def test_what_cannot_be_filmed_is_said(trained: Path, tmp_path: Path) -> None:
    model = load(trained)
    with pytest.raises(UsageError, match=r"drawn\.txt is no film's name; end it in \.gif, \.webp, \.png"):
        film(model, model.encode(IMAGES), tmp_path / "drawn.txt")
    train_vqvae(out=tmp_path / "vae", images=IMAGES, **tiny_vqvae("gaussian"))
    vae = load(tmp_path / "vae")
    with pytest.raises(UsageError, match="are numbers, which are drawn all at once"):
        film(vae, vae.encode(IMAGES), tmp_path / "drawn.gif")
    done = CliRunner().invoke(main, ["sample", str(trained), "--film", str(trained / "config.txt"), "--n", "1"])
    assert done.exit_code == 2 and not (trained / "samples").exists(), "said before anything is drawn"


def test_an_interpolation_ends_at_the_reconstructions_of_both(trained: Path) -> None:
    model = load(trained)
    codes = model.encode(IMAGES[:2])
    ends, weights = model.decode(codes).numpy(), np.linspace(0, 1, 3)
    for mixed in (mixtures(model, codes, weights), model.decode(exchanged_codes(codes, weights)).numpy()):
        assert np.array_equal(mixed[[0, -1]], ends)
    (level,) = exchanged_codes(codes, weights)
    half = level[1].flatten()
    assert torch.equal(half[: len(half) // 2], codes[0][1].flatten()[: len(half) // 2])
    done = interpolate(model, IMAGES[0], IMAGES[1], frames=3)
    assert np.array_equal(done.mixed, mixtures(model, codes, weights))
    assert done.exchanged is not None and np.array_equal(done.exchanged[[0, -1]], ends)
    assert done.nearest is not None and np.array_equal(done.nearest[[0, -1]], ends)


def test_mixtures_before_they_are_quantized_have_their_nearest_codes(trained: Path) -> None:
    """At every place the code whose vector is nearest to the mean of what the encoder gives for both images."""
    model = load(trained)
    network, images = model.vqvae.network, torch.from_numpy(IMAGES[:2].copy())
    between = nearest_codes_between(model, images, np.array([0, 0.5, 1]))
    assert torch.equal(between[0][[0, 2]], model.encode(IMAGES[:2])[0])
    with torch.no_grad():
        middle = network.levels.entry(network.encoder(network.normalise(images))).mean(0)
        vectors = network.levels.decode((torch.arange(12).repeat_interleave(6).reshape(12, 2, 3),))
    distances = (vectors - middle).square().sum(1)  # (codes, rows, columns)
    assert torch.equal(between[0][1], distances.argmin(0))
    done = interpolate(model, IMAGES[0], IMAGES[1], frames=3)
    assert done.nearest is not None and np.array_equal(done.nearest, model.decode(between).numpy())


def test_latents_are_mixed_in_a_line(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, **tiny_vqvae("gaussian"))
    model = load(tmp_path / "run")
    done = interpolate(model, IMAGES[0], IMAGES[1], frames=5)
    (latents,) = model.encode(IMAGES[:2])
    middle = model.decode((latents.mean(0, keepdim=True),)).numpy()
    assert done.exchanged is done.nearest is None and np.array_equal(done.mixed[2], middle[0])


def test_the_command_writes_a_strip_or_a_film(trained: Path, tmp_path: Path) -> None:
    for number in range(2):
        pixels.to_pil(IMAGES[number]).save(tmp_path / f"{number}.png")
    ends = ["interpolate", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--run", str(trained), "--frames", "4"]
    for name in ("strip.png", "film.gif"):
        done = CliRunner().invoke(main, [*ends, "--out", str(tmp_path / name)])
        assert done.exit_code == 0 and "4 images" in done.output, done.output
    expected = interpolate(trained, IMAGES[0], IMAGES[1], frames=4)
    assert expected.exchanged is not None and expected.nearest is not None
    rows = pixels.grid(np.concatenate([expected.mixed, expected.exchanged, expected.nearest]), 4)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "strip.png")), np.asarray(rows))
    with Image.open(tmp_path / "film.gif") as pictures:
        assert pictures.n_frames == 6, "there and back"  # type: ignore[attr-defined]


def test_images_of_two_shapes_are_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"two images of one shape .*\(1, 8, 12\) and \(1, 8, 8\)"):
        interpolate(trained, IMAGES[0], IMAGES[1][:, :, :8])
