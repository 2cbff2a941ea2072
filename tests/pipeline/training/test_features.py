"""What decoders are trained for, and features. VGG16's weights, made for the test, come from torch's cache."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline import UsageError, train_vqvae
from pipeline.errors import WeightsUnavailableError
from pipeline.reporting import Silent
from pipeline.runs.saved import VQVAERun, read_config
from pipeline.storage import load_tensors
from pipeline.training.inputs.features import vgg_weights
from stage1_vqvae.perceptual import VggFeatures
from tests import weights
from tests.stage1_vqvae.pictures import drawn_images
from tests.tiny import TINY_VQVAE, shapes

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
    state = torch.load(vgg_file, weights_only=True)  # the format in which torchvision publishes weights
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


@pytest.mark.parametrize("kind", ["kmeans", "classes"])
def test_features_are_learned_once_and_stay_as_they_are(tmp_path: Path, kind: Literal["kmeans", "classes"]) -> None:
    images, targets = shapes(size=(16, 16))
    run = tmp_path / "run"
    options = {**TINY_VQVAE, "objective": "sharp", "features": kind, "checkpoints": 3, "keep": 3}
    train_vqvae(out=run, images=images, targets=targets, **options)
    first, second, last = (
        load_tensors(path / "model.safetensors") for path in sorted((run / "vqvae/checkpoints").glob("step-*"))
    )
    own = [name for name in last if name.startswith("sharp.features.")]
    assert own and all(torch.equal(first[name], last[name]) and torch.equal(second[name], last[name]) for name in own)
    assert all(float(last[name].abs().max()) > 0 for name in own if "weight" in name)
    assert not any("sharp" in name for name in load_tensors(run / "vqvae" / "model.safetensors"))


def test_features_of_classes_need_classes(tmp_path: Path) -> None:
    images, _ = shapes()
    with pytest.raises(
        UsageError, match=r"--features classes learns from .* and array has 0; choose --features kmeans"
    ):
        train_vqvae(out=tmp_path, images=images, **TINY_VQVAE, objective="sharp", features="classes")


@pytest.mark.parametrize(
    ("channels", "options", "objective"),
    [
        (3, {}, "sharp"),
        (1, {}, "nmse"),
        (3, {"likelihood": "gaussian"}, "nmse"),
        (3, {"objective": "nmse"}, "nmse"),
        (1, {"objective": "sharp"}, "sharp"),
    ],
)
def test_the_objective_follows_from_the_picture_and_is_saved(
    tmp_path: Path, channels: int, options: dict[str, Any], objective: str
) -> None:
    images, targets = shapes(channels=channels)
    if channels == 3:
        images[:, 0] //= 2  # else all three are alike but for noise
    train_vqvae(out=tmp_path, images=images, targets=targets, **TINY_VQVAE | {"steps": 1}, **options)
    assert read_config(tmp_path / "vqvae", VQVAERun).model.objective == objective
    trained = load_tensors(next((tmp_path / "vqvae/checkpoints").glob("step-*")) / "model.safetensors")
    assert any(name.startswith("sharp.discriminator") for name in trained) == (objective == "sharp")


def test_an_option_of_the_other_objective_is_refused_once_the_images_are_known(tmp_path: Path) -> None:
    images, targets = shapes()
    with pytest.raises(UsageError, match="--feature-matching belongs to --objective sharp"):
        train_vqvae(out=tmp_path, images=images, targets=targets, **TINY_VQVAE, feature_matching=1.0)
