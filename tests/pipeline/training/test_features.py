"""VGG16's weights from torch's cache, made for the test: the distance is that of torchvision's own network."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import WeightsUnavailableError
from pipeline.reporting import Silent
from pipeline.training.features import vgg_weights
from stage1_vqvae.perceptual import VggFeatures
from tests import weights
from tests.stage1_vqvae.pictures import drawn_images

LAYERS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 in torchvision's list


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.vgg_weights(tmp_path_factory.mktemp("vgg"))


@pytest.fixture
def distance(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> VggFeatures:
    weights.publish(monkeypatch, vgg_file)
    features = VggFeatures()
    features.load(vgg_weights(Silent()))
    return features


def of_torchvision(vgg_file: Path, images: Tensor) -> list[Tensor]:
    """What hooks see in torchvision's network while it computes; its weights are read by torch itself."""
    from torchvision.models import vgg16
    from torchvision.transforms.functional import normalize

    with torch.device("meta"):
        network = vgg16()
    features: nn.Sequential = network.features
    state = torch.load(vgg_file, weights_only=True)
    own = {name.removeprefix("features."): tensor for name, tensor in state.items() if name.startswith("features.")}
    features.load_state_dict(own, assign=True)
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.detach().clone())  # the next module may write into it

    for index in LAYERS:
        features[index].register_forward_hook(keep)
    features(normalize(images + 0.5, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return seen


def test_layers_are_those_of_torchvision_with_vectors_of_unit_length(vgg_file: Path, distance: VggFeatures) -> None:
    images, others = drawn_images(2, size=32), drawn_images(2, size=32, seed=9)
    pairs = list(zip(of_torchvision(vgg_file, images), of_torchvision(vgg_file, others), strict=True))
    assert [own.shape[1] for own, _ in pairs] == [64, 128, 256, 512, 512]
    units = [tuple(maps / maps.norm(dim=1, keepdim=True) for maps in pair) for pair in pairs]
    for layer, (expected, _) in zip(distance.layers(images), units, strict=True):
        torch.testing.assert_close(layer, expected, atol=1e-4, rtol=1e-3)
    expected_distance = sum(float((own - other).square().sum(1).mean()) for own, other in units)
    assert float(distance(images, others)) == pytest.approx(expected_distance, rel=1e-3)


def test_grey_images_are_three_equal_channels_and_small_ones_have_fewer_layers(distance: VggFeatures) -> None:
    grey, others = drawn_images(2, 1), drawn_images(2, 1, seed=9)
    in_colour = distance(grey.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1))
    torch.testing.assert_close(distance(grey, others), in_colour)
    assert [len(distance.layers(torch.rand(1, 1, size, 2 * size))) for size in (1, 3, 4, 15, 16)] == [1, 2, 3, 4, 5]


def test_the_distance_is_zero_of_equal_images_and_its_gradient_the_reconstructions(distance: VggFeatures) -> None:
    images, others = drawn_images(2).requires_grad_(), drawn_images(2, seed=9).requires_grad_()
    found = distance(images, others)
    torch.autograd.backward([found])
    assert images.grad is not None and float(images.grad.abs().max()) > 0 and others.grad is None
    torch.testing.assert_close(found, distance(others, images))
    assert float(distance(images, images).detach()) == 0
    assert not list(distance.parameters()) and not any(buffer.requires_grad for buffer in distance.buffers())


def test_a_checkpoint_has_the_convolutions_alone(distance: VggFeatures) -> None:
    again, images = VggFeatures(), drawn_images(2)
    assert float(again(images, -images)) == 0
    again.load_state_dict(distance.state_dict())
    assert torch.equal(again(images, -images), distance(images, -images)) and float(again(images, -images)) > 0
    assert sum(tensor.nbytes for tensor in distance.state_dict().values()) == 4 * 14_714_688


def test_weights_that_cannot_be_downloaded_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = weights.saved(tmp_path / "home", {})
    missing.unlink()
    weights.publish(monkeypatch, missing)
    with pytest.raises(WeightsUnavailableError, match=f"put the file into {missing.parent}, or") as error:
        vgg_weights(Silent())
    assert missing.name in str(error.value)


def test_a_file_that_would_run_code_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runs:
        """What a pickle would make by calling a function."""

        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path(tmp_path / "ran").write_text, ("code",)  # type: ignore[return-value]  # any function would do

    hostile = weights.saved(tmp_path / "home", {"features.0.weight": Runs()})  # type: ignore[dict-item]
    weights.publish(monkeypatch, hostile)
    with pytest.raises(UnpicklingError):
        vgg_weights(Silent())
    assert not (tmp_path / "ran").exists()
