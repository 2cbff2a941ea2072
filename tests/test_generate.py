"""Images drawn from a trained run."""

from pathlib import Path

import torch

from pipeline import generate, load


def test_both_stages_make_images_of_the_training_size(trained: Path) -> None:
    samples = generate(trained, 5, seed=1)
    assert samples.images.shape == (5, 1, 8, 12) and samples.images.dtype == torch.uint8
    assert samples.codes[0].shape == (5, 2, 3) and samples.codes[0].max() < 12
    assert samples.labels is not None and set(samples.labels.tolist()) <= {0, 1}
    assert torch.equal(load(trained).decode(samples.codes), samples.images)
