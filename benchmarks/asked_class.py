"""Do samples show the class that was asked for? A classifier trained on the real images judges.

    python -m benchmarks.asked_class RUN... DATA [--n 1000] [--guidance 1,2] [--temperature 1]

Prints one JSON line per run and guidance: the classifier's accuracy on real images that it was not trained on, the
fraction of n samples, equally many per class, in which it sees the class that was asked for, and how varied they are:
the mean variance of their pixels within a class, over that of real images.
"""

import json
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import Model, SamplingOptions, load
from pipeline.config.data import DataConfig
from pipeline.data import pixels
from pipeline.data.loading import load_images
from pipeline.data.splits import split


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


def variety(images: Tensor) -> float:
    """Mean variance of the pixels of images of one class."""
    return float(images.double().var(0).mean())


class Measured(NamedTuple):
    """The fraction of samples that show the class asked for, of all and of each class; their variety; ten per class."""

    asked_class: float
    per_class: dict[str, float]
    variety: float
    shown: Tensor


def measure(model: Model, network: nn.Sequential, n: int, seed: int, options: SamplingOptions) -> Measured:
    """Draw n samples and classify them."""
    names = model.priors[0].config.class_names
    # A seed per class: image i of a seed uses the same noise whatever its class.
    drawn = [
        model.sample(n // len(names), seed=seed + label, label=label, options=options).images
        for label in range(len(names))
    ]
    hits = [predictions(network, images) == label for label, images in enumerate(drawn)]
    per_class = {name: round(float(h.double().mean()), 4) for name, h in zip(names, hits, strict=True)}
    shown = torch.cat([images[:10] for images in drawn])
    return Measured(float(torch.cat(hits).double().mean()), per_class, sum(map(variety, drawn)) / len(names), shown)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--n", default=1000, show_default=True)
@click.option("--epochs", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--guidance", default="1", show_default=True, help="Guidance scales, separated by commas.")
@click.option("--temperature", default=1.0, show_default=True)
@click.option("--show", type=click.Path(path_type=Path), help="Write a grid of 10 samples per class here.")
def main(
    runs: tuple[Path, ...],
    data: str,
    n: int,
    epochs: int,
    seed: int,
    guidance: str,
    temperature: float,
    show: Path | None,
) -> None:
    """Measure and print."""
    torch.manual_seed(seed)
    config = DataConfig(data=data, validation=0.1, test=0.0)
    image_set = load_images(config)
    assert image_set.labels is not None
    parts = split(len(image_set.images), config, seed=12345)
    images, labels = torch.from_numpy(image_set.images), torch.from_numpy(image_set.labels)
    network = classifier(image_set.shape[0], len(image_set.class_names)).to(memory_format=torch.channels_last)
    train(network, images[parts.train], labels[parts.train], epochs)
    network.eval()
    real_images, real_labels = images[parts.validation], labels[parts.validation]
    accuracy = float((predictions(network, real_images) == real_labels).double().mean())
    classes = range(len(image_set.class_names))
    real_variety = sum(variety(real_images[real_labels == label]) for label in classes) / len(classes)
    for run in runs:
        model = load(run)
        for scale in map(float, guidance.split(",")):
            found = measure(model, network, n, seed, SamplingOptions(guidance=scale, temperature=temperature))
            drawn = {"run": run.name, "n": n, "seed": seed, "guidance": scale, "temperature": temperature}
            judged = {"classifier_on_real": round(accuracy, 4), "asked_class": found.asked_class}
            varied = {"variety": round(found.variety / real_variety, 3), "per_class": found.per_class}
            print(json.dumps({**drawn, **judged, **varied}))
            if show:
                several = f"-{run.name}-{scale:g}" if len(runs) > 1 or "," in guidance else ""
                pixels.grid(found.shown.numpy(), 10).save(show.with_stem(show.stem + several))


if __name__ == "__main__":
    main()
