"""Classifier-free guidance in whole runs."""

from pathlib import Path

import pytest
import torch

from pipeline import UsageError, generate, load, train_prior
from stage2_prior import SamplingOptions
from tests.tiny import TINY_PRIOR, shapes


def test_a_run_is_drawn_with_guidance(trained: Path) -> None:
    plain, guided = (generate(trained, 8, label=1, guidance=scale, precision="float64") for scale in (1.0, 30.0))
    again = generate(trained, 8, label=1, guidance=30.0, batch_size=3, precision="float64")
    assert torch.equal(guided.codes[0], again.codes[0])
    assert not torch.equal(plain.codes[0], guided.codes[0])
    with pytest.raises(UsageError, match=r"--guidance: .*got -1"):
        generate(trained, 1, guidance=-1.0)


def test_guidance_is_refused_where_labels_were_never_hidden(trained: Path, tmp_path: Path) -> None:
    images, targets = shapes()
    options = {**TINY_PRIOR, "steps": 2, "label_dropout": 0.0}
    train_prior(trained, out=tmp_path / "other", images=images, targets=targets, **options)
    with pytest.raises(UsageError, match="can do without a class"):
        load(tmp_path / "other").sample(1, options=SamplingOptions(guidance=2.0))
