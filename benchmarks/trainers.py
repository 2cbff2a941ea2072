"""Images, trainers and devices that several benchmarks have in common."""

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Never, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.data import DataConfig
from pipeline.config.options import Options, build
from pipeline.config.presets import PRESETS, PresetName
from pipeline.config.training import TrainingConfig
from pipeline.data.codes.maps import CodeMaps
from pipeline.data.image_set import ImageSet, from_array
from pipeline.data.splits import pixel_variance, split
from pipeline.reporting import Silent
from pipeline.storage import JsonObject
from pipeline.training.inputs.batches import CodeBatches, ImageBatches
from pipeline.training.launch import fit_to_processes, seeded_weights
from pipeline.training.loop.trainer import Trainer
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage1_vqvae.bottlenecks import Statistics
from stage2_prior import CodeBatch, PriorConfig, PriorTask, make_prior

ImageTrainer: TypeAlias = Trainer[Tensor, Statistics]
CodeTrainer: TypeAlias = Trainer[CodeBatch, Never]


class StopError(Exception):
    """Enough steps were done."""


class Until(Silent):
    """Ends a training after some steps; the schedules are those of the whole run."""

    def __init__(self, last: int) -> None:
        self.last = last

    def steps(self, steps: range, description: str) -> Iterator[int]:
        """The first steps only."""
        yield from (step for step in steps if step < self.last)
        if self.last < steps.stop:
            raise StopError


def smooth_images(side: int, n: int = 256) -> UInt8[np.ndarray, "n 3 side side"]:
    """Random colours on a grid of 8x8, with bicubic values between."""
    colours = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [F.interpolate(part, (side, side), mode="bicubic") for part in torch.split(colours, 16)]
    return np.concatenate([(255 * part.clamp(0, 1)).round().byte().numpy() for part in batches])


def image_set_of(side: int, n: int = 256) -> ImageSet:
    """These images, as a training takes them."""
    return from_array(smooth_images(side, n), None, (), DataConfig())


def image_trainer(
    model: VQVAEConfig, training: TrainingConfig, images: ImageSet, accelerator: Accelerator, folder: Path
) -> ImageTrainer:
    """A trainer of stage 1, as `gen train-vqvae` makes it."""
    parts = split(len(images.images), DataConfig(), 0)
    with seeded_weights(0):
        task = VQVAETask(VQVAE(model, pixel_variance(images, parts.train)))
    return Trainer(
        task=task,
        data=ImageBatches(images, parts, False, 0),
        config=training,
        accelerator=accelerator,
        folder=folder,
        reporter=Silent(),
        preview=lambda _: None,
    )


def code_trainer(model: PriorConfig, training: TrainingConfig, accelerator: Accelerator, folder: Path) -> CodeTrainer:
    """A trainer of stage 2, as `gen train-prior` makes it, on random codes."""
    shape, noise = (model.height, model.width), torch.Generator().manual_seed(0)
    train, validation = (
        CodeMaps((torch.randint(model.num_codes, (n, *shape), generator=noise).to(torch.int16),), None)
        for n in (256, 32)
    )
    with seeded_weights(0):
        task = PriorTask(make_prior(model))
    return Trainer(
        task=task,
        data=CodeBatches(train, validation, 0, model.num_codes, 0),
        config=training,
        accelerator=accelerator,
        folder=folder,
        reporter=Silent(),
        preview=lambda _: None,
    )


def trainer_of(
    stage: int, preset: PresetName, side: int, options: Options, accelerator: Accelerator, folder: Path
) -> ImageTrainer | CodeTrainer:
    """A started trainer of a stage at the size of a preset, with `options` of the training in place of the preset's:
    on images of this side, or on the maps that such images become."""
    asked = {"steps": 10**6, "warmup_steps": 0, **options}
    of_images = {**PRESETS[preset].vqvae, **asked}
    model, training = build(of_images, VQVAEConfig, TrainingConfig, derived={"height": side, "width": side})
    model = model.resolved()
    trainer: ImageTrainer | CodeTrainer
    if stage == 1:
        settled = fit_to_processes(training, accelerator)
        trainer = image_trainer(model, settled, image_set_of(side), accelerator, folder)
    else:
        [(height, width)] = model.grids
        maps = {"height": height, "width": width, "num_codes": model.num_codes}
        of_codes = {**PRESETS[preset].defaults("prior", {}), **asked}
        prior, training = build(of_codes, PriorConfig, TrainingConfig, derived=maps)
        trainer = code_trainer(prior, fit_to_processes(training, accelerator), accelerator, folder)
    trainer.start()
    return trainer


def finish(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def origin(device: torch.device) -> JsonObject:
    """Where, when and with what a figure was measured."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    root = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    versions = {"torch": torch.__version__, "commit": found.stdout.strip() or "unknown"}
    return {"device": named, **versions, "at": datetime.now(UTC).isoformat(timespec="seconds")}
