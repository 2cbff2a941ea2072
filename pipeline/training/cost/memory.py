"""How much memory and arithmetic a training takes, asked before it is built.

On the meta device of torch tensors have shapes alone, and nothing is computed.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.training import TrainingConfig
from pipeline.errors import ResourceError
from pipeline.resources import check_memory, free_memory, in_words
from pipeline.runs.saved import PriorRun, VQVAERun
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage2_prior import CodeBatch, PriorConfig, PriorTask, make_prior

Model: TypeAlias = VQVAEConfig | PriorConfig

PROBED = (2, 4)  # images of two forward passes whose saved tensors are counted
WORKING = 3  # of the largest tensor: what one layer's backward pass needs besides what was kept
HEAP = 1.35  # resident memory over what is allocated on a CPU, as benchmarks/memory_said.py has measured it
_REMEMBERED = 64  # models of a process, which asks for the same ones where it trains, resumes and compares
# Options that a training needs more memory for the larger they are.
_SIZES = ("hidden", "residual_blocks", "residual_channels", "num_codes", "code_dim", "levels")
_SIZES_OF_PRIORS = ("hidden", "layers", "kernel", "first_kernel", "head", "condition_blocks")


class Kept(NamedTuple):
    """Bytes that a forward pass keeps for the backward pass: of all tensors, and of the largest."""

    total: int
    largest: int


def check_training_fits(settings: VQVAERun | PriorRun, device: torch.device) -> None:
    """Raise ResourceError when a training needs more memory than is free, naming the option that needs most of it."""
    model, training = settings.model, settings.training
    needed = training_memory(model, training, device)
    if needed <= free_memory(device):
        return
    lesser = _with_defaults(model, training, device)
    least = min(lesser, key=lambda name: lesser[name], default="")
    remedy = "choose a smaller --batch-size, more --micro-batches or a smaller --image-size"
    if least and lesser[least] < 0.9 * needed:
        remedy = f"choose a smaller {least}: with the default it would be {in_words(lesser[least])}"
    check_memory(device, needed, "this training", remedy)
    raise ResourceError(f"this training takes about {in_words(needed)} of memory; {remedy}")  # freed since


def _with_defaults(model: Model, training: TrainingConfig, device: torch.device) -> dict[str, int]:
    """The memory with each of the larger options, one at a time, at its default."""
    names = _SIZES if isinstance(model, VQVAEConfig) else _SIZES_OF_PRIORS
    defaults = VQVAEConfig().resolved() if isinstance(model, VQVAEConfig) else PriorConfig()
    found = {}
    for name in names:
        default = getattr(defaults, name)
        if getattr(model, name) > default:
            try:
                smaller = replace(model, **{name: default})
            except ValueError:  # the others do not fit it
                continue
            found[f"--{name.replace('_', '-')} ({getattr(model, name):,})"] = training_memory(smaller, training, device)
    usual = TrainingConfig().batch_size
    if training.batch_size > usual:
        fewer = replace(training, batch_size=usual, micro_batches=1)
        found[f"--batch-size ({training.batch_size:,})"] = training_memory(model, fewer, device)
    return found


def training_memory(model: Model, training: TrainingConfig, device: torch.device) -> int:
    """Bytes a process for weights, gradients, AdamW's two moments, the average, and a micro-batch's activations.

    In bfloat16 all activations count half, which makes it a little less than is needed; but for priors with attention,
    which keep most of theirs in float32.
    """
    tensors, few, more = _probed(_with_distinct_shapes(model))
    micro_batch = training.batch_size // (training.micro_batches or 1)
    halved = training.precision == "bfloat16" and not (isinstance(model, PriorConfig) and model.prior != "pixelcnn")
    return weight_bytes(tensors, training) + activations(few, more, micro_batch, device) // (2 if halved else 1)


@lru_cache(maxsize=_REMEMBERED)
def _probed(model: Model) -> tuple[int, Kept, Kept]:
    """Bytes of parameters and buffers, and what forward passes of `PROBED` images keep."""
    with torch.device("meta"):
        task = _task(model)
        few, more = (saved_bytes(task, _batch(model, images), _attention_weights(model, images)) for images in PROBED)
    return tensor_bytes(task), few, more


@lru_cache(maxsize=_REMEMBERED)
def multiply_adds(model: Model) -> int:
    """Multiplications with an addition in one forward pass of an image or a map, in convolutions and matrix products.

    The backward pass takes about twice as many.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _task(model).eval()(_batch(model, 1), 0.0)
    return counter.get_total_flops() // 2


def activations(few: Kept, more: Kept, micro_batch: int, device: torch.device) -> int:
    """Bytes that a micro-batch takes, from what `PROBED` images keep: some do not depend on how many there are."""
    fewer, greater = PROBED

    def extrapolated(first: int, second: int) -> int:
        per_image = (second - first) // (greater - fewer)
        return max(0, first - fewer * per_image) + per_image * micro_batch

    total, largest = (extrapolated(*bytes_kept) for bytes_kept in zip(few, more, strict=True))
    return int((HEAP if device.type == "cpu" else 1) * total) + WORKING * largest


def tensor_bytes(task: torch.nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*task.parameters(), *task.buffers()))


def weight_bytes(tensors: int, training: TrainingConfig) -> int:
    """Bytes of parameters, with gradients, two moments and the average; and of buffers, with the sums of a step."""
    return (5 if training.average_decay else 4) * tensors


def _task(model: Model) -> torch.nn.Module:
    """The network with what its training needs, on the current device."""
    return VQVAETask(VQVAE(model)) if isinstance(model, VQVAEConfig) else PriorTask(make_prior(model))


def _batch(model: Model, n: int) -> Tensor | CodeBatch:
    """So many images or maps, on the current device."""
    if isinstance(model, VQVAEConfig):
        return torch.zeros((n, model.channels, model.height, model.width), dtype=torch.uint8)
    codes = torch.zeros((n, model.height, model.width), dtype=torch.int64)
    labels = torch.zeros(n, dtype=torch.int64) if model.num_classes else None
    return CodeBatch(codes, labels, [codes for _ in model.coarser])


def _with_distinct_shapes(model: Model) -> Model:
    """A model whose attention weights have a shape of their own: with maps a column wider, where it must be."""
    if isinstance(model, VQVAEConfig) or model.prior == "pixelcnn":
        return model
    others = {model.hidden // model.heads, *((model.hidden, 4 * model.hidden) if model.heads == 1 else ())}
    return replace(model, width=model.width + 1) if model.positions in others else model


def _attention_weights(model: Model, n: int) -> tuple[int, int, int]:
    """The shape of the attention weights of n maps."""
    return (0, 0, 0) if isinstance(model, VQVAEConfig) else (n * model.heads, model.positions, model.positions)


def saved_bytes(task: torch.nn.Module, batch: object, left_out: tuple[int, int, int] = (0, 0, 0)) -> Kept:
    """What a forward pass keeps for the backward pass, weights not counted.

    Nor tensors of the shape `left_out`, or views of them by image and head: attention weights, which only the kernel of
    the meta device keeps.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in task.parameters()}
    kept: dict[int, int] = {}  # by storage

    def count(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights and not (tensor.shape[-2:] == left_out[1:] and tensor.numel() == math.prod(left_out)):
            kept[key] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = task(batch, 0.0)
    del output
    return Kept(sum(kept.values()), max(kept.values(), default=0))
