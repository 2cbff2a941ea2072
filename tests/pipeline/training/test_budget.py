"""What is measured by the clock or counted in bytes, with a clock that is set by hand."""

from pathlib import Path

import pytest
import torch

from pipeline.training.cost import budget
from pipeline.training.loop.log import SKIPPED, Log
from tests.pipeline.training.test_step import of_images


class Clock:
    """Stands in for the module `time`: each look at it is the next of these seconds."""

    def __init__(self, *seconds: float) -> None:
        self.perf_counter = iter(seconds).__next__


def test_steps_within_a_time_are_counted_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = of_images(tmp_path, evaluations=5)
    # From the start; 16 steps of half a second; an evaluation of 3 s; a picture of 1 s; and the end, 30 s later.
    monkeypatch.setattr(budget, "time", Clock(100, 110, 118, 118, 121, 121, 122, 130))
    steps = int(0.97 * (100 - 30 - 5 * (3 + 1)) / 0.5)
    assert budget.steps_within(trainer, 100.0) == (steps, 8 / 0.5)


def test_the_memory_of_a_training_is_weights_gradients_moments_average_and_what_is_kept_for_backward(
    tmp_path: Path,
) -> None:
    plain, averaged, cut = (
        budget.expected_memory(of_images(tmp_path, **options))
        for options in ({}, {"average_decay": 0.9}, {"micro_batches": 4})
    )
    module = of_images(tmp_path).module
    weights = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    assert averaged - plain == weights
    assert plain - 4 * weights == pytest.approx(4 * (cut - 4 * weights), rel=1e-3)


def test_a_line_of_the_log_has_the_rate_of_its_step_and_the_means_since_the_line_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.loop.log.time", Clock(10, 14, 20, 40, 50))
    trainer = of_images(tmp_path, learning_rate=0.5, warmup_steps=4)
    log = Log(trainer.accelerator, trainer.reporter, tmp_path, trainer.config, trainer.state.record)
    lines: list[dict[str, float]] = []
    log.line = lambda values: lines.append(dict(values))  # type: ignore[method-assign]
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        norm = torch.tensor(2 * loss)
        log.add({"loss": torch.tensor(loss), "gradient_norm": norm, SKIPPED: torch.tensor(False)})
        trainer.state.record.step = step + 1
        if step != 1:
            log.write()
    assert [line["loss"] for line in lines] == [1.0, 4.0] and [line["gradient_norm"] for line in lines] == [2.0, 8.0]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.125, 0.375], rel=1e-12)
    assert [line["images_per_second"] for line in lines] == pytest.approx([8 / 4, 2 * 8 / 20], rel=1e-12)
