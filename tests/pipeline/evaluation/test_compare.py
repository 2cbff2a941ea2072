"""Bottlenecks side by side: fidelity against independent computations, the table, the picture, going on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import DataError, UsageError, compare, load
from pipeline.cli.main import main
from pipeline.data import pixels
from pipeline.data.splits import load_split
from pipeline.evaluation.measures.fidelity import fidelity, principal_components
from pipeline.runs.validation import read_validation
from tests.tiny import TINY_VQVAE, shapes

NAMES = ["none", "gaussian", "vq"]
OPTIONS = {**TINY_VQVAE, "validation": 0.2, "test": 0.0}


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    images, targets = shapes(size=(16, 24))
    compare(out=tmp_path / "compared", bottlenecks=NAMES, images=images, targets=targets, **OPTIONS)
    return tmp_path / "compared"


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, equation 13 with Gaussian windows, at one position: the middle of an 11x11 patch."""
    x, y = np.mgrid[-5:6, -5:6]
    window = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = first / 255, second / 255
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * a**2).sum() - mean_a**2, (window * b**2).sum() - mean_b**2
    covariance = (window * a * b).sum() - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return float(
        (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    )


def test_fidelity_is_that_of_its_definitions() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 1, 16, 18)).astype(np.uint8)
    restored = np.clip(images + rng.integers(-30, 31, images.shape), 0, 255).astype(np.uint8)
    reached = fidelity(images, restored, 0.05)
    mse = ((images / 255 - restored / 255) ** 2).mean()
    assert reached.nmse == pytest.approx(mse / 0.05, rel=1e-4)
    assert reached.psnr == pytest.approx(10 * np.log10(1 / mse), rel=1e-5)
    # torchmetrics cuts the border off, so that every window lies within the image.
    windows = [
        ssim(images[i, 0, top : top + 11, left : left + 11], restored[i, 0, top : top + 11, left : left + 11])
        for i in range(3)
        for top in range(6)
        for left in range(8)
    ]
    assert reached.ssim == pytest.approx(np.mean(windows), rel=1e-3)
    assert fidelity(images, images, 0.05).ssim == pytest.approx(1)


def test_principal_components_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 64)) * 12 + 128
    train = (factors + rng.normal(size=factors.shape) * 4).clip(0, 255).astype(np.uint8).reshape(60, 1, 8, 8)
    flat = train.reshape(60, -1).astype(float)
    _, vectors = np.linalg.eigh(np.cov(flat.T))
    basis = vectors[:, -2:]
    expected = (flat - flat.mean(0)) @ basis @ basis.T + flat.mean(0)
    restored = principal_components(train, train, 2)
    assert restored is not None
    assert np.abs(restored.reshape(60, -1) - expected.clip(0, 255)).max() <= 0.51
    assert principal_components(train, train, 60) is None


