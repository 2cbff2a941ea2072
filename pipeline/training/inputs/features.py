"""Features for a perceptual loss that come from more than a few batches: a classifier's, or those of VGG16."""

import torch
from torch import Tensor

from pipeline import processes
from pipeline.data.datasets import import_torchvision_datasets
from pipeline.data.image_set import ImageSet
from pipeline.data.splits import Split
from pipeline.errors import UsageError
from pipeline.published_weights import published_weights
from pipeline.randomness import Purpose, generator
from pipeline.reporting import Reporter
from pipeline.training.launch import Launch
from stage1_vqvae import ObjectiveConfig
from stage1_vqvae.perceptual import ClassFeatures, FeatureDistance, VggFeatures, train_classifier

_LEARNED_FROM = 4096  # training images at most


def check_classes(objective: ObjectiveConfig, images: ImageSet, data: str) -> None:
    """Raise UsageError where features are to be learned from classes, and the images have none."""
    if objective.features == "classes" and len(images.class_names) < 2:
        raise UsageError(
            f"--features classes learns from the folders' classes, 2 at least, and {data} has "
            f"{len(images.class_names)}; choose --features kmeans"
        )


def fill_features(features: FeatureDistance, images: ImageSet, parts: Split, seed: int, launch: Launch) -> None:
    """Train the classifier, or load VGG16, on the main process alone: its features go to the others with the weights.

    Features of other kinds are left alone. Raises what `vgg_weights` raises.
    """

    def fill() -> None:
        if isinstance(features, VggFeatures):
            features.load(vgg_weights(launch.reporter))
        if isinstance(features, ClassFeatures):
            launch.reporter.say("learning features from the classes")
            accuracy = train_classifier(features, [_labelled(images, parts, launch)], _noise(seed, launch))
            launch.reporter.say(f"features of a classifier that is right on {100 * accuracy:.0f} % of what it learned")

    processes.on_main(launch.accelerator, fill)


def _noise(seed: int, launch: Launch) -> torch.Generator:
    return generator(seed, Purpose.FEATURES, device=launch.accelerator.device)


def _labelled(images: ImageSet, parts: Split, launch: Launch) -> tuple[Tensor, Tensor]:
    """Training images on [-1/2, 1/2], spread evenly over all of them, and their classes."""
    assert images.labels is not None
    chosen = parts.train[:: -(-len(parts.train) // _LEARNED_FROM)]
    device = launch.accelerator.device
    pixels = torch.from_numpy(images.images[chosen]).to(device).float() / 255 - 0.5
    return pixels, torch.from_numpy(images.labels[chosen]).long().to(device)


def vgg_weights(reporter: Reporter) -> dict[str, Tensor]:
    """The convolutions of torchvision's VGG16, trained on ImageNet, by their names there, as VggFeatures loads them.

    528 MB are downloaded when first used. Raises WeightsUnavailableError where they cannot be, or are damaged, and
    DataError where torchvision does not fit torch.
    """
    import_torchvision_datasets()  # says why where torchvision does not fit torch
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    published_weights(url, reporter)
    # The file is there, and checked; of a pickle, tensors alone are read.
    state = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in state.items() if name.startswith("features.")}
