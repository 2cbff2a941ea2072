"""What a training will need, said before it starts; how many images may be drawn at a time."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from pipeline.randomness import batch_places
from pipeline.training import Trainer, own_random_numbers
from stage2_prior import Stepper

MOST_DRAWN = 256  # images: products are large enough, more of them gain nothing
_SHARE = 4  # a part of the free memory is enough for drawing
_COPIES = 12  # of an image: in float32 while it is decoded, then in bytes while it waits to be written
_PROBE = 2  # images of the forward pass whose saved tensors are counted


def expected_memory(trainer: Trainer) -> int:
    """Bytes a process for weights, gradients, AdamW's two moments, the average, and a micro-batch's activations."""
    parameters = sum(p.numel() * p.element_size() for p in trainer.task.parameters())
    copies = 5 if trainer.config.average_decay else 4
    micro_batch = trainer.config.batch_size // (trainer.config.micro_batches or 1)
    return copies * parameters + _saved_bytes(trainer) * micro_batch // _PROBE


def _saved_bytes(trainer: Trainer) -> int:
    """Bytes that a forward pass over a few images keeps for the backward pass, weights not counted."""
    weights = {p.data_ptr() for p in trainer.task.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    places = batch_places(trainer.config.seed, 0, _PROBE, trainer.data.population)
    batch = trainer.data.training_batch(places, trainer.device)
    with own_random_numbers(trainer.device), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        with trainer.autocast():
            output = trainer.task(batch, 0.0)
        del output
    return sum(kept.values())


def sampling_batch(plan: Callable[[int], Sequence[Stepper]], device: torch.device, wanted: int, pixels: int) -> int:
    """How many of the wanted images, of so many bytes, to draw at a time: as the free memory allows, 256 at most.

    `plan` makes the steppers of all levels for a number of images.
    """
    one, two = (sum(stepper.memory() for stepper in plan(n)) for n in (1, 2))
    bytes_an_image = two - one + _COPIES * pixels
    return max(1, min(wanted, MOST_DRAWN, _free_bytes(device) // _SHARE // bytes_an_image))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():  # a container's, else "max"
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
