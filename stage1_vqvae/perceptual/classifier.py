"""Features learned from the user's own images and their classes: the inner layers of a small classifier.

Zhang et al. 2018 find that features of networks trained for any task that needs an understanding of images agree with
people. The start from k-means filters is that of Krähenbühl et al. 2016, section 3.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage1_vqvae.bottlenecks.base import at_least_float32, full_precision
from stage1_vqvae.model import VQVAEError
from stage1_vqvae.perceptual.k_means import Filters, KMeansFeatures, feature_maps

BATCH = 64
_LEARNING_RATE = 3e-3
_SMOOTHING = 0.1  # of labels
_SHARPNESS = 10.0  # of logits: as vectors of unit length have small components, the head would learn slowly


class ClassFeatures(KMeansFeatures):
    """The network of KMeansFeatures with a layer more, whose filters `train_classifier` goes on training.

    Without batch normalisation or shortcuts, it has little in common with the networks that judge images afterwards.
    """

    widths = (24, 32, 48, 64)


def train_classifier(
    network: ClassFeatures,
    batches: Sequence[tuple[Float[Tensor, "_ c h w"], Int[Tensor, "_"]]],
    generator: torch.Generator,
    steps: int = 300,
) -> float:
    """Learn features, once before training, from a few thousand images on [-1/2, 1/2] and their classes.

    Filters are fitted by k-means, then trained for some steps of Adam, in batches of 64 drawn from all the images, to
    classify by the mean of the last maps over positions. Images of class -1 have none and are left out. The same
    batches and generator give the same features. Returns the accuracy over the last tenth of the steps.

    Raises VQVAEError unless there are two classes at least.
    """
    images = torch.cat([at_least_float32(own[labels >= 0]) for own, labels in batches])
    labels = torch.cat([labels[labels >= 0] for _, labels in batches])
    classes = set(labels.tolist())
    if len(classes) < 2:
        raise VQVAEError(f"features of classes are learned from images of 2 classes at least; got {len(classes)}")
    network.fit([images], generator)
    filters = [Filters(*(tensor.clone().requires_grad_() for tensor in own)) for own in network.filters]
    head = images.new_zeros(max(classes) + 1, network.widths[-1]).requires_grad_()
    accuracy = _train(filters, head, images, labels, generator, steps)
    with torch.no_grad():
        for own, trained in zip(network.filters, filters, strict=True):
            own.weight.copy_(trained.weight)
            own.bias.copy_(trained.bias)
    return accuracy


def _train(
    filters: list[Filters],
    head: Float[Tensor, "classes channels"],
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    generator: torch.Generator,
    steps: int,
) -> float:
    """Move filters and head by Adam, with a learning rate that falls to zero; the accuracy of the last batches."""
    optimizer = torch.optim.Adam([head, *(tensor for own in filters for tensor in own)], _LEARNING_RATE)
    accuracies = []
    # On a GPU other convolutions would give other sums each time.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.enable_grad(), full_precision(images.device), exact:
        for step in range(steps):
            chosen = torch.randint(len(labels), (BATCH,), generator=generator, device=generator.device)
            chosen = chosen.to(labels.device)
            logits = _SHARPNESS * feature_maps(images[chosen], filters)[-1].mean((2, 3)) @ head.T
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 - step / steps)
            optimizer.step()
            accuracies.append((logits.argmax(1) == labels[chosen]).float().mean())
    return float(torch.stack(accuracies[-max(1, steps // 10) :]).mean())
