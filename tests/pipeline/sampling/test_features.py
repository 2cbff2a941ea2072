"""Features as arrays and as files: rows, names and classes go together, whatever is read at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from pipeline import Model, UsageError, features, features_file, load, train_vqvae
from pipeline.cli.main import main
from pipeline.data import tensor_file
from pipeline.errors import ResourceError
from tests.tiny import shapes, tiny_vqvae

IMAGES, TARGETS = shapes(11)


def npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name, array in first.items():
        assert second[name].dtype == array.dtype and np.array_equal(second[name], array), name


def test_rows_are_the_images_in_order_however_many_are_read_at_a_time(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(trained)
    whole = features(model, IMAGES)
    assert {name: array.shape[1:] for name, array in whole.items()} == {
        "encoder": (8, 2, 2),
        "vectors0": (4, 2, 2),
        "histogram0": (12,),
    }
    monkeypatch.setattr(Model, "images_at_a_time", 4)
    in_parts = features(model, torch.from_numpy(IMAGES))
    for name, array in whole.items():
        np.testing.assert_allclose(in_parts[name], array, rtol=1e-5, atol=1e-6)
        alone = features(trained, IMAGES[7:8])[name]
        np.testing.assert_allclose(in_parts[name][7:8], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("suffix", "read"), [(".npz", npz), (".safetensors", load_file)])
def test_a_file_holds_what_the_function_gives(
    trained: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, read: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    monkeypatch.setattr(Model, "images_at_a_time", 3)
    model, out = load(trained), Path("new", f"a{suffix}")
    names = [f"{label}/grün {index}.png" for index, label in enumerate(TARGETS)]
    beside: dict[str, Any] = {"names": names, "labels": TARGETS, "class_names": ("zero", "one")}
    written = features_file(model, IMAGES, out, **beside)
    expected, found = features(model, IMAGES), read(out)
    assert written == {name: array.shape for name, array in expected.items()}
    assert_same(expected | {"labels": TARGETS.astype(np.int64)}, found)
    if suffix == ".npz":
        texts = {name: found[name].tolist() for name in ("names", "class_names", "codes_sha256")}
    else:
        with safe_open(out, "np") as file:
            texts = {**file.metadata()}
            texts |= {name: json.loads(texts[name]) for name in ("names", "class_names")}
    codes_sha256 = model.vqvae.codes_sha256
    assert texts == {"names": names, "class_names": ["zero", "one"], "codes_sha256": codes_sha256}
    features_file(model, IMAGES, out.with_stem("b"), **beside)
    assert out.with_stem("b").read_bytes() == out.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_the_latents_of_a_continuous_run_are_written(tmp_path: Path) -> None:
    train_vqvae(out="run", images=IMAGES, test=0.0, **{**tiny_vqvae("gaussian"), "steps": 1})
    features_file("run", IMAGES, "a.safetensors")
    found = load_file("a.safetensors")
    np.testing.assert_array_equal(found["latents"], load("run").encode(IMAGES)[0].numpy())
    assert found.keys() == {"encoder", "vectors0", "latents"}


def test_the_command_keeps_names_and_classes_beside_their_rows(trained: Path, tmp_path: Path) -> None:
    for index, label in enumerate(TARGETS):
        path = tmp_path / "data" / ("ab"[label]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[index, 0]).save(path)
    arguments = ["encode", "data", "--run", str(trained), "--features", "--out", "a.npz", "--quiet"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.output == "wrote a.npz: encoder 11 x 8 x 2 x 2, vectors0 11 x 4 x 2 x 2, histogram0 11 x 12\n"
    found = npz(Path("a.npz"))
    order = [int(Path(name).stem) for name in found["names"]]
    assert sorted(order) == list(range(11)) and order != sorted(order)
    assert_same({"histogram0": features(trained, IMAGES[order])["histogram0"]}, found)
    assert found["class_names"].tolist() == ["a", "b"]
    assert ["ab"[label] for label in found["labels"]] == [Path(name).parent.name for name in found["names"]]
    again = CliRunner().invoke(main, [*arguments[:-3], "--out", "a.txt", "--quiet"])
    assert again.exit_code == 2 and "--out a.txt of --features must end in .safetensors or .npz" in again.output


def test_all_that_does_not_fit_is_named_at_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(trained)
    with pytest.raises(UsageError) as caught:
        features_file(model, IMAGES, "a.txt", names=["one"], labels=np.zeros(3), class_names=5)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "a.txt must end in .safetensors or .npz" in message and "class_names must be a list of texts" in message
    assert "labels must be 11 whole numbers, one an image; got float64 (3,)" in message
    with pytest.raises(UsageError, match="there are 1 names for 11 images"):
        features_file(model, IMAGES, "a.npz", names=["one"])
    with pytest.raises(UsageError, match="no images to encode"):
        features(model, IMAGES[:0])
    monkeypatch.setattr("pipeline.resources.free_memory", lambda device: 2000)
    with pytest.raises(
        ResourceError, match=r"holding features of 11 images takes about .* of memory.*features_file\(\)"
    ):
        features(model, IMAGES)
    monkeypatch.setattr("pipeline.resources.free_disk", lambda path: 1000)
    with pytest.raises(ResourceError, match="of disk"):
        features_file(model, IMAGES, "a.npz")
    monkeypatch.undo()
    monkeypatch.setattr(tensor_file, "_LARGEST_HEADER", 400)
    with pytest.raises(UsageError, match=r"holds 400 of them; end --out in .npz"):
        features_file(model, IMAGES, "a.safetensors", names=["a" * 30] * 11)
    assert not Path("a.safetensors").exists()
