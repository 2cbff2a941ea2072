"""A signal to one of two processes stops both at the same step, and costs nothing."""

import json
from pathlib import Path

import torch

from pipeline.storage import load_tensors, verify
from pipeline.training.loop.checkpoint import list_checkpoints
from tests.pipeline.signalled_worker import STEPS
from tests.pipeline.test_processes import launch


def test_a_signal_to_one_of_two_processes_stops_both_and_loses_nothing(tmp_path: Path) -> None:
    """SIGTERM to the second in its fourth step, SIGHUP to the first while it saves; then to the end."""
    result = launch("-m", "tests.pipeline.signalled_worker", str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"process-{rank}.json").read_text()) for rank in (0, 1))
    assert [code for code, _ in first] == [code for code, _ in second] == [128 + 15, 128 + 1, 0]
    reached = [(status["state"], status["exit_code"], status["step"], status["total_steps"]) for _, status in first]
    assert reached == [
        ("interrupted", 128 + 15, 10, STEPS),  # processes agree every ten steps
        ("interrupted", 128 + 1, 30, STEPS),  # the save was after step 20
        ("finished", 0, STEPS, STEPS),
    ]
    whole, parts = (list_checkpoints(tmp_path / name / "vqvae" / "checkpoints") for name in ("whole", "parts"))
    assert [path.name[-2:] for path in parts] == ["30", "40"], "the last two, as many as are kept"
    for path in parts:
        verify(path)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_tensors(whole[-1] / name), load_tensors(parts[-1] / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
