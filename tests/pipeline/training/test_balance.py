"""A discriminator that has won or lost is said, with what to change: both are forced here."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import train_vqvae
from pipeline.reporting import Silent
from pipeline.training.loop.balance import Balance
from pipeline.training.loop.checkpoint import StepRecord
from tests.tiny import TINY_VQVAE


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep it."""
        self.lines.append(text)


def said(tmp_path: Path, learning_rate: float) -> list[str]:
    """What a sharp training on noise says of its discriminator, which the decoder does not answer to."""
    noise = np.random.default_rng(0).integers(0, 2, (40, 1, 16, 16), np.uint8) * 255
    options = {**TINY_VQVAE, "steps": 120, "objective": "sharp", "adversarial_weight": 1e-9}
    reporter = Lines()
    train_vqvae(out=tmp_path, images=noise, reporter=reporter, **options | {"learning_rate": learning_rate})
    return [line for line in reporter.lines if "the discriminator has judged" in line]


def test_a_discriminator_of_noise_and_its_blur_wins(tmp_path: Path) -> None:
    (line, *_) = said(tmp_path, 1e-2)
    assert "% of patches rightly: it has won" in line and "a smaller --adversarial-weight" in line


def test_a_discriminator_that_learns_nothing_loses(tmp_path: Path) -> None:
    (line, *_) = said(tmp_path, 1e-12)
    assert "% of patches rightly: no better than chance" in line and "--adversarial-weight 0" in line


@pytest.mark.parametrize(("accuracy", "word"), [(0.99, "it has won"), (0.5, "no better than chance")])
def test_each_stretch_of_a_twentieth_is_said_once(accuracy: float, word: str) -> None:
    reporter, record = Lines(), StepRecord(total_steps=200)
    balance = Balance(reporter, record)
    # Five steps a line: not at full weight; a stretch; broken off; one that is too short; another.
    ramps, values = (
        [0.9] * 4 + [1.0] * 12,
        [accuracy] * 4 + [accuracy] * 4 + [0.7] + [accuracy] + [0.7] * 2 + [accuracy] * 4,
    )
    for ramp, value in zip(ramps, values, strict=True):
        record.step += 5
        balance.watch({"adversarial_ramp": ramp, "discriminator_accuracy": value}, 5)
    assert [line.partition(":")[0] for line in reporter.lines] == ["step 30", "step 70"]
    assert all(
        f"for 10 steps the discriminator has judged {100 * accuracy:.0f} % of patches rightly: {word}" in line
        for line in reporter.lines
    )


def test_of_a_training_without_a_discriminator_nothing_is_said() -> None:
    reporter, record = Lines(), StepRecord(total_steps=10, step=10)
    Balance(reporter, record).watch({"loss": 1.0}, 10)
    assert reporter.lines == []
