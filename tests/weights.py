"""Weights made for tests, in place of those that are published: the networks as they are, but drawn at random."""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    """The weights as a file of torch's cache in this folder, named by its hash as published ones are."""
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    unnamed = checkpoints / "unnamed.pth"
    torch.save(state, unnamed)
    return unnamed.rename(checkpoints / f"made-{sha256(unnamed.read_bytes()).hexdigest()[:8]}.pth")


def _draw(network: nn.Module) -> None:
    """Weights that neither swell nor shrink what passes through many layers."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan) ** 0.5, generator=generator)


def inception_weights(folder: Path) -> Path:
    """Weights of Inception-v3, as torch-fidelity loads them."""
    from torch_fidelity import feature_extractor_inceptionv3 as published

    class Unloaded(published.FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity is not typed
        def load_state_dict(self, *_: object) -> None:
            """Keeps what it was made with."""

    empty = folder / "empty.pth"
    torch.save({}, empty)
    network = Unloaded("made", ["2048"], feature_extractor_weights_path=str(empty))
    empty.unlink()
    _draw(network)
    return saved(folder, network.state_dict())


def alexnet_weights(folder: Path) -> Path:
    """Weights of AlexNet as torchvision loads them; those of its classifier, which LPIPS has no use for, all zero."""
    from torchvision.models import alexnet

    with torch.device("meta"):  # its 61 million weights are not drawn twice
        network = alexnet()
    state = {name: torch.zeros(1).expand(weights.shape) for name, weights in network.state_dict().items()}
    features = network.features.to_empty(device="cpu")
    _draw(features)
    drawn = {f"features.{name}": weights for name, weights in features.state_dict().items() if "weight" in name}
    return saved(folder, {**state, **drawn})


def vgg_weights(folder: Path) -> Path:
    """Weights of VGG16 as torchvision loads them, without most of the classifier, which no distance has a use for."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        network = vgg16()
    features = network.features.to_empty(device="cpu")
    _draw(features)
    generator = torch.Generator().manual_seed(1)
    state = {f"features.{name}": weights for name, weights in features.state_dict().items()}
    for name in state:
        if name.endswith("bias"):
            state[name].normal_(0, 0.1, generator=generator)
    return saved(folder, {**state, "classifier.6.bias": torch.zeros(1000)})


def publish(monkeypatch: pytest.MonkeyPatch, weights: Path, server: str = "http://127.0.0.1:9") -> None:
    """The weights are those that a network is published with, at a server that does not answer unless there is one, and
    the folder of torch's cache that they are in is the one used."""
    from torch_fidelity import feature_extractor_inceptionv3 as published
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    url = f"{server}/{weights.name}"
    monkeypatch.setattr(published, "URL_INCEPTION_V3", url)
    monkeypatch.setattr(AlexNet_Weights.DEFAULT.value, "url", url)
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", url)
    monkeypatch.setenv("TORCH_HOME", str(weights.parents[2]))
