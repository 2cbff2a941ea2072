"""Whatever is given in Python is used or refused in a sentence of our own: numbers, classes, images, codes, devices."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pipeline import (
    CheckpointError,
    Model,
    UsageError,
    compare,
    complete,
    generate,
    generate_files,
    load,
    score,
    train_prior,
    train_vqvae,
)
from pipeline.errors import ResourceError
from pipeline.sampling.generate import samples_folder
from pipeline.sampling.samplers import CodeSampler

IMAGES = np.arange(2 * 8 * 12, dtype=np.uint8).reshape(2, 1, 8, 12)


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load(trained)


@pytest.mark.parametrize("device", ["meta", "privateuseone", "cuda:99", "toaster", ""])
def test_a_device_that_cannot_compute_here_is_refused(trained: Path, device: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {device} is not to be had here .*--device cpu works everywhere"):
        load(trained, device=device)


@pytest.mark.parametrize("device", [2**63, 10**20, 1.5, [], np.zeros(2)])
def test_what_names_no_device_is_refused(trained: Path, device: Any) -> None:
    with pytest.raises(UsageError, match="is not to be had here"):
        load(trained, device=device)


@pytest.mark.parametrize("run", [0, 1.5, b"run", "a\0b", [], np.zeros(2), torch.zeros(2)])
def test_what_names_no_run_is_refused(run: Any) -> None:
    for function in (load, generate, generate_files, lambda run: score(run, IMAGES), train_prior):
        with pytest.raises(UsageError, match="run must be the path of a file or folder"):
            function(run)


@pytest.mark.parametrize("precision", ["", "half", 64, np.zeros(2)])
def test_a_precision_that_there_is_none_of_is_refused(trained: Path, precision: Any) -> None:
    with pytest.raises(UsageError, match="is none of float32, float64, tf32"):
        load(trained, precision=precision)


@pytest.mark.parametrize("name", ["out", "resume", "config"])
@pytest.mark.parametrize("path", [-1, "a\0b", b"out", np.zeros(2)])
def test_what_is_no_path_is_refused_by_every_training(trained: Path, name: str, path: object) -> None:
    calls: list[Any] = [train_vqvae, lambda **given: train_prior(trained, **given)]
    calls += [compare] if name == "out" else []
    for train in calls:
        with pytest.raises(UsageError, match=f"{name} must be the path of a file or folder"):
            train(**{name: path})


@pytest.mark.parametrize("log", ["folder", "picture.png", "all", 1, [], b"tensorboard"])
def test_what_is_no_tracker_is_refused(log: Any) -> None:
    with pytest.raises(UsageError, match=r"--log .* is not supported; choose one of .*tensorboard"):
        train_vqvae(log=log)


@pytest.mark.parametrize("level", [torch.zeros(2), "0", 0.0, 10**20])
def test_what_is_no_level_is_refused(trained: Path, level: Any) -> None:
    with pytest.raises(UsageError, match=r"--level .* does not exist"):
        train_prior(trained, level=level, resume="auto")


@pytest.mark.parametrize("force", [np.zeros(2), torch.zeros(2), "yes", 1])
def test_what_is_neither_true_nor_false_forces_nothing(trained: Path, force: Any) -> None:
    with pytest.raises(UsageError, match="force is True or False"):
        train_prior(trained, out="new", force=force)


@pytest.mark.parametrize("name", ["steps", "max_minutes", "data", "test_data"])
def test_arrays_are_no_options(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: input should be"):
        train_vqvae(out="new", **{name: np.zeros(3)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2.5}, "--n: input should be a valid integer, got a number with a fractional part; got 2.5"),
        ({"n": None}, "--n: input should be a valid integer; got None"),
        ({"n": 0}, "--n: input should be greater than or equal to 1; got 0"),
        ({"n": 10**20}, f"--n: input should be less than or equal to 1000000000; got {10**20}"),
        ({"seed": -1}, "--seed: input should be greater than or equal to 0; got -1"),
        ({"seed": 2**70}, f"--seed: input should be less than or equal to {2**63 - 1}; got {2**70}"),
        ({"batch_size": 0}, "--batch-size: input should be greater than or equal to 1; got 0"),
        ({"batch_size": 10**9}, "--batch-size: input should be less than or equal to 1048576; got 1000000000"),
        ({"n": "many", "seed": 1.5, "batch_size": -1}, "(?s)--n: .*got 'many'.*--seed: .*got 1.5.*--batch-size: .*-1"),
    ],
)
def test_bad_numbers_are_named_together(model: Model, options: dict[str, Any], message: str) -> None:
    for draw in (model.sample, lambda **given: generate(model, **given)):
        with pytest.raises(UsageError, match=message):
            draw(**{"n": 2, **options})


def test_a_loaded_run_that_lacks_a_prior_is_refused_like_its_path(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "vqvae", tmp_path / "run" / "vqvae")
    without = load(tmp_path / "run")
    for run in (tmp_path / "run", without):
        with pytest.raises(CheckpointError, match="prior"):
            score(run, IMAGES)


def test_images_are_encoded_and_decoded_as_many_at_a_time_as_their_pixels_allow(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.images_at_a_time
    monkeypatch.setattr("pipeline.sampling.model._PIXELS", 3 * 8 * 12)
    few = model.images_at_a_time
    monkeypatch.setattr("pipeline.sampling.model._PIXELS", 1)
    assert (whole, few, model.images_at_a_time) == (256, 3, 1)


def test_a_loaded_run_knows_its_precision_and_is_not_used_in_another(model: Model, trained: Path) -> None:
    assert model.precision == "float32" and load(trained, precision="float64").precision == "float64"
    with pytest.raises(UsageError, match="the model given is of float32; leave precision out, or load it in float64"):
        generate(model, 1, precision="float64")


def test_the_buffers_of_one_batch_size_alone_are_kept(model: Model) -> None:
    sampler = model.sampler()
    assert isinstance(sampler, CodeSampler)
    for n in (3, 5, 5, 2):
        sampler.sample(np.arange(n))
        assert list(sampler._steppers) == [n], "with those of all sizes memory would grow"


def test_options_and_seeds_are_checked_where_a_sampler_is_made(model: Model) -> None:
    with pytest.raises(UsageError, match=r"options are SamplingOptions\(temperature=0.9, ...\); got dict"):
        model.sampler(options={"guidance": 2})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"--seed: .*got -3"):
        model.sampler(seed=-3)
    assert model.sampler(seed=np.int64(3)).seed == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"n": 10**20}, "--n"),
        ({"candidates": 10**20}, "--candidates"),
        ({"seed": 10**20}, "--seed"),
        ({"top_k": 10**20}, "--top-k"),
        ({"temperature": 1e300}, "--temperature"),
        ({"temperature": 1e-320}, "--temperature"),
        ({"guidance": 1e300}, "--guidance"),
        ({"top_p": 1e-50}, "--top-p"),
    ],
)
def test_numbers_that_overflow_are_refused(model: Model, options: dict[str, Any], field: str) -> None:
    """Once, --top-p 1e-50 left no code at all, and every map became zeros."""
    with pytest.raises(UsageError, match=rf"{field}: input should be (less|greater) than or equal to"):
        complete(model, IMAGES[0], "top:0.5", **options)


@pytest.mark.parametrize(
    "label", [np.array([1, 0]), torch.tensor([1, 0]), [np.int64(1), "0"], np.array(["1", "0"]), (1, 0)]
)
def test_classes_come_as_arrays_too(model: Model, label: Any) -> None:
    assert model.sample(3, label=label).labels.tolist() == [1, 0, 1]  # type: ignore[union-attr]
    assert samples_folder(model.run.folder, 0, label).name == "seed-0-1,0"


@pytest.mark.parametrize("label", [[], (), True, 2.5, {"a": 1}, [[1]], "9" * 5000, np.array([]), -1, 10**25, [None]])
def test_what_is_no_class_is_refused(model: Model, label: Any) -> None:
    message = r"there is no class .{1,60}; the classes are 0, 1 \(or 0 to 1\)"
    with pytest.raises(UsageError, match=message):
        model.sample(1, label=label)
    with pytest.raises(UsageError, match=message):
        score(model, IMAGES, label=label)


def test_a_folder_for_many_classes_has_a_name_that_file_systems_allow(model: Model) -> None:
    names = [samples_folder(model.run.folder, 7, [0, 1] * 200 + [last]).name for last in (0, 1)]
    assert names[0] != names[1] and all(name.startswith("seed-7-") and len(name) < 200 for name in names)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGES.astype(np.float32), r"got float32 of shape \(2, 1, 8, 12\)"),
        (IMAGES[0], r"got uint8 of shape \(1, 8, 12\)"),
        (IMAGES[..., :4], r"got uint8 of shape \(2, 1, 8, 4\)"),
        (torch.from_numpy(IMAGES).int(), r"got int32 of shape \(2, 1, 8, 12\)"),
        (torch.from_numpy(IMAGES).to("meta"), "images must be an array or a tensor; these cannot be read"),
        (3, r"got int64 of shape \(\)"),
        (None, "images must be an array or a tensor of numbers; got NoneType: None"),
        ("cat.png", "images must be an array or a tensor of numbers; got str: 'cat.png'"),
        ([[1], [2, 3]], "images must be an array or a tensor; these cannot be read"),
    ],
)
def test_what_are_no_images_of_the_model_is_refused(model: Model, images: Any, got: str) -> None:
    for use in (model.encode, model.reconstruct, lambda given: score(model, given)):
        with pytest.raises(UsageError, match=got):
            use(images)


def test_an_image_to_complete_is_checked_too(model: Model) -> None:
    meta = torch.zeros(1, 8, 12, dtype=torch.uint8, device="meta")
    for image, kept, message in (
        (None, "top:0.5", "the image must be an array or a tensor of numbers; got NoneType"),
        (meta, "top:0.5", "the image must be an array or a tensor; these cannot be read"),
        (IMAGES[0].astype(float), "top:0.5", r"the image is float64 \(1, 8, 12\), and must be uint8 \(1, 8, 12\)"),
        (IMAGES[0], None, "the mask must be an array or a tensor of numbers; got NoneType"),
    ):
        with pytest.raises(UsageError, match=message):
            complete(model, image, kept, n=1)  # type: ignore[arg-type]


def test_the_memory_of_candidates_is_that_of_each_of_them(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("pipeline.sampling.complete.check_memory", lambda _, needed, *__: asked.append(needed))
    complete(model, IMAGES[0], "top:0.5", n=3, candidates=5)
    sampler = model.sampler()
    assert isinstance(sampler, CodeSampler)
    assert asked == [2 * 3 * 5 * sampler.bytes_per_image]


def test_more_candidates_than_memory_holds_are_refused(model: Model) -> None:
    with pytest.raises(
        ResourceError, match=r"1,000,000 completions from 1,000,000 candidates each takes about .* free;"
    ):
        complete(model, IMAGES[0], "top:0.5", n=10**6, candidates=10**6)


def test_turned_read_only_and_empty_arrays_are_images(model: Model) -> None:
    expected, read_only = model.encode(IMAGES)[0], IMAGES.copy()
    read_only.flags.writeable = False
    assert torch.equal(model.encode(read_only)[0], expected)
    assert torch.equal(model.encode(IMAGES[::-1])[0], expected.flip(0))
    assert torch.equal(model.encode(torch.from_numpy(IMAGES))[0], expected)
    assert model.encode(IMAGES[:0])[0].shape == (0, 2, 3) and model.reconstruct(IMAGES[:0]).shape == (0, 1, 8, 12)
    with pytest.raises(UsageError, match="there are no images to score; give one at least"):
        score(model, IMAGES[:0])


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda codes: codes, r"codes are a tuple of levels, an array each; got Tensor: write \(codes,\)"),
        (lambda codes: None, "codes are a tuple of levels, an array each; got NoneType"),
        (lambda codes: (None,), "codes must be an array or a tensor of numbers; got NoneType"),
        (lambda codes: (codes.float(),), "codes of a vq bottleneck are whole numbers; got float32"),
        (lambda codes: (codes.bool(),), "codes of a vq bottleneck are whole numbers; got bool"),
        (lambda codes: (codes - 12,), r"codes must lie in \[0, 12\); got -12 to -\d+"),
        (lambda codes: (codes.to("meta"),), "codes must be an array or a tensor; these cannot be read"),
        (lambda codes: (codes[0],), r"this model decodes codes \(n, 2, 3\)"),
        (lambda codes: (codes[0, 0, 0],), r"codes of as many images at every level are needed; got \(\)"),
        (lambda codes: (), "codes of as many images at every level are needed; got no level"),
    ],
)
def test_what_are_no_codes_is_refused(model: Model, change: Any, got: str) -> None:
    codes = model.encode(IMAGES)[0].clamp(max=11)
    with pytest.raises(UsageError, match=got):
        model.decode(change(codes))


def test_codes_may_be_arrays_of_any_whole_numbers(model: Model) -> None:
    codes = model.encode(IMAGES)
    expected = model.decode(codes)
    for dtype in (np.uint16, np.int16, np.uint64):
        assert torch.equal(model.decode((codes[0].numpy().astype(dtype),)), expected)  # type: ignore[arg-type]
    assert torch.equal(model.decode([codes[0].tolist()]), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [0, 2, -1, 1.0, "1", 10**20])
def test_levels_that_the_codes_do_not_have_are_refused(model: Model, levels: Any) -> None:
    with pytest.raises(UsageError, match=rf"--levels '?{levels}'?: the codes of .* have 1"):
        model.reconstruct(IMAGES, levels)


def test_more_images_than_memory_holds_are_refused_before_one_is_drawn(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pipeline.sampling.samplers.CodeSampler.sample", drawn)
    many = 10**9
    assert many * 8 * 12 > psutil.virtual_memory().total
    with pytest.raises(
        ResourceError, match=r"n = 1,000,000,000 images into memory takes .* generate_files.*`gen sample`"
    ):
        generate(model, many)
    with pytest.raises(
        ResourceError, match=r"drawing 1,048,576 images at a time takes .*choose a smaller --batch-size"
    ):
        monkeypatch.setattr("pipeline.sampling.model.check_memory", lambda *_: None)
        monkeypatch.setattr("pipeline.resources.free_memory", lambda device: 2**20)
        model.sample(2**20, batch_size=2**20)
