"""The memory that is said before a training, beside what it takes; and whether its loss falls.

    python -m benchmarks.memory_said [--presets photos128,photos256] [--hidden 64] [--batch-size 16] [--steps 20]

Stage 1 of presets, at reduced width and batch (none is reduced with 0), on smooth images made here. Each preset runs
in a process of its own and prints a JSON line: MiB said before the network is built (`said`: what is compared with the
memory that is free) and at the start (`banner`); MiB used, `used`: on a CPU the greatest resident memory less that
before building, on a GPU the most that torch had allocated; `ratio`, used over said at the start; `gmac` per image; the
loss, means over the first and over the last tenth of the steps.
"""

import ctypes
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import click
import psutil
import torch

from benchmarks.trainers import image_set_of, image_trainer
from pipeline import processes
from pipeline.config.options import build
from pipeline.config.presets import PRESETS, PresetName
from pipeline.config.training import TrainingConfig
from pipeline.processes import keep_freed_memory
from pipeline.training.cost.budget import expected_memory
from pipeline.training.cost.memory import multiply_adds, training_memory
from pipeline.training.launch import fit_to_processes
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask

MIB = 2**20
SIDES: dict[str, int] = {"base": 32, "photos64-cpu": 64, "photos64": 64, "photos128": 128, "photos256": 256}


def resident_bytes() -> int:
    """Resident memory before a training, with the libraries in it that the first step loads, without freed blocks."""
    network = VQVAE(VQVAEConfig(network="residual", hidden=16, num_codes=2))
    with torch.autocast("cpu", torch.bfloat16):
        output = VQVAETask(network)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    torch.autograd.backward([output.loss])
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # or the training would take them again unseen
    return int(psutil.Process().memory_info().rss)


def measured(preset: PresetName, given: dict[str, int | str], folder: Path) -> dict[str, object]:
    """The line of one preset, with what was given in place of its options."""
    side, accelerator = SIDES[preset], processes.start()
    options = {**PRESETS[preset].vqvae, **given}
    wanted, training = build(options, VQVAEConfig, TrainingConfig, derived={"height": side, "width": side})
    model = wanted.resolved()
    training = fit_to_processes(training, accelerator)
    image_set = image_set_of(side)
    said, gmac = training_memory(model, training, accelerator.device), multiply_adds(model) / 1e9
    before = resident_bytes()
    trainer = image_trainer(model, training, image_set, accelerator, folder)
    trainer.start()
    banner = expected_memory(trainer)
    losses = [float(trainer.train_step(step).metrics["loss"]) for step in range(training.steps or 0)]
    trainer.evaluate()
    tenth = max(1, len(losses) // 10)
    if trainer.device.type == "cuda":
        used = torch.cuda.max_memory_allocated(trainer.device)
    else:
        used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "preset": preset,
        "device": trainer.device.type,
        "precision": training.precision,
        "hidden": model.hidden,
        "batch_size": training.batch_size,
        "gmac": round(gmac, 3),
        "said": round(said / MIB),
        "banner": round(banner / MIB),
        "used": round(used / MIB),
        "ratio": round(used / banner, 2),
        "loss": [round(mean(losses[:tenth]), 4), round(mean(losses[-tenth:]), 4)],
    }


@click.command()
@click.option("--presets", default="photos128,photos256", show_default=True, help="Separated by commas.")
@click.option("--hidden", default=64, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--here", is_flag=True, help="One preset, in this process.")
def main(presets: str, threads: int, here: bool, **options: int | str) -> None:
    """Measure and print."""
    if not here:
        same = [f"--{name.replace('_', '-')}={value}" for name, value in {**options, "threads": threads}.items()]
        for preset in presets.split(","):
            command = [sys.executable, "-m", "benchmarks.memory_said", f"--presets={preset}", *same, "--here"]
            subprocess.run(command, check=True)
        return
    torch.set_num_threads(threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        given = {name: value for name, value in options.items() if value}
        [preset_name] = [name for name in PRESETS if name == presets]
        print(json.dumps(measured(preset_name, given, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
