"""The priors alone on binary MNIST, 28x28 pixels of two codes, beside a plain implementation of the same size.

    python -m benchmarks.binary_mnist mnist.zip [--minutes 8] [--hidden 48] [--layers 8]

Images are binarised once at 0.5; a fixed seed chooses a tenth for validation. Prints one JSON line per network: nats
per image of the validation part, after so many minutes of training. Published values (README of the pytorch-generative
repository), gated PixelCNN 81.5 and PixelSNAIL 78.6, are of 60,000 images, each pixel drawn anew with its grey value as
the probability of 1: that costs nats which a threshold does not, so they are a landmark and no comparison. The plain
implementation is the usual one: masked convolutions, float32, Adam at 1e-3, the last weights; ours has a schedule,
averaged weights, and bfloat16 where the processor has it.
"""

import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Never

import click
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import processes
from pipeline.config.data import DataConfig
from pipeline.config.options import build
from pipeline.config.training import TrainingConfig
from pipeline.data.codes.maps import CodeMaps
from pipeline.data.loading import load_images
from pipeline.data.splits import split
from pipeline.reporting import Silent
from pipeline.training.cost.budget import steps_within
from pipeline.training.inputs.batches import CodeBatches
from pipeline.training.launch import seeded_weights
from pipeline.training.loop.trainer import Trainer
from stage2_prior import CodeBatch, PriorConfig, PriorTask, make_prior

TRAINING = TrainingConfig(batch_size=32, learning_rate=2e-3, average_decay=0.999, evaluations=2)


class Result(NamedTuple):
    """A trained network; `nats_per_image` are of the validation part."""

    network: str
    nats_per_image: float
    parameters: int
    steps: int
    minutes: float


def binarised(path: str) -> tuple[Tensor, Tensor]:
    """Maps (n, 28, 28) of 0 and 1, for training and for validation."""
    config = DataConfig(data=path, validation=0.1, test=0.0)
    images = load_images(config).images[:, 0]
    parts = split(len(images), config, seed=0)
    codes = torch.from_numpy((images > 127).astype(np.int16))
    return codes[parts.train], codes[parts.validation]


def ours(prior: str, train: Tensor, validation: Tensor, minutes: float, hidden: int, layers: int) -> Result:
    """One of our priors, trained by the loop that `gen train-prior` uses."""
    options = {"prior": prior, "hidden": hidden, "layers": layers, "dropout": 0.0, "code_dropout": 0.0}
    (config,) = build(options, PriorConfig, derived={"height": 28, "width": 28, "num_codes": 2})
    started = time.perf_counter()
    with seeded_weights(0):
        task = PriorTask(make_prior(config))
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(task, train, validation, Path(folder))
        trainer.start()
        steps = steps_within(trainer, 60 * minutes - (time.perf_counter() - started)).steps
        trainer.set_steps(replace(trainer.config, steps=steps))
        trainer.run()
        best = trainer.state.record.best
    assert best is not None
    parameters = sum(p.numel() for p in task.parameters())
    return Result(prior, best.values["nats"] * 28 * 28, parameters, steps, (time.perf_counter() - started) / 60)


def _trainer(task: PriorTask, train: Tensor, validation: Tensor, folder: Path) -> Trainer[CodeBatch, Never]:
    accelerator = processes.start()
    return Trainer(
        task=task,
        data=CodeBatches(CodeMaps((train,), None), CodeMaps((validation,), None), 0, 2, 0),
        config=replace(TRAINING, precision=processes.resolve_precision("auto", accelerator.device)),
        accelerator=accelerator,
        folder=folder,
        reporter=Silent(),
        preview=lambda _: None,
    )


