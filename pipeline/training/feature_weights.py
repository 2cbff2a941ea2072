"""Published weights that a perceptual loss needs: those of VGG16, from torchvision."""

import torch
from torch import Tensor

from pipeline.data.datasets import import_torchvision_datasets
from pipeline.published_weights import published_weights
from pipeline.reporting import Reporter


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
