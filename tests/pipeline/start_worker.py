"""What two processes do in test_processes.py: start a training from different weights, and evaluate what they have.

accelerate launch ... -m tests.pipeline.start_worker FOLDER
"""

import json
import sys
from pathlib import Path

import torch

from pipeline import processes
from pipeline.storage import save_tensors
from tests.pipeline.training.test_step import of_images


def work(folder: Path) -> None:
    """Write the state after the start and the evaluation of each process, by its number."""
    trainer = of_images(folder, {"likelihood": "gaussian"}, micro_batches=2)
    rank = trainer.accelerator.process_index
    with torch.no_grad():
        for parameter in trainer.module.parameters():
            parameter.mul_(1 + 0.1 * rank)  # as on another machine, where sums round differently, but more so
    trainer.start()
    save_tensors(folder / f"{rank}.safetensors", trainer.module.state_dict())
    (folder / f"{rank}.json").write_text(json.dumps(trainer.evaluate().named()))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    processes.stop()