def test_the_table_has_a_row_for_each_and_principal_components_beside(comparison: Path) -> None:
    rows = {row["name"]: row for row in json.loads((comparison / "compare.json").read_text())["rows"]}
    assert list(rows) == ["PCA, 24", "none", "gaussian", "vq"]  # 96 components would be more than there are images
    assert rows["vq"]["numbers"] == 24 and rows["none"]["numbers"] == 96
    assert rows["vq"]["bits_per_image"] == pytest.approx(24 * np.log2(12))
    assert rows["vq"]["codebook_usage"] is not None and rows["gaussian"]["active_units"] is not None
    reached = read_validation(comparison / "vq" / "vqvae").metrics.values
    assert rows["vq"]["nmse"] == pytest.approx(reached["nmse"], rel=0.01)  # that one is not rounded to bytes
    lines = [line for line in (comparison / "compare.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4 and all(line.count("|") == lines[0].count("|") for line in lines)
    with Image.open(comparison / "compare.png") as picture:
        assert picture.height == 6 * (
            4 * 16 + 2 * 2
        )  # images, four rows of reconstructions, one drawn; four times as large
    assert load(comparison / "vq").vqvae.config.training.seed == load(comparison / "none").vqvae.config.training.seed


def test_what_is_there_is_not_trained_again(comparison: Path) -> None:
    images, targets = shapes(size=(16, 24))
    before = (comparison / "compare.md").read_text().partition("\n\n")[0]
    weights = [comparison / name / "vqvae" / "model.safetensors" for name in NAMES]
    written = [path.stat().st_mtime_ns for path in weights]
    compare(out=comparison, bottlenecks=[*NAMES, "fsq"], images=images, targets=targets, **OPTIONS)
    assert [path.stat().st_mtime_ns for path in weights] == written
    assert (comparison / "fsq" / "vqvae" / "model.safetensors").exists()
    assert (comparison / "compare.md").read_text().startswith(before)
    with pytest.raises(UsageError, match="--hidden 16 contradicts the run, which has 8"):
        compare(out=comparison, bottlenecks=NAMES, images=images, targets=targets, **{**OPTIONS, "hidden": 16})


def test_runs_of_other_images_or_presets_are_not_compared(comparison: Path) -> None:
    images, targets = shapes(size=(16, 24))
    with pytest.raises(UsageError, match="--seed 1 contradicts the run, which has 0"):
        compare(out=comparison, bottlenecks=NAMES, images=images, targets=targets, **{**OPTIONS, "seed": 1})
    fewer = {name: value for name, value in OPTIONS.items() if name not in ("hidden", "steps")}
    with pytest.raises(UsageError, match="--hidden 32 contradicts the run, which has 8"):
        compare(out=comparison, bottlenecks=NAMES, images=images, targets=targets, preset="tiny", **fewer)
    with pytest.raises(DataError, match="the images are not those"):
        compare(out=comparison, bottlenecks=NAMES, images=images[::-1].copy(), targets=targets, **OPTIONS)


def test_small_images_have_no_similarity() -> None:
    images = np.zeros((2, 1, 8, 8), np.uint8)
    assert fidelity(images, images, 0.1).ssim is None


def test_bad_comparisons_are_refused_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--bottlenecks", "vq,vae", "--levels", "2", "--out", "compared"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--bottlenecks takes different ones of vq, gumbel, fsq, gaussian, mmd, none; got vq, vae" in said
    assert "--levels 2 cannot be compared" in said and not Path("compared").exists()


def resized(images: np.ndarray) -> np.ndarray:
    """Images (n, 1, 16, 24) enlarged twice and scaled back, as the data's room does it."""
    enlarged = [Image.fromarray(image[0]).resize((48, 32), Image.Resampling.NEAREST) for image in images]
    return np.stack([pixels.fit(image, 16, 24, "grey") for image in enlarged])


def test_what_was_set_aside_for_testing_is_measured_on(tmp_path: Path) -> None:
    images, targets = shapes(size=(16, 24))
    options = {**TINY_VQVAE, "validation": 0.2}
    for image in range(3):
        (tmp_path / "official").mkdir(exist_ok=True)
        # In colour and of another size: it is made like the images trained on.
        picture = Image.fromarray(255 - images[image, 0]).convert("RGB").resize((48, 32), Image.Resampling.NEAREST)
        picture.save(tmp_path / "official" / f"{image}.png")
    apart = compare(out="apart", bottlenecks=["fsq"], images=images, targets=targets, test=0.25, **options)
    again: dict[str, Any] = {
        "bottlenecks": ["fsq"],
        "images": images,
        "targets": targets,
        "test_data": "official",
        **options,
    }
    compare(out="official-run", **again)
    official = compare(out="official-run", **again)  # goes on
    parts = load_split(Path("apart/fsq/vqvae/split.safetensors"))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (22, 8, 10)
    for done, measured in ((apart, images[parts.test]), (official, resized(255 - images[:3]))):
        model = load(done.folder / "fsq")
        variance = float(model.vqvae.network.data_variance)
        error = (measured / 255 - model.reconstruct(measured).numpy() / 255) ** 2
        assert done.part == "test" and done.rows[-1].nmse == pytest.approx(error.mean() / variance, rel=1e-4)
        assert "On test images" in (done.folder / "compare.md").read_text()
    Image.fromarray(images[5, 0]).save(tmp_path / "official" / "0.png")
    with pytest.raises(DataError, match=r"the files of .*official are not those that the runs were begun with"):
        compare(out="official-run", **again)
