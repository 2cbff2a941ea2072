"""How a judge is trained: one recipe, whose every step is a function of the images, their number and a seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import DataError
from pipeline.evaluation.judge.network import JudgeNetwork, Number
from pipeline.processes import autocast, resolve_precision
from pipeline.randomness import BatchIndices, Purpose, batch_indices, number, stream, views
from pipeline.reporting import Reporter
from pipeline.training.launch import seeded_weights

RECIPE = 1  # one more whenever the networks or their training change: judges trained before are others
WAYS = 4  # that an image without a class is turned
_BATCH, _SMALL_BATCH = 128, 16
_EPOCHS = 10
_MOST_STEPS = 1250
_FEWEST_STEPS = 300  # but for sets so small that so many steps would learn them by heart
_WARM_UP = 0.2  # of the steps
_PEAK = 0.1  # learning rate
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4
_SMOOTHING = 0.1  # of labels
_SHIFT = 8  # an image is moved by up to this part of its height and width


@dataclass(frozen=True)
class Examples:
    """The images at these indices of an array, and the class of each of them; without, the ways they are turned."""

    images: UInt8[np.ndarray, "n c h w"]
    chosen: Int[np.ndarray, "m"]
    labels: Int[np.ndarray, "m"] | None
    num_classes: int

    @property
    def population(self) -> int:
        """Images trained on."""
        return len(self.chosen)


def batch_size_for(n: int) -> int:
    """Images a step, of n: fewer of few, but never one, which batch normalisation cannot do with."""
    return max(2, min(_BATCH, max(_SMALL_BATCH, n // 16), n))


def steps_for(n: int) -> int:
    """Steps of training on n images: some epochs, within bounds."""
    return min(_MOST_STEPS, max(_EPOCHS * n // _BATCH, min(_FEWEST_STEPS, 2 * n)))


def learning_rate(step: int, steps: int) -> float:
    """One cycle: a linear rise, then a linear fall to zero (Smith and Topin 2019)."""
    warm = max(1.0, _WARM_UP * steps)
    return _PEAK * min((step + 1) / warm, (steps - step) / max(1.0, steps + 1 - warm))


def trained_network(
    examples: Examples, which: Number, *, seed: int, device: torch.device, reporter: Reporter
) -> JudgeNetwork:
    """A judge's network in evaluation mode. Training is in bfloat16 where the device has it in hardware.

    Raises DataError where there is no image.
    """
    if not examples.population:
        raise DataError("a judge is trained on 1 image at least; got 0")
    own, steps = number(seed, Purpose.JUDGE, which), steps_for(examples.population)
    with seeded_weights(own):
        network = JudgeNetwork(which, examples.images.shape[1:], examples.num_classes)
    network = on_device(network, device)
    optimizer = torch.optim.SGD(network.parameters(), _PEAK, _MOMENTUM, weight_decay=_WEIGHT_DECAY, nesterov=True)
    precision = resolve_precision("auto", device)
    with exact_kernels():
        for step in reporter.steps(range(steps), f"judge {which}"):
            images, labels = (tensor.to(device) for tensor in _batch(examples, own, step))
            with autocast(precision, device):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            optimizer.step()
    return network.eval()


def on_device(network: JudgeNetwork, device: torch.device) -> JudgeNetwork:
    """The network as it computes fastest."""
    return network.to(device).to(memory_format=torch.channels_last)


@contextmanager
def exact_kernels() -> Iterator[None]:
    """On a GPU, convolutions that give the same each time, of float32 in float32."""
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        yield


def turned(images: UInt8[np.ndarray, "n c h w"], way: int) -> UInt8[np.ndarray, "n c h w"]:
    """Images turned in one of four ways: square ones by 0, 90, 180 or 270 degrees; others, which must keep their
    shape, mirrored in neither, one, the other or both directions."""
    if images.shape[2] == images.shape[3]:
        return np.rot90(images, way, (2, 3))
    return images[:, :, :: -1 if way & 2 else 1, :: -1 if way & 1 else 1]


def _batch(examples: Examples, seed: int, step: int) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, "n"]]:
    """The images of a step, moved at random, and what is to be learned of them."""
    n = examples.population
    batch = batch_indices(seed, step, batch_size_for(n), n)
    pixels = examples.images[examples.chosen[batch.items]]
    pixels = _moved(pixels, stream(seed, Purpose.SHIFT, step))
    if examples.labels is not None:
        return torch.from_numpy(pixels), torch.from_numpy(examples.labels[batch.items])
    return _turned_at_random(pixels, batch, seed, n)


def _moved(images: UInt8[np.ndarray, "n c h w"], rng: np.random.Generator) -> UInt8[np.ndarray, "n c h w"]:
    """Each image moved by a few pixels; what comes in is its own reflection."""
    _, _, height, width = images.shape
    most = (height // _SHIFT, width // _SHIFT)
    padded = np.pad(images, ((0, 0), (0, 0), *((side, side) for side in most)), "reflect")
    corners = zip(*(rng.integers(0, 2 * side + 1, len(images)) for side in most), strict=True)
    moved = [
        image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, corners, strict=True)
    ]
    return np.stack(moved)


def _turned_at_random(
    pixels: UInt8[np.ndarray, "n c h w"], batch: BatchIndices, seed: int, population: int
) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, "n"]]:
    ways = views(seed, batch, population, WAYS)
    for way in range(WAYS):
        pixels[ways == way] = turned(pixels[ways == way], way)
    return torch.from_numpy(pixels), torch.from_numpy(ways)
