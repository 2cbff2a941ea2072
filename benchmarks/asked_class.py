"""Do samples show the class that was asked for? A classifier trained on the real images answers.

    python -m benchmarks.asked_class RUN DATA [--n 1000]

Prints one JSON line: the classifier's accuracy on real images held out from it, and the fraction of n samples, at
temperature 1 and equally many a class, in which it sees the class that was asked for.
"""

import json
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import load
from pipeline.data import DataConfig, load_images, split


def classifier(channels: int, num_classes: int) -> nn.Sequential:
    """A small convolutional network with batch norm; any image size."""
    layers: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, num_classes))


def normalised(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def shifted(images: Tensor) -> Tensor:
    """The batch moved by up to two pixels."""
    offset = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((offset[0], offset[1]), (2, 3))


def train(network: nn.Sequential, images: Tensor, labels: Tensor, epochs: int, batch_size: int = 128) -> None:
    """Adam with a one-cycle learning rate."""
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(images)), batch_size)[: len(images) // batch_size]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(shifted(normalised(images[chosen])))
            loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


@torch.no_grad()
def predictions(network: nn.Sequential, images: Tensor) -> Tensor:
    """The class that the classifier sees in each image."""
    return torch.cat([network(normalised(part)).argmax(1) for part in torch.split(images, 256)])


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--n", default=1000, show_default=True)
@click.option("--epochs", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--show", type=click.Path(path_type=Path), help="Write a grid of 10 samples a class here.")
def main(run: Path, data: str, n: int, epochs: int, seed: int, show: Path | None) -> None:
    """Measure and print."""
    torch.manual_seed(seed)
    images = load_images(DataConfig(data=data))
    assert images.labels is not None
    parts = split(len(images.images), 0.1, seed=12345)
    pixels, labels = torch.from_numpy(images.images), torch.from_numpy(images.labels)
    network = classifier(images.shape[0], len(images.class_names)).to(memory_format=torch.channels_last)
    train(network, pixels[parts.train], labels[parts.train], epochs)
    network.eval()
    real = (predictions(network, pixels[parts.held_out]) == labels[parts.held_out]).double().mean()
    model = load(run)
    each = n // len(images.class_names)
    # A seed a class: image i of a seed uses the same noise whatever its class.
    drawn = [model.sample(each, seed=seed + label, label=label) for label in range(len(images.class_names))]
    hits = [predictions(network, s.images) == label for label, s in enumerate(drawn)]
    if show:
        from pipeline.images import grid

        grid(torch.cat([s.images[:10] for s in drawn]).numpy(), 10).save(show)
    per_class = {name: round(float(h.double().mean()), 4) for name, h in zip(images.class_names, hits, strict=True)}
    result = {"classifier_on_real": round(float(real), 4), "asked_class": float(torch.cat(hits).double().mean())}
    print(json.dumps({"run": run.name, "n": each * len(drawn), "seed": seed, **result, "per_class": per_class}))


if __name__ == "__main__":
    main()
