"""The priors alone on binary MNIST, 28x28 pixels of two codes, beside a plain implementation of the same size.

    python -m benchmarks.binary_mnist mnist.zip [--minutes 8] [--hidden 48] [--layers 8]

Images are binarised once at 0.5; a tenth is held out by a fixed seed. Prints one JSON line a network: nats an image,
held out, after so many minutes of training. Published values (README of the pytorch-generative repository), gated
PixelCNN 81.5 and PixelSNAIL 78.6, are of 60,000 images, each pixel drawn anew as a coin of its grey value: that costs
nats which a threshold does not, so they are a landmark and no comparison. The plain implementation is the usual one:
masked windows, float32, Adam at 1e-3, the last weights; ours has a schedule, averaged weights, and bfloat16 where the
processor has it.
"""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import processes
from pipeline.batches import CodeBatches
from pipeline.budget import steps_within
from pipeline.codes import CodeMaps
from pipeline.data import DataConfig, load_images, split
from pipeline.launch import seeded_weights
from pipeline.reporting import Silent
from pipeline.settings import TrainingConfig
from pipeline.training import Trainer
from stage2_prior import PriorConfig, PriorTask, make_prior


def binarised(path: str) -> tuple[Tensor, Tensor]:
    """Training and held-out maps (n, 28, 28) of 0 and 1."""
    images = load_images(DataConfig(data=path)).images[:, 0]
    parts = split(len(images), 0.1, seed=0)
    codes = torch.from_numpy((images > 127).astype(np.int16))
    return codes[parts.train], codes[parts.held_out]


def ours(train: Tensor, held_out: Tensor, minutes: float, **options: Any) -> dict[str, Any]:
    """One of our priors, trained by the loop that `gen train-prior` uses."""
    config = PriorConfig(height=28, width=28, num_codes=2, dropout=0.0, code_dropout=0.0, **options)
    settings = TrainingConfig(
        max_minutes=minutes, batch_size=32, learning_rate=2e-3, average_decay=0.999, precision="auto", evaluations=2
    )
    accelerator = processes.start()
    settings = TrainingConfig(
        **{**vars(settings), "precision": processes.resolve_precision("auto", accelerator.device)}
    )
    started = time.perf_counter()
    with seeded_weights(0):
        task = PriorTask(make_prior(config))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            task=task,
            data=CodeBatches(CodeMaps((train,), None), CodeMaps((held_out,), None), 0, 2, 0),
            config=settings,
            accelerator=accelerator,
            folder=Path(folder),
            reporter=Silent(),
            metric="nats",
            preview=lambda _: None,
        )
        trainer.start()
        steps = steps_within(trainer, 60 * minutes - (time.perf_counter() - started))
        trainer.set_steps(TrainingConfig(**{**vars(settings), "steps": steps}))
        trainer.run()
        best = trainer.state.progress.best
    return {
        "network": options["prior"],
        "nats_an_image": best["nats"] * 28 * 28,
        "parameters": sum(p.numel() for p in task.parameters()),
        "steps": steps,
        "minutes": (time.perf_counter() - started) / 60,
    }


class MaskedConv(nn.Conv2d):
    """The usual way: a full window, whose later taps are multiplied by 0 in every pass."""

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


def plain(train: Tensor, held_out: Tensor, minutes: float, hidden: int, layers: int) -> dict[str, Any]:
    """The usual loop: Adam at 1e-3, batches of 32, as many steps as the time allows; evaluation is not counted."""
    torch.manual_seed(0)
    network, started, steps = PlainPixelCNN(hidden, layers), time.perf_counter(), 0
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    while time.perf_counter() - started < 60 * minutes:
        for chosen in torch.split(torch.randperm(len(train)), 32):
            codes = train[chosen].long()
            loss = F.cross_entropy(network(codes), codes)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
            if time.perf_counter() - started > 60 * minutes:
                break
    trained = (time.perf_counter() - started) / 60
    return {
        "network": "plain gated PixelCNN",
        "nats_an_image": _evaluate(network, held_out),
        "parameters": sum(p.numel() for p in network.parameters()) - _masked(network),
        "steps": steps,
        "minutes": trained,
    }


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
    train, held_out = binarised(data)
    size = {"hidden": hidden, "layers": layers}
    print(json.dumps({"uniform_nats": 784 * math.log(2), "train": len(train), "held_out": len(held_out), **size}))
    for name in networks.split(","):
        of_plain = name == "plain"
        made = (
            plain(train, held_out, minutes, **size) if of_plain else ours(train, held_out, minutes, prior=name, **size)
        )
        print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
