"""A training step never waits for the device: nothing in it reads a scalar, or has a shape that depends on values.

Counted on the CPU, where these operations are the same. Copies of whole tensors to the CPU and back, which a CPU has
none of, are not seen. Batches are made beforehand, since on any device they are made on the CPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pipeline.training.test_step import AnyTrainer, of_codes, of_images

aten = torch.ops.aten
READING = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.item}
COUNTING = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive}
COUNTING |= {aten.repeat_interleave, aten.bincount}


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """Collects the operations that a GPU would have to finish all its work for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operation, if it is one of those, and do it."""
        by_mask = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or func.overloadpacket in READING | COUNTING:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def waits_of_a_step(trainer: AnyTrainer, monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    trainer.start()
    trainer.train_step(step - 1)  # the optimizer makes its moments
    batch = trainer.training_batch(trainer._batch_indices(step))
    monkeypatch.setattr(trainer, "training_batch", lambda _: batch)
    with Waits() as waits:
        trainer.train_step(step)
    return waits.found


@pytest.mark.parametrize(
    "model",
    [
        {"codebook_rule": "ema"},
        {"codebook_rule": "ema", "unit_codes": True},
        {"codebook_rule": "gradient", "levels": 2, "level_kind": "residual"},
        {"codebook_rule": "simvq"},
        {"objective": "sharp", "adversarial_weight": 0.1, "features": "kmeans", "frequency_weight": 1.0},
        {"bottleneck": "gumbel"},
        {"bottleneck": "fsq"},
        {"bottleneck": "gaussian", "likelihood": "discretized-logistic"},
        {"bottleneck": "mmd"},
    ],
)
def test_a_step_of_stage_1_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    assert waits_of_a_step(of_images(tmp_path, model), monkeypatch, 50) == []


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_of_a_prior_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batches: int
) -> None:
    trainer = of_codes(tmp_path, average_decay=0.99, micro_batches=micro_batches)
    assert waits_of_a_step(trainer, monkeypatch, 50) == []


def test_what_waits_is_seen() -> None:
    values = torch.arange(4.0)
    with Waits() as waits:
        assert float(values.sum()) == 6
        assert len(values[values > 1]) == 2 and len(values.nonzero()) == 3
    assert waits.found == ["aten._local_scalar_dense.default", "aten.index.Tensor", "aten.nonzero.default"]
