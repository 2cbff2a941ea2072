"""Distances in frozen features: what each of them must hold to, and k-means filters by themselves."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stage1_vqvae import VQVAEError
from stage1_vqvae.perceptual import (
    ClassFeatures,
    FeatureDistance,
    KMeansFeatures,
    train_classifier,
    unit_length,
)
from stage1_vqvae.perceptual.k_means import learn_filters, random_patches, spherical_k_means
from tests.stage1_vqvae.pictures import drawn_images


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def k_means_features(channels: int = 3) -> KMeansFeatures:
    features = KMeansFeatures(channels)
    features.fit([drawn_images(n, channels, seed=n) for n in (40, 24)], seeded())
    return features


def fitted(name: str, channels: int = 3) -> FeatureDistance:
    """Features of their own: tests may change them."""
    return deepcopy(FEATURES[name](channels))


@cache
def class_features(channels: int = 3) -> ClassFeatures:
    features = ClassFeatures(channels)
    train_classifier(features, [squares_and_stripes(64, channels)], seeded(), steps=60)
    return features


def squares_and_stripes(n: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of two classes, of any brightness and colour: patterns of coarse squares, and of fine stripes."""
    generator = seeded(seed)
    colours = torch.rand(n, channels, 1, 1, generator=generator)
    coarse, fine = drawn_images(n, channels, seed=seed), torch.arange(16) // 2 % 2 - 0.5
    noise = torch.randn(n, channels, 16, 16, generator=generator)
    labels = torch.arange(n) % 2
    patterns = torch.where(labels[:, None, None, None] == 0, coarse, fine + 0.05 * noise)
    return ((patterns + 0.5) * colours - 0.5, labels)


FEATURES: dict[str, Callable[[int], FeatureDistance]] = {"k-means": k_means_features, "classes": class_features}
every_distance = pytest.mark.parametrize("name", FEATURES)
colour_or_grey = pytest.mark.parametrize("channels", [1, 3])


@every_distance
@colour_or_grey
def test_the_distance_is_symmetric_and_zero_of_equal_images_alone(name: str, channels: int) -> None:
    distance = fitted(name, channels)
    images, others = drawn_images(4, channels), drawn_images(4, channels, seed=9)
    assert float(distance(images, images)) == 0
    assert float(distance(images, others)) > 0.1
    torch.testing.assert_close(distance(images, others), distance(others, images))


@every_distance
def test_the_distance_of_a_batch_is_the_mean_of_its_images(name: str) -> None:
    distance = fitted(name)
    images, others = drawn_images(3), drawn_images(3, seed=9)
    alone = [distance(images[i : i + 1], others[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(distance(images, others), torch.stack(alone).mean())


@every_distance
def test_the_gradient_is_that_of_the_reconstruction_alone(name: str) -> None:
    distance = fitted(name)
    images, others = drawn_images(2).requires_grad_(), drawn_images(2, seed=9).requires_grad_()
    torch.autograd.backward([distance(images, others)])
    assert images.grad is not None and bool((images.grad.abs().sum((1, 2, 3)) > 0).all())
    assert others.grad is None
    assert not list(distance.parameters()) and not any(buffer.requires_grad for buffer in distance.buffers())


@every_distance
def test_the_gradient_is_that_of_small_differences(name: str) -> None:
    distance = fitted(name, 1).double()
    images, others = drawn_images(1, 1, 8).double(), drawn_images(1, 1, 8, seed=9).double()
    assert torch.autograd.gradcheck(lambda own: distance(own, others), images.requires_grad_())


@every_distance
def test_equal_images_have_no_gradient_and_flat_ones_a_finite_one(name: str) -> None:
    distance = fitted(name)
    equal = drawn_images(2).requires_grad_()
    torch.autograd.backward([distance(equal, drawn_images(2))])
    assert equal.grad is not None and float(equal.grad.abs().max()) == 0
    flat = torch.full((2, 3, 16, 16), 0.25, requires_grad=True)
    torch.autograd.backward([distance(flat, drawn_images(2))])
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


@every_distance
def test_a_blurred_image_is_further_than_a_brighter_one_of_the_same_squared_error(name: str) -> None:
    distance, images = fitted(name), drawn_images(8)
    blurred = F.avg_pool2d(F.pad(images, (1,) * 4, mode="replicate"), 3, 1)
    brighter = images + (blurred - images).square().mean().sqrt()
    torch.testing.assert_close(F.mse_loss(brighter, images), F.mse_loss(blurred, images))
    assert float(distance(blurred, images)) > 2 * float(distance(brighter, images))


@every_distance
def test_features_survive_a_checkpoint(name: str) -> None:
    distance = fitted(name)
    images, others = drawn_images(2), drawn_images(2, seed=9)
    expected = distance(images, others)
    state = {key: tensor.clone() for key, tensor in distance.state_dict().items()}
    for tensor in distance.buffers():
        tensor.fill_(torch.nan)
    distance.load_state_dict(state)
    assert torch.equal(distance(images, others), expected)


@every_distance
def test_the_precision_around_does_not_matter(name: str) -> None:
    distance = fitted(name)
    images, others = drawn_images(2), drawn_images(2, seed=9)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distance(images, others)
    assert inside.dtype == torch.float32 and torch.equal(inside, distance(images, others))


def test_vectors_are_of_unit_length_unless_they_are_flat() -> None:
    lengths = unit_length(torch.tensor([3.0, 4.0, 0.0, 0.0]).reshape(2, 2, 1, 1), 1e-8).square().sum(1).flatten()
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0]))


# k-means filters


