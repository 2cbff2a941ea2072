"""A judge of images: a small network that has learned what a data set's training images show, and nothing of a model.

It is trained once for a data set and its training part, and kept in the cache.
"""

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline.data.image_set import ImageSet
from pipeline.data.kept import cache
from pipeline.errors import CheckpointError
from pipeline.evaluation.judge.network import JudgeNetwork, Number
from pipeline.evaluation.judge.training import (
    RECIPE,
    WAYS,
    Examples,
    exact_kernels,
    on_device,
    trained_network,
    turned,
)
from pipeline.reporting import Reporter, Silent
from pipeline.storage import (
    atomic_folder,
    load_strictly,
    read_json,
    save_tensors,
    tensors_sha256,
    validated,
    verify,
    write_json,
)

_WEIGHTS, _ABOUT = "judge.safetensors", "judge.json"
_AT_A_TIME = 64  # images; always as many, since the last bits of a product depend on how many rows it has
_SEED = 0


@dataclass(frozen=True)
class _About:
    """judge.json: what the judge was trained on, by which recipe, and the hash of all that with its tensors."""

    recipe: int
    number: Number
    learned: Literal["classes", "rotations"]
    num_classes: int
    images: int
    fingerprint: str
    sha256: str = ""


@dataclass(frozen=True)
class Judge:
    """A trained judge; its network is in evaluation mode.

    Where images have no classes, or all the same, it has `learned` to see which way an image was turned, by self-
    supervision (Gidaris et al. 2018): square ones by 0, 90, 180 or 270 degrees, others mirrored in neither, one, the
    other or both directions. `class_names` are empty then, and the ways take the part of classes.
    """

    network: JudgeNetwork
    number: Number
    learned: Literal["classes", "rotations"]
    class_names: tuple[str, ...]
    sha256: str  # of its tensors and its recipe

    def features(self, images: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n d"]:
        """At most 64 numbers an image, computed in float32: the same to the last bit whatever images are beside it."""
        return _computed(self.network, images)[0].double().numpy()

    def predictions(self, images: UInt8[np.ndarray, "n c h w"]) -> Int[np.ndarray, "n"]:
        """The class that the judge sees in each image, or without classes the way it takes the image to be turned."""
        return _computed(self.network, images)[1].argmax(1).numpy()

    def is_right(
        self, images: UInt8[np.ndarray, "n c h w"], labels: Int[np.ndarray, "n"] | None
    ) -> Float[np.ndarray, "n"]:
        """1 where it sees the class of an image and 0 elsewhere; without classes in how many of the ways in which an
        image is turned it sees the way, from 0 to 1."""
        if self.learned == "classes":
            assert labels is not None, "a judge of classes is given those of the images"
            return (self.predictions(images) == labels).astype(np.float64)
        return np.mean([self.predictions(turned(images, way)) == way for way in range(WAYS)], axis=0)


def judge_of(
    image_set: ImageSet,
    train: Int[np.ndarray, "m"],
    *,
    number: Number = 1,
    reporter: Reporter,
    device: torch.device,
) -> Judge:
    """The judge of a data set by its training part, `train`: from the cache, or trained now and kept there.

    Raises DataError where there is no image to train on.
    """
    labels, names = (None if image_set.labels is None else image_set.labels[train]), image_set.class_names
    if labels is None or len(np.unique(labels)) < 2:
        labels, names = None, ()
    examples = Examples(image_set.images, train, labels, len(names) or WAYS)
    learned: Literal["classes", "rotations"] = "classes" if names else "rotations"
    about = _About(RECIPE, number, learned, examples.num_classes, len(train), image_set.fingerprint)
    decides = json.dumps(asdict(about)).encode() + train.astype(np.int64).tobytes()
    key = hashlib.sha256(decides).hexdigest()[:32]
    folder, shape = cache.judges_folder() / key, image_set.shape
    with cache.alone_with(key, reporter, "training the same judge"):
        cache.remove_orphans(key)
        found = _opened(folder, about, shape, reporter)
        if found is None:
            network = trained_network(examples, number, seed=_SEED, device=device, reporter=reporter)
            trained = network, _sha256(network, about)
            _keep(folder, *trained, about)
            found = _opened(folder, about, shape, reporter) or trained
    network, sha256 = found
    return Judge(on_device(network, device).eval(), number, learned, names, sha256)


def accuracy_of_training_on(
    images: UInt8[np.ndarray, "n c h w"],
    labels: Int[np.ndarray, "n"],
    test_images: UInt8[np.ndarray, "m c h w"],
    test_labels: Int[np.ndarray, "m"],
    *,
    num_classes: int,
    number: Number,
    seed: int = _SEED,
    device: torch.device,
) -> Bool[np.ndarray, "m"]:
    """Which test images a network sees the class of that was trained, by the recipe of a judge, on these images alone.

    The mean is the classification accuracy score where they are samples (Ravuri and Vinyals 2019). Raises DataError
    without images.
    """
    examples = Examples(images, np.arange(len(images)), labels.astype(np.int64), num_classes)
    network = trained_network(examples, number, seed=seed, device=device, reporter=Silent())
    return _computed(network, test_images)[1].argmax(1).numpy() == test_labels


def _opened(
    folder: Path, about: _About, shape: tuple[int, int, int], reporter: Reporter
) -> tuple[JudgeNetwork, str] | None:
    """The network in a folder of the cache, and its hash; None where there is none, or it is damaged, which is said."""
    if not folder.exists():
        return None
    with torch.random.fork_rng([]):  # of its weights at first, which others replace
        network = JudgeNetwork(about.number, shape, about.num_classes)
    try:
        verify(folder)
        saved = validated(folder / _ABOUT, read_json(folder / _ABOUT), _About)
        load_strictly(network, folder / _WEIGHTS)
        if saved.sha256 != _sha256(network, about):
            raise CheckpointError(f"{folder / _WEIGHTS} is not the one that {_ABOUT} describes")
    except CheckpointError as error:
        reporter.say(f"the judge in the cache is trained again: {error}")
        shutil.rmtree(folder)
        return None
    return network, saved.sha256


def _sha256(network: JudgeNetwork, about: _About) -> str:
    """The hash of a judge's tensors, and of what they were trained by and on."""
    said = json.dumps(asdict(about)) + tensors_sha256(network.state_dict())
    return hashlib.sha256(said.encode()).hexdigest()


def _keep(folder: Path, network: JudgeNetwork, sha256: str, about: _About) -> None:
    # Another machine with the same home may train the same judge: whoever is first is right.
    with contextlib.suppress(FileExistsError), atomic_folder(folder) as unfinished:
        save_tensors(unfinished / _WEIGHTS, network.state_dict())
        write_json(unfinished / _ABOUT, asdict(about) | {"sha256": sha256})


@torch.no_grad()
def _computed(network: JudgeNetwork, images: UInt8[np.ndarray, "n c h w"]) -> tuple[Tensor, Tensor]:
    """Features and logits of images."""
    device, features, logits = network.head.weight.device, [], []
    with exact_kernels(), torch.autocast(device.type, enabled=False):
        for start in range(0, max(1, len(images)), _AT_A_TIME):
            part = np.array(images[start : start + _AT_A_TIME])
            filled = np.resize(part, (_AT_A_TIME, *part.shape[1:]))
            found = network.features(torch.from_numpy(filled).to(device))
            features.append(found[: len(part)].cpu())
            logits.append(network.head(found)[: len(part)].cpu())
    return torch.cat(features), torch.cat(logits)
