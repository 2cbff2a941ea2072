"""The networks of the field, with weights made for the test: features are torch-fidelity's, LPIPS is torchmetrics'."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import UsageError, published_weights
from pipeline.errors import WeightsUnavailableError
from pipeline.evaluation.measures import inception as networks
from pipeline.evaluation.measures.distances import frechet_distance
from pipeline.evaluation.measures.inception import InceptionFeatures, inception, lpips_of
from pipeline.reporting import Silent
from tests.weights import alexnet_weights, inception_weights, publish, saved

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_weights(tmp_path_factory.mktemp("inception"))


@pytest.fixture(scope="module")
def network(inception_file: Path) -> InceptionFeatures:
    with pytest.MonkeyPatch.context() as patch:
        publish(patch, inception_file)
        return inception(CPU, Silent())


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alexnet_weights(tmp_path_factory.mktemp("alexnet"))


def pictures(seed: int, n: int = 3, channels: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, size, size)).astype(np.uint8)


def test_features_are_those_that_torch_fidelity_computes_of_files(
    tmp_path: Path, inception_file: Path, network: InceptionFeatures
) -> None:
    from torch_fidelity import utils

    images = pictures(0)
    for index, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    theirs = utils.create_feature_extractor(
        "inception-v3-compat",
        ["2048"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(inception_file),
    )
    read = utils.extract_featuresdict_from_input_id(
        1, theirs, input1=str(tmp_path), cuda=False, verbose=False, save_cpu_ram=True, batch_size=2
    )
    expected = read["2048"].numpy()
    features = network.features(images)
    assert features.shape == (3, 2048) and features.dtype == np.float64
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()  # images differ by more


def test_the_frechet_distance_is_that_of_torch_fidelity() -> None:
    """Of as few features as their eigenvalues take no time for."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(500, 32)), 1.5 * rng.normal(size=(400, 32)) + 0.3
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (first, second)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


def test_grey_images_are_three_equal_channels(network: InceptionFeatures) -> None:
    grey = pictures(0, 2, 1, 8)
    np.testing.assert_array_equal(network.features(grey), network.features(np.repeat(grey, 3, 1)))
    assert network.features(grey[:0]).shape == (0, 2048)


def test_lpips_of_each_image_is_that_of_torchmetrics(monkeypatch: pytest.MonkeyPatch, alexnet_file: Path) -> None:
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as of_library

    publish(monkeypatch, alexnet_file)
    monkeypatch.setattr(networks, "_BATCH", 2)  # the last batch has one image
    images = pictures(0)
    restored = images.copy()
    restored[1] = np.clip(images[1] + np.random.default_rng(1).normal(0, 20, images[1].shape), 0, 255)
    restored[2] = images[2].mean()
    found = lpips_of(images, restored, CPU, Silent())
    first, second = (torch.from_numpy(part) / 255 for part in (images, restored))
    np.testing.assert_allclose(found, of_library(first, second, reduction="none", normalize=True), rtol=1e-4)
    assert found[0] == 0 and 0 < found[1] < found[2]
    grey, darker = images[:, :1], restored[:, :1]
    in_colour = lpips_of(np.repeat(grey, 3, 1), np.repeat(darker, 3, 1), CPU, Silent())
    np.testing.assert_allclose(lpips_of(grey, darker, CPU, Silent()), in_colour)


def test_the_smallest_images_that_lpips_measures(monkeypatch: pytest.MonkeyPatch, alexnet_file: Path) -> None:
    publish(monkeypatch, alexnet_file)
    assert lpips_of(pictures(0, 1, size=31), pictures(1, 1, size=31), CPU, Silent())[0] > 0
    with pytest.raises(UsageError, match="LPIPS needs images of 31x31 pixels; these have 30x30"):
        lpips_of(pictures(0, 1, size=30), pictures(1, 1, size=30), CPU, Silent())


# Weights that are not there


class Files(SimpleHTTPRequestHandler):
    """Serves a folder, silently."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


class HalfAFile(Files):
    """Announces more than it sends."""

    def do_GET(self) -> None:
        """Five bytes of a thousand."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"begun")


@contextmanager
def served(folder: Path, handler: type[Files]) -> Iterator[str]:
    """The address of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def unpublished(tmp_path: Path) -> Path:
    """Where weights would lie in an empty cache."""
    weights = saved(tmp_path / "home", {})
    weights.unlink()
    return weights


def refused(weights: Path) -> str:
    """How both networks are refused; and nothing lies in the cache that was not there."""
    before = sorted(weights.parent.iterdir())
    with pytest.raises(WeightsUnavailableError) as inception_error:
        inception(CPU, Silent())
    with pytest.raises(WeightsUnavailableError) as lpips_error:
        lpips_of(pictures(0), pictures(1), CPU, Silent())
    assert sorted(weights.parent.iterdir()) == before
    assert weights.name in str(inception_error.value) and weights.name in str(lpips_error.value)
    return str(inception_error.value)


def test_weights_that_cannot_be_downloaded_are_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, unpublished: Path
) -> None:
    publish(monkeypatch, unpublished)
    message = refused(unpublished)
    assert f"from http://127.0.0.1:9/{unpublished.name} " in message and "Connection refused" in message
    assert f"put the file into {unpublished.parent}, or" in message and "TORCH_HOME" in message


def test_half_a_download_is_not_kept(monkeypatch: pytest.MonkeyPatch, unpublished: Path) -> None:
    with served(unpublished.parent, HalfAFile) as address:
        publish(monkeypatch, unpublished, address)
        assert "invalid hash value" in refused(unpublished)


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, unpublished: Path) -> None:
    monkeypatch.setattr(published_weights, "_SILENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(monkeypatch, unpublished, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "timed out" in refused(unpublished)
    assert socket.getdefaulttimeout() is None


def test_damaged_weights_are_refused_and_stay(monkeypatch: pytest.MonkeyPatch, unpublished: Path) -> None:
    unpublished.write_bytes(b"begun")
    publish(monkeypatch, unpublished)
    assert f"{unpublished} is damaged: its SHA-256 begins with " in refused(unpublished)
    assert unpublished.read_bytes() == b"begun"


def test_weights_are_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inception_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = tmp_path / "home" / "hub" / "checkpoints" / inception_file.name
    with served(inception_file.parent, Files) as address:
        publish(monkeypatch, cached, address)
        inception(CPU, Silent())
    assert [path.name for path in cached.parent.iterdir()] == [inception_file.name]
    inception(CPU, Silent())  # nobody answers any more
    assert capsys.readouterr() == ("", "")
