"""Is what a device computes what it should be? The part `correctness` of benchmarks/gpu.py.

A run of both stages is trained on the device with `--deterministic`, cut off, and gone on with; codes and draws of the
run are compared with those of the CPU, of a forward pass, and of other batches.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.invariance import differences
from benchmarks.trainers import StopError, Until, smooth_images
from pipeline import Model, load, train_prior, train_vqvae
from pipeline.config.presets import PresetName
from pipeline.config.sampling import FloatPrecision
from pipeline.reporting import Silent
from pipeline.runs.layout import CHECKPOINTS, RunFolder
from pipeline.sampling.labels import labels_of
from pipeline.sampling.samplers import CodeSampler
from pipeline.storage import JsonObject, load_tensors
from pipeline.training.loop.checkpoint import list_checkpoints
from stage2_prior import SamplingOptions, code_nats
from stage2_prior.sampling import noise


class Sizes(NamedTuple):
    """How much is compared."""

    preset: PresetName
    side: int
    images: int
    steps: int
    drawn: int
    batch_sizes: tuple[int, ...]
    precisions: tuple[FloatPrecision, ...]


FULL = Sizes("base", 32, 4096, 300, 1024, (1, 7, 64, 256, 1024), ("float32", "tf32"))
TOY = Sizes("tiny", 8, 40, 12, 6, (1, 4), ("float32",))


def correctness(sizes: Sizes, folder: Path) -> Iterator[JsonObject]:
    """One line for each comparison."""
    images, run = smooth_images(sizes.side, sizes.images), RunFolder(folder / "whole")
    yield from _resumed(sizes, images, run, folder / "parts")
    for precision in sizes.precisions:
        yield {"check": "codes of CPU and device", "precision": precision, **_codes(run, images, precision)}
        model = load(run.path, precision=precision)
        yield {"check": "draws and a forward pass", "precision": precision, **against_forward(model, sizes.drawn)}
        batches = differences(run.path, sizes.drawn, sizes.batch_sizes, precision)
        yield {"check": "draws over batch sizes", "precision": precision, "sizes": list(sizes.batch_sizes), **batches}


def _resumed(sizes: Sizes, images: np.ndarray, run: RunFolder, parts: Path) -> Iterator[JsonObject]:
    """Both stages trained without a break into `run`, and cut off and resumed into `parts`."""
    cut, checkpoints = Until(sizes.steps * 2 // 3), max(2, sizes.steps // 50)

    def stage1(out: Path, reporter: Silent, resume: str | None = None) -> None:
        length = {"steps": sizes.steps, "checkpoints": checkpoints, "evaluations": 1}
        train_vqvae(
            out=out,
            images=images,
            reporter=reporter,
            resume=resume,
            **({} if resume else {"preset": sizes.preset, "deterministic": True, **length}),  # type: ignore[arg-type]
        )

    def stage2(out: Path, reporter: Silent, resume: str | None = None) -> None:
        length = {"steps": sizes.steps, "checkpoints": checkpoints, "evaluations": 1, "patience": 0}
        train_prior(
            out,
            images=images,
            reporter=reporter,
            resume=resume,
            **({} if resume else {"preset": sizes.preset, "deterministic": True, "force": True, **length}),  # type: ignore[arg-type]
        )

    for number, (train, stage) in enumerate(((stage1, run.vqvae), (stage2, run.prior(0))), 1):
        train(run.path, Silent())
        if number == 2:  # with the same stage 1, and codes that have been extracted
            shutil.rmtree(parts)
            shutil.copytree(run.path, parts, ignore=shutil.ignore_patterns("prior"))
        try:
            train(parts, cut)
        except StopError:
            train(parts, Silent(), "auto")
        resumed = parts / stage.relative_to(run.path)
        yield {"check": "resumed bit for bit", "stage": number, "steps": sizes.steps, **_compared(stage, resumed)}


def _compared(whole: Path, resumed: Path) -> JsonObject:
    """Tensors of the last checkpoint of two trainings, and how many of them differ in any bit."""
    one, other = (list_checkpoints(stage / CHECKPOINTS)[-1] for stage in (whole, resumed))
    assert one.name == other.name
    tensors = differ = 0
    for path in one.glob("*.safetensors"):
        first, second = load_tensors(path), load_tensors(other / path.name)
        tensors += len(first)
        differ += sum(not torch.equal(tensor, second[name]) for name, tensor in first.items())
    return {"tensors": tensors, "tensors_that_differ": differ}


def _codes(run: RunFolder, images: np.ndarray, precision: FloatPrecision) -> JsonObject:
    """Codes of these images on the CPU in float32, and how many are others on the device."""
    [ours], [theirs] = load(run.path, precision=precision).encode(images), load(run.path, device="cpu").encode(images)
    differ = int((ours != theirs).sum())
    return {"codes": ours.numel(), "codes_that_differ": differ, "per_million": 1e6 * differ / ours.numel()}


def against_forward(model: Model, n: int) -> JsonObject:
    """Images drawn a position at a time, and what one forward pass over the drawn codes says of them.

    `draws_that_differ`: positions at which that pass, with the same noise, would have drawn another code.
    """
    sampler = model.sampler(seed=0, options=SamplingOptions(guidance=1.0, temperature=1.0))
    assert isinstance(sampler, CodeSampler)
    [prior], indices = model.priors, np.arange(n)
    labels = labels_of(indices, None, 0, prior.config)
    drawn = sampler.sample_codes(indices, labels)
    codes, shown = drawn.codes[0].to(model.device).long(), None if labels is None else labels.to(model.device)
    with model.arithmetic(), torch.no_grad():
        log_probability = -code_nats(prior.network, codes, shown).double().sum((1, 2))
        words = noise.image_words(0, torch.from_numpy(indices).to(model.device), 0)
        again = _redrawn(prior.network(codes, shown), words)
    differ, error = int((again != codes).sum()), (log_probability.cpu() - drawn.log_probability).abs().max()
    return {
        "draws": codes.numel(),
        "draws_that_differ": differ,
        "per_million": 1e6 * differ / codes.numel(),
        "nats_per_code_off": float(error) / codes[0].numel(),
    }


def _redrawn(logits: Float[Tensor, "n k h w"], words: Int[Tensor, "n"]) -> Int[Tensor, "n h w"]:
    """What is drawn from these logits with the noise of these images, a row at a time."""
    _, num_codes, height, width = logits.shape
    rows = []
    for row in range(height):
        positions = torch.arange(row * width, (row + 1) * width, device=logits.device)
        added = noise.gumbel(words, positions, num_codes).to(logits.dtype)
        rows.append((rearrange(logits[:, :, row], "n k w -> w n k") + added).argmax(2))
    return rearrange(torch.stack(rows), "h w n -> n h w")
