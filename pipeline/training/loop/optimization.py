"""The optimizer's part of a step: gradients clipped, and no effect at all where one of them is no number.

Whether a step counts is a tensor on the device, `counts`: the loop never waits for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.config.training import TrainingConfig
from pipeline.training.loop.task import Batch, ReportedT, Task

_RATE = "rate"  # of a group of parameters, over the learning rate of the training


class AdamW(torch.optim.AdamW):
    """The fused AdamW, whose step changes nothing where `found_inf` is 1: what torch's GradScaler makes use of."""

    found_inf: Float[Tensor, ""]


def make_optimizer(task: Task[Batch, ReportedT], module: nn.Module, config: TrainingConfig) -> AdamW:
    """AdamW with weight decay on weights, but not on biases nor on what the task exempts.

    The discriminator has a learning rate of its own (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update
    Rule Converge to a Local Nash Equilibrium").
    """
    spared = {id(parameter) for parameter in task.no_weight_decay}
    theirs = {id(parameter) for parameter in task.discriminator_parameters}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        decay = 0.0 if parameter.ndim < 2 or id(parameter) in spared else config.weight_decay
        rate = task.discriminator_rate if id(parameter) in theirs else 1.0
        groups.setdefault((decay, rate), []).append(parameter)
    alike = [{"params": own, "weight_decay": decay, _RATE: rate} for (decay, rate), own in groups.items()]
    return AdamW(alike, betas=(0.9, config.beta2), fused=True)


def clip_gradients(task: Task[Batch, ReportedT], module: nn.Module, largest: float) -> Float[Tensor, ""]:
    """Clip the gradient, and the discriminator's by itself: neither may throttle the other.

    Returns the norm of the former, which is no number where the discriminator's is none.
    """
    discriminator = task.discriminator_parameters
    theirs = {id(parameter) for parameter in discriminator}
    discriminator_norm = torch.nn.utils.clip_grad_norm_(discriminator, largest)
    own = [parameter for parameter in module.parameters() if id(parameter) not in theirs]
    return torch.nn.utils.clip_grad_norm_(own, largest) + 0 * discriminator_norm


def take_step(optimizer: AdamW, learning_rate: float, counts: Bool[Tensor, ""]) -> None:
    """Change weights and moments, if the step `counts`; the gradients are spent in any case."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[_RATE]
    optimizer.found_inf = (~counts).float()
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def unchanged_unless(counts: Bool[Tensor, ""], tensors: Sequence[Tensor]) -> Iterator[None]:
    """What is done to these tensors meanwhile is undone, unless the step `counts`."""
    before = [tensor.detach().clone() for tensor in tensors]
    yield
    with torch.no_grad():
        for tensor, earlier in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(counts, tensor, earlier))


@torch.no_grad()
def move_average(average: AveragedModel, module: nn.Module, decay: float, step: int, counts: Bool[Tensor, ""]) -> None:
    """Move averaged weights towards the current ones, if the step `counts`; buffers are copied.

    The decay grows with `step`, the number of steps before this one, from 2/11 to `decay`, so that the first weights
    are soon forgotten. (The average counts them too, but on the device, which a step does not wait for.)
    """
    rate = 1 - min(decay, (1 + step) / (10 + step)) if step else 1.0
    averages = list[Tensor](average.module.parameters())
    differences = torch._foreach_sub(list[Tensor](module.parameters()), averages)
    torch._foreach_mul_(differences, counts * rate)
    torch._foreach_add_(averages, differences)
    for own, current in zip(average.module.buffers(), module.buffers(), strict=True):
        own.copy_(current)
    average.n_averaged += 1


def clear_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, rows: Bool[Tensor, "rows"]) -> None:
    """Clear the optimizer's moments for replaced rows of a parameter."""
    for name, value in optimizer.state[parameter].items():
        if name != "step":
            value.masked_fill_(rows.reshape(-1, *[1] * (value.ndim - 1)), 0)
