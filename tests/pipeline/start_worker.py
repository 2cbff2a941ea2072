"""What two processes do for `tests.pipeline.worker`: start from different weights, and evaluate what they have."""

import json
from pathlib import Path

import torch

from pipeline.storage import save_tensors
from tests.pipeline.training.test_step import of_images


def start_alike(folder: Path) -> None:
    """Write the state after the start and the evaluation of each process, by its number."""
    folder.mkdir(exist_ok=True)
    trainer = of_images(folder, {"likelihood": "gaussian"}, micro_batches=2)
    rank = trainer.accelerator.process_index
    with torch.no_grad():
        for parameter in trainer.module.parameters():
            parameter.mul_(1 + 0.1 * rank)  # as on another machine, where sums round differently, but more so
    trainer.start()
    save_tensors(folder / f"{rank}.safetensors", trainer.module.state_dict())
    (folder / f"{rank}.json").write_text(json.dumps(trainer.evaluate().named()))