class MaskedConv(nn.Conv2d):
    """The usual way: a full kernel, whose later taps are multiplied by 0 in every pass."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stack: Literal["vertical", "horizontal"], first: bool
    ) -> None:
        window = (size, size) if stack == "vertical" else (1, size)
        super().__init__(inputs, outputs, window, padding=(window[0] // 2, size // 2))
        self.mask: Tensor
        mask = torch.ones(window)
        centre = size // 2
        if stack == "vertical":
            mask[centre + (0 if first else 1) :] = 0
        else:
            mask[0, centre + (0 if first else 1) :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def _masked(network: nn.Module) -> int:
    """Weights that are multiplied by 0."""
    masked = [module for module in network.modules() if isinstance(module, MaskedConv)]
    return sum(int((conv.mask == 0).sum()) * conv.in_channels * conv.out_channels for conv in masked)


class PlainLayer(nn.Module):
    """A gated layer of both stacks, as figure 2 of van den Oord et al. 2016 draws it."""

    def __init__(self, hidden: int, size: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.vertical = MaskedConv(hidden, 2 * hidden, size, "vertical", first)
        self.horizontal = MaskedConv(hidden, 2 * hidden, size, "horizontal", first)
        self.link = nn.Conv2d(2 * hidden, 2 * hidden, 1)
        self.residual = nn.Conv2d(hidden, hidden, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (activations := self.vertical(v)).chunk(2, 1)
        c, d = (self.horizontal(h) + self.link(activations)).chunk(2, 1)
        out_v, out_h = torch.tanh(a) * torch.sigmoid(b), self.residual(torch.tanh(c) * torch.sigmoid(d))
        return (out_v, out_h) if self.first else (out_v, h + out_h)


class PlainPixelCNN(nn.Module):
    """A gated PixelCNN with masked convolutions, NCHW, float32."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, hidden)
        self.layers = nn.ModuleList(PlainLayer(hidden, 7 if i == 0 else 3, i == 0) for i in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, 256, 1), nn.ReLU(), nn.Conv2d(256, 2, 1))

    def forward(self, codes: Tensor) -> Tensor:
        v = h = rearrange(self.embedding(codes), "n h w c -> n c h w").contiguous()
        for layer in self.layers:
            v, h = layer(v, h)
        logits: Tensor = self.head(h)
        return logits


def plain(train: Tensor, validation: Tensor, minutes: float, hidden: int, layers: int) -> Result:
    """The usual loop: Adam at 1e-3, batches of 32, as many steps as the time allows; evaluation is not counted."""
    torch.manual_seed(0)
    network, started, steps = PlainPixelCNN(hidden, layers), time.perf_counter(), 0
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    while time.perf_counter() - started < 60 * minutes:
        for chosen in torch.split(torch.randperm(len(train)), 32):
            codes = train[chosen].long()
            loss = F.cross_entropy(network(codes), codes)
            optimizer.zero_grad()
            torch.autograd.backward([loss])
            optimizer.step()
            steps += 1
            if time.perf_counter() - started > 60 * minutes:
                break
    trained = (time.perf_counter() - started) / 60
    parameters = sum(p.numel() for p in network.parameters()) - _masked(network)
    return Result("plain gated PixelCNN", _evaluate(network, validation), parameters, steps, trained)


@torch.no_grad()
def _evaluate(network: nn.Module, codes: Tensor) -> float:
    parts = [F.cross_entropy(network(part.long()), part.long(), reduction="sum") for part in torch.split(codes, 64)]
    return float(torch.stack(parts).sum()) / len(codes)


@click.command()
@click.argument("data")
@click.option("--minutes", default=8.0, show_default=True)
@click.option("--hidden", default=48, show_default=True)
@click.option("--layers", default=8, show_default=True)
@click.option("--networks", default="plain,pixelcnn,pixelsnail", show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(data: str, minutes: float, hidden: int, layers: int, networks: str, threads: int) -> None:
    """Train one network after the other, and print what they reach."""
    torch.set_num_threads(threads)
    train, validation = binarised(data)
    sizes = {"train": len(train), "validation": len(validation), "hidden": hidden, "layers": layers}
    print(json.dumps({"uniform_nats": 784 * math.log(2), **sizes}))
    for name in networks.split(","):
        if name == "plain":
            result = plain(train, validation, minutes, hidden, layers)
        else:
            result = ours(name, train, validation, minutes, hidden, layers)
        print(json.dumps(result._asdict()), flush=True)


if __name__ == "__main__":
    main()
