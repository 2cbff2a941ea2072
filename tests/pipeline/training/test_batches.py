"""A batch is the items of its indices, with what belongs to each of them."""

import numpy as np
import torch

from pipeline.config.data import DataConfig
from pipeline.data.codes.maps import CodeMaps
from pipeline.data.image_set import from_array
from pipeline.data.splits import Split
from pipeline.randomness import BatchIndices, batch_indices, flips, views
from pipeline.training.inputs.batches import CodeBatches, ImageBatches
from pipeline.training.inputs.extract import View
from tests.tiny import shapes

IMAGES, TARGETS = shapes()
CPU = torch.device("cpu")


def test_images_are_those_of_the_training_part_and_mirrored_left_to_right_by_a_coin() -> None:
    parts = Split(np.arange(7, 40)[::-1], np.arange(7), np.arange(0))
    data = ImageBatches(from_array(IMAGES, TARGETS, (), DataConfig()), parts, True, 5)
    batch = batch_indices(5, 3, 16, 33)
    mirrored = flips(5, batch, 33)
    assert 0 < mirrored.sum() < 16
    expected = [
        IMAGES[39 - item][:, :, ::-1] if flip else IMAGES[39 - item]
        for item, flip in zip(batch.items, mirrored, strict=True)
    ]
    assert data.population == 33
    assert np.array_equal(data.training_batch(batch, CPU).numpy(), np.stack(expected))
    [validation] = data.validation_batches(0, 1, CPU)
    assert np.array_equal(validation.numpy(), IMAGES[:7]), "never mirrored"


def test_maps_come_with_their_labels_their_coarser_levels_and_of_one_encoding() -> None:
    rng = np.random.default_rng(0)
    encodings = [[torch.from_numpy(rng.integers(0, 90, (20, 2, 3))).short() for _ in range(3)] for _ in range(3)]
    labels = torch.from_numpy(rng.integers(0, 5, 20))
    maps = CodeMaps(tuple(encodings[0]), labels, tuple(tuple(levels) for levels in encodings[1:]))
    data = CodeBatches(maps, maps, 1, 90, 5)
    batch = BatchIndices(np.array([11, 3, 19, 3, 0, 7]), np.array([0, 0, 0, 1, 1, 1]))
    which = views(5, batch, 20, 3)
    assert len(set(which.tolist())) > 1
    codes, given, coarser = data.training_batch(batch, CPU)
    for row, (item, view) in enumerate(zip(batch.items, which, strict=True)):
        assert torch.equal(codes[row], encodings[view][1][item].long())
        assert torch.equal(coarser[0][row], encodings[view][0][item].long())
    assert given is not None and torch.equal(given, labels[batch.items]) and len(coarser) == 1
    [validation] = data.validation_batches(0, 1, CPU)
    assert torch.equal(validation.codes, encodings[0][1].long()), "as they are, of its own level"
    assert torch.equal(validation.coarser[0], encodings[0][0].long())
    assert validation.labels is not None and torch.equal(validation.labels, labels)


def test_how_far_each_image_is_moved_is_written_down() -> None:
    """Codes on disk are of images that were moved so; another process or a later version moves them alike."""
    pixels = np.arange(6 * 5 * 5, dtype=np.uint8).reshape(6, 1, 5, 5)
    moved = View(1, 2, False).of(pixels, np.arange(6))
    centres = [divmod(int(image[0, 2, 2]) - 25 * index, 5) for index, image in enumerate(moved)]
    assert [(row - 2, column - 2) for row, column in centres] == [(2, -1), (1, -1), (1, 2), (1, 0), (2, 0), (0, -1)]
    chosen = np.array([4, 1])
    assert np.array_equal(View(1, 2, False).of(pixels, chosen), moved[chosen]), "whatever else is moved"
    assert np.array_equal(View(1, 2, True).of(pixels, chosen), moved[chosen][..., ::-1])
