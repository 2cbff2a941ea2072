"""Images drawn from a trained run."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import CheckpointError, UsageError, generate, load
from pipeline.data.splits import class_proportions
from pipeline.sampling.labels import Label, class_numbers, labels_of
from pipeline.training.stage2 import unigram_entropy


def test_both_stages_make_images_of_the_training_size(trained: Path) -> None:
    samples = generate(trained, 5, seed=1)
    assert samples.images.shape == (5, 1, 8, 12) and samples.images.dtype == torch.uint8
    assert samples.codes[0].shape == (5, 2, 3) and samples.codes[0].max() < 12
    assert samples.labels is not None and set(samples.labels.tolist()) <= {0, 1}
    assert torch.equal(load(trained).decode(samples.codes), samples.images)


def test_image_i_depends_neither_on_n_nor_on_the_batch_size(trained: Path) -> None:
    few, many = generate(trained, 3, seed=2, precision="float64"), generate(trained, 64, seed=2, precision="float64")
    assert torch.equal(few.codes[0], many.codes[0][:3])
    for batch_size in (1, 7, 64):
        again = generate(trained, 64, seed=2, batch_size=batch_size, precision="float64")
        assert torch.equal(again.codes[0], many.codes[0]) and torch.equal(again.images, many.images)
    assert not torch.equal(generate(trained, 3, seed=3, precision="float64").codes[0], few.codes[0])


def test_labels_are_drawn_in_the_proportions_of_the_training_data(trained: Path) -> None:
    (prior,) = load(trained).priors
    config = replace(
        prior.config,
        class_names=("a", "b", "c"),
        class_weights=(0.7, 0.0, 0.3),
        model=replace(prior.config.model, num_classes=3),
    )
    labels = labels_of(np.arange(4000), None, 0, config)
    assert labels is not None
    counts = torch.bincount(labels, minlength=3).tolist()
    assert counts[1] == 0 and abs(counts[0] - 2800) < 4 * math.sqrt(4000 * 0.7 * 0.3)
    assert torch.equal(labels_of(np.array([17]), None, 0, config), labels[17:18])  # type: ignore[arg-type]
    assert torch.equal(labels_of(np.arange(2), "c", 0, config), torch.tensor([2, 2]))  # type: ignore[arg-type]


def test_a_class_is_named_by_name_or_number(trained: Path) -> None:
    by_name, by_number = generate(trained, 2, label="1"), generate(trained, 2, label=1)
    assert torch.equal(by_name.images, by_number.images) and by_number.labels.tolist() == [1, 1]  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="no class 7; the classes are 0, 1"):
        generate(trained, 2, label=7)


def test_proportions_and_entropy_are_those_of_the_counts() -> None:
    assert class_proportions(np.array([0, 2, 2, 2]), 3).tolist() == [0.25, 0.0, 0.75]
    codes = torch.tensor([[0, 0, 1, 5]])
    assert unigram_entropy(codes, 8) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))


def test_all_bad_arguments_are_named_at_once(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)--n: .*got 0.*--temperature: .*got -1"):
        generate(trained, 0, temperature=-1.0)


def test_samples_are_saved_once_and_shown(trained: Path, tmp_path: Path) -> None:
    samples = generate(trained, 5)
    samples.save(tmp_path / "new")
    assert len(list((tmp_path / "new").glob("00000?.png"))) == 5
    with pytest.raises(UsageError, match="exists already"):
        samples.save(tmp_path / "new")
    assert samples.grid().size == (3 * 14 + 2, 2 * 10 + 2) and len(samples.to_pil()) == len(samples) == 5


def test_a_run_without_a_prior_encodes_but_does_not_sample(trained: Path) -> None:
    model = replace(load(trained), priors=())
    images = torch.zeros(2, 1, 8, 12, dtype=torch.uint8)
    assert torch.equal(model.reconstruct(images), model.decode(model.encode(images)))
    with pytest.raises(CheckpointError, match="no finished prior"):
        model.sample(1)


def test_several_classes_are_drawn_in_turn(trained: Path) -> None:
    def labels(label: Label) -> list[int]:
        drawn = generate(trained, 5, label=label).labels
        assert drawn is not None
        return [int(number) for number in drawn]

    assert labels("1,0") == labels(["1", 0]) == labels([1, "0"]) == [1, 0, 1, 0, 1]
    assert labels("balanced") == [0, 1, 0, 1, 0]
    with pytest.raises(UsageError, match="no class '7' and '9'; the classes are 0, 1"):
        labels("1, 7,9")


def test_names_win_over_what_they_might_mean() -> None:
    names = ("balanced", "cat, dog", "2", "bird")
    assert class_numbers("balanced", names) == [0] and class_numbers("cat, dog", names) == [1]
    assert class_numbers("2", names) == [2] and class_numbers(3, names) == [3]
    assert class_numbers("bird,2", names) == [3, 2]
    assert class_numbers("balanced", names[1:]) == [0, 1, 2]
