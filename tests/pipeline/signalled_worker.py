"""What two processes do at the end of `tests.pipeline.worker`: a training that signals stop twice, each sent to one."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pipeline import Silent, processes, train_vqvae
from pipeline.cli.main import main
from pipeline.training.loop import checkpoint
from pipeline.training.loop.trainer import Trainer

STEPS = 40
OPTIONS = ["--preset=tiny", f"--steps={STEPS}", "--batch-size=8", "--checkpoints=2", "--evaluations=1"]


def exit_code(run: Path, *options: str) -> int:
    """What `gen train-vqvae` exits with, on this process."""
    try:
        main(["train-vqvae", "--out", str(run), "--quiet", *options])
    except SystemExit as ended:
        assert ended.code is None or isinstance(ended.code, int)
        return ended.code or 0
    raise AssertionError("a command ends with SystemExit")


def be_signalled(folder: Path) -> None:
    """Train in one go; then with a SIGTERM in a step and a SIGHUP while the main process saves, and to the end."""
    with_preset: dict[str, Any] = {"preset": "tiny", "checkpoints": 2, "evaluations": 1}
    train_vqvae(out=folder / "whole", steps=STEPS, batch_size=8, reporter=Silent(), **with_preset)
    rank, run, outcomes, sent = PartialState().process_index, folder / "parts", [], list[int]()
    train_step, optimizer_tensors = Trainer.train_step, checkpoint.optimizer_tensors

    def in_a_step(trainer: Any, step: int) -> Any:
        if rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer, step)

    def in_a_save(*arguments: Any) -> Any:  # between two files of the checkpoint
        if not sent:  # once: a second one would act at once
            sent.append(signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
        return optimizer_tensors(*arguments)

    def note(code: int) -> None:
        outcomes.append((code, json.loads((run / "status.json").read_text())))

    setattr(Trainer, "train_step", in_a_step)  # noqa: B010 - mypy lets no method be assigned
    setattr(checkpoint, "optimizer_tensors", in_a_save if rank == 0 else optimizer_tensors)  # noqa: B010
    sent.append(signal.SIGTERM)  # by the other process: none yet while this one saves
    note(exit_code(run, *OPTIONS))
    processes.start().wait_for_everyone()
    sent.clear()
    note(exit_code(run, "--resume=auto"))
    processes.start().wait_for_everyone()
    train_vqvae(out=run, resume="auto", reporter=Silent())  # a command that ends well leaves the other process
    note(0)
    (folder / f"process-{rank}.json").write_text(json.dumps(outcomes))