def test_the_same_generator_gives_the_same_filters_and_another_one_others() -> None:
    first, second, third = (KMeansFeatures(3) for _ in range(3))
    batches = [drawn_images(16, seed=seed) for seed in (1, 2)]
    for features, seed in ((first, 0), (second, 0), (third, 1)):
        with torch.autocast("cpu", torch.bfloat16):
            features.fit(batches, seeded(seed))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.get_buffer(name)) and not torch.equal(tensor, third.get_buffer(name))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 5), (28, 28)])
def test_images_may_be_of_any_size(shape: tuple[int, int]) -> None:
    features, images = KMeansFeatures(1), torch.rand(4, 1, *shape, generator=seeded()) - 0.5
    features.fit([images], seeded())
    rows, columns = shape
    for maps in features.layers(images):
        rows, columns = -(-rows // 2), -(-columns // 2)
        assert maps.shape[2:] == (rows, columns)
    assert bool(features(images, images.flip(0)).isfinite())


def test_a_position_of_the_first_layer_sees_six_pixels_a_side_and_the_edge_is_no_edge() -> None:
    features = fitted("k-means", 1)
    images = drawn_images(1, 1, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(features.layers(images)[0][0, :, 2, 3].sum(), images)
    rows, columns = torch.nonzero(gradient[0, 0], as_tuple=True)
    assert sorted(set(rows.tolist())) == list(range(2, 8)) and sorted(set(columns.tolist())) == list(range(4, 10))
    [first, *_] = features.layers(torch.full((1, 1, 8, 8), 0.5))
    torch.testing.assert_close(first, first[:, :, :1, :1].expand_as(first), atol=1e-5, rtol=0)


def test_images_without_any_contrast_give_finite_features() -> None:
    features, images = KMeansFeatures(3), torch.zeros(4, 3, 8, 8)
    features.fit([images], seeded())
    assert bool(features(images, drawn_images(4, size=8)).isfinite())


def test_brightness_has_no_distance_but_colour_has() -> None:
    features, images = fitted("k-means"), drawn_images(4)
    redder = images + torch.tensor([0.1, -0.05, -0.05])[:, None, None]
    assert float(features(images + 0.1, images)) < 1e-6 < 1e-3 < float(features(redder, images))


def test_channel_vectors_are_scaled_to_unit_length_on_average() -> None:
    patches = random_patches(drawn_images(32), 1, 4000, seeded())
    filters = learn_filters(patches, 16, seeded(), of_images=True)
    responses = F.relu(F.conv2d(patches, filters.weight, filters.bias))
    assert float(responses.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)


def test_patches_are_those_that_a_strided_convolution_sees() -> None:
    images = drawn_images(2, 3, 9)
    seen = {tuple(column.tolist()) for image in F.unfold(images, 3, stride=2) for column in image.T}
    drawn = {tuple(patch.flatten().tolist()) for patch in random_patches(images, 2, 500, seeded())}
    assert drawn == seen and len(seen) == 2 * 4 * 4


def test_centres_are_the_directions_that_vectors_lie_in() -> None:
    """Which of them has most vectors, and how long these are, does not matter; opposite ones are two."""
    directions = torch.cat([torch.eye(3), -torch.eye(3)[:1]])
    lengths = 1 + torch.rand(400, 1, generator=seeded())
    noise = 0.01 * torch.randn(400, 3, generator=seeded(1))
    vectors = lengths * directions[torch.arange(400) % 4] + noise
    centres = spherical_k_means(vectors, 12, seeded())
    torch.testing.assert_close(centres.square().sum(1), torch.ones(12))
    nearest: Tensor = (directions @ centres.T).amax(1)
    assert float(nearest.min()) > 0.99


# Features of classes


def test_a_classifier_learns_classes_that_its_start_does_not_separate() -> None:
    """Of new images, the mean of the last maps is nearest to that of their class."""
    trained, start = fitted("classes"), ClassFeatures(3)
    (images, _), (others, their_labels) = squares_and_stripes(64, 3), squares_and_stripes(64, 3, seed=5)
    start.fit([images], seeded())

    def separation(features: FeatureDistance) -> float:
        """The distance of the classes' means over that of an image from the mean of its class."""
        means = features.layers(others)[-1].mean((2, 3))
        centres = torch.stack([means[their_labels == label].mean(0) for label in (0, 1)])
        return float((centres[0] - centres[1]).norm() / (means - centres[their_labels]).norm(dim=1).mean())

    assert separation(trained) > 1.5 * separation(start)


def test_training_reports_its_accuracy_and_is_the_same_again() -> None:
    images, labels = squares_and_stripes(32, 1)
    first, second, third = (ClassFeatures(1) for _ in range(3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # as the loop calls it
        accuracy = train_classifier(first, [(images, labels)], seeded(), 20)
    assert accuracy > 0.9 and not any(buffer.requires_grad for buffer in first.buffers())
    assert train_classifier(second, [(images[:20], labels[:20]), (images[20:], labels[20:])], seeded(), 20) == accuracy
    train_classifier(third, [(images, labels)], seeded(1), 20)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.get_buffer(name)) and not torch.equal(tensor, third.get_buffer(name))


def test_images_without_a_class_are_left_out_and_one_class_is_too_few() -> None:
    images, labels = squares_and_stripes(16, 1)
    without, alone = ClassFeatures(1), ClassFeatures(1)
    unlabelled = (torch.rand(5, 1, 16, 16), torch.full((5,), -1))
    train_classifier(without, [unlabelled, (images, labels)], seeded(), 2)
    train_classifier(alone, [(images, labels)], seeded(), 2)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, without.get_buffer(name))
    for few, count in ((labels * 0, 1), (labels * 0 - 1, 0)):
        with pytest.raises(VQVAEError, match=f"of 2 classes at least; got {count}"):
            train_classifier(alone, [(images, few)], seeded())
