"""Images drawn from a trained run."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import CheckpointError, UsageError, generate, load
from pipeline.data.codes.maps import CodeMaps
from pipeline.data.codes.shards import StoredCodes, code_counts, unigram_entropy
from pipeline.randomness import Purpose, stream
from pipeline.sampling.labels import Label, class_numbers, class_probabilities, labels_of
from stage2_prior.sampling.noise import gumbel, image_words


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


def test_a_class_of_a_model_without_classes_is_refused(trained: Path) -> None:
    (prior,) = load(trained).priors
    config = replace(prior.config, class_names=(), class_weights=(), model=replace(prior.config.model, num_classes=0))
    assert class_probabilities(None, config) == {None: 1.0} and labels_of(np.arange(2), None, 0, config) is None
    for label in (0, "balanced", ["a"]):
        with pytest.raises(UsageError, match="trained without classes"):
            class_probabilities(label, config)
        with pytest.raises(UsageError, match="trained without classes"):
            labels_of(np.arange(2), label, 0, config)


def test_proportions_and_entropy_are_those_of_the_counts() -> None:
    codes = torch.tensor([0, 0, 1, 5]).reshape(4, 1, 1).short()
    shards = tuple(CodeMaps((codes[:n], codes[:n] // 9), torch.tensor([0, 2, 2, 2])[:n]) for n in (4, 1))
    assert StoredCodes(shards, ()).class_counts(4).tolist() == [2, 0, 3, 0]
    assert unigram_entropy(code_counts(shards[0], 8)) == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(4), 0))


def test_all_bad_arguments_are_named_at_once(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)--n: .*got 0.*--temperature: .*got -1"):
        generate(trained, 0, temperature=-1.0)


def test_samples_are_saved_once_and_shown(trained: Path, tmp_path: Path) -> None:
    samples = generate(trained, 5)
    samples.save(tmp_path / "new")
    assert len(list((tmp_path / "new").glob("00000?.png"))) == 5
    with pytest.raises(UsageError, match="exists already"):
        samples.save(tmp_path / "new")
    assert samples.grid().size == (3 * 98 + 2, 2 * 66 + 2) and len(samples.to_pil()) == len(samples) == 5


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


def test_an_image_is_drawn_with_the_noise_of_its_own_seed_and_index(trained: Path) -> None:
    """Against argmax of the network's logits and the noise, position by position."""
    model, indices = load(trained), np.array([4, 17, 0])
    samples = model.sampler(seed=9).sample(indices)
    uniforms = np.array([stream(9, Purpose.LABELS, int(index)).random() for index in indices])
    [prior] = model.priors
    first = prior.config.class_weights[0] / sum(prior.config.class_weights)
    assert samples.labels is not None and samples.labels.tolist() == (uniforms >= first).astype(int).tolist()
    words, codes = image_words(9, torch.from_numpy(indices), 0), torch.zeros(3, 2, 3, dtype=torch.int64)
    with torch.no_grad():
        for position in range(6):
            row, column = divmod(position, 3)
            noise = gumbel(words, torch.tensor([position]), 12)[0]
            logits = prior.network(codes, samples.labels)[:, :, row, column].double()
            codes[:, row, column] = (logits + noise).argmax(1)
    assert torch.equal(samples.codes[0].long(), codes)
    assert torch.equal(generate(trained, 18, seed=9).codes[0][[4, 17, 0]], samples.codes[0])


def test_the_classes_of_a_seed_are_written_down(trained: Path) -> None:
    [prior] = load(trained).priors
    config = replace(
        prior.config,
        class_names=("a", "b", "c"),
        class_weights=(2.0, 1.0, 1.0),
        model=replace(prior.config.model, num_classes=3),
    )
    labels = labels_of(np.arange(12), None, 3, config)
    assert labels is not None and labels.tolist() == [0, 2, 1, 1, 2, 0, 0, 1, 0, 0, 2, 0]
    assert class_probabilities(None, config) == {0: 0.5, 1: 0.25, 2: 0.25}
    assert class_probabilities("c,a", config) == class_probabilities(["a", 2, "c"], config) == {2: 0.5, 0: 0.5}
