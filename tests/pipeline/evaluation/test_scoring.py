"""Bits of images under a prior, against independent sums; what is unusual."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline import CheckpointError, UsageError, load, score, train_prior, train_vqvae
from pipeline.evaluation.score import Scores, surprise_shown
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

IMAGES, TARGETS = shapes()


def test_bits_are_those_of_the_mixture_of_classes(trained: Path) -> None:
    model, images = load(trained), torch.from_numpy(IMAGES[:6])
    prior, codes = model.priors[0], model.encode(torch.from_numpy(IMAGES[:6]))[0].long()
    by_class = []
    for number, weight in enumerate(prior.config.class_weights):
        logits = prior.network(codes, torch.full((6,), number))
        nats = F.cross_entropy(logits, codes, reduction="none").double().sum((1, 2))
        by_class.append(np.log(weight) - nats)
    expected = -torch.stack(by_class).logsumexp(0) / np.log(2)
    scores = score(trained, images)
    torch.testing.assert_close(scores.bits, expected, rtol=1e-5, atol=1e-5)
    assert scores.bits_per_dim is None and len(scores) == 6


def test_surprise_adds_up_to_bits_and_starts_with_the_first_code(trained: Path) -> None:
    scores, model = score(trained, IMAGES[:5]), load(trained)
    torch.testing.assert_close(scores.surprise[0].sum((1, 2)), scores.bits)
    np.testing.assert_allclose(scores.surprise_of_pixels((8, 12)).sum((1, 2)), scores.bits.numpy(), rtol=1e-9)
    prior = model.priors[0]
    first = [prior.network(torch.zeros(1, 2, 3, dtype=torch.int64), torch.tensor([c]))[0, :, 0, 0] for c in (0, 1)]
    weights = torch.tensor(prior.config.class_weights).double()
    mixed = (torch.stack(first).double().softmax(1) * weights[:, None]).sum(0)
    codes = model.encode(torch.from_numpy(IMAGES[:5]))[0]
    torch.testing.assert_close(scores.surprise[0][:, 0, 0], -mixed[codes[:, 0, 0]].log2(), rtol=1e-5, atol=1e-5)


def test_a_known_class_counts_alone(trained: Path) -> None:
    first, second, both = (score(trained, IMAGES[:4], label=label).bits for label in ("0", "1", None))
    weights = load(trained).priors[0].config.class_weights
    torch.testing.assert_close(both, -torch.log2(weights[0] * 2**-first + weights[1] * 2**-second))
    assert not torch.equal(first, second)
    with pytest.raises(UsageError, match="no class '7'"):
        score(trained, IMAGES[:1], label="7")


def test_images_of_another_kind_cost_more(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **TINY_VQVAE, test=0.0)
    options = {**TINY_PRIOR, "steps": 150, "average_decay": 0.9, "learning_rate": 5e-3}
    train_prior(tmp_path / "run", images=IMAGES, targets=TARGETS, force=True, **options)
    usual = score(tmp_path / "run", IMAGES).bits
    unusual = score(tmp_path / "run", IMAGES[:, :, ::-1, ::-1].copy()).bits  # bright below, or on the right
    assert float((unusual[:, None] > usual[None]).double().mean()) > 0.9
    both = score(tmp_path / "run", np.concatenate([IMAGES[:6], IMAGES[:2, :, ::-1, ::-1]]))
    assert both.order()[0] in (6, 7)


def test_bits_per_dim_count_codes_and_pixels(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, **TINY_VQVAE, likelihood="discretized-logistic", levels=2,
                level_kind="residual")  # fmt: skip
    with pytest.raises(CheckpointError, match="no finished prior of level 0, 1"):
        score(run, IMAGES[:1])
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, **TINY_PRIOR)
    scores, model = score(run, IMAGES[:3]), load(run)
    torch.testing.assert_close(torch.stack([level.sum((1, 2)) for level in scores.surprise]).sum(0), scores.bits)
    nats = model.vqvae.network.pixel_nats(torch.from_numpy(IMAGES[:3]), model.encode(torch.from_numpy(IMAGES[:3])))
    assert nats is not None and scores.bits_per_dim is not None
    torch.testing.assert_close(scores.bits_per_dim, (scores.bits + nats / np.log(2)) / 96)


def test_the_bits_of_a_code_lie_on_its_own_patch_and_the_most_of_all_images_is_white() -> None:
    coarse, fine = torch.tensor([[[8.0, 0.0]], [[0.0, 16.0]]]).double(), torch.zeros(2, 2, 4, dtype=torch.float64)
    fine[0, 1, 3] = 2.0
    scores = Scores(torch.tensor([10.0, 16.0]).double(), (coarse, fine), None)
    expected = np.zeros((2, 2, 4))
    expected[0, :, :2], expected[1, :, 2:] = 8 / 4, 16 / 4
    expected[0, 1, 3] += 2
    np.testing.assert_allclose(scores.surprise_of_pixels((2, 4)), expected)
    images = torch.zeros(2, 3, 2, 4, dtype=torch.uint8)
    shown = surprise_shown(scores, images, [0, 1])
    assert shown.shape == (2, 3, 2, 4)
    assert np.array_equal(shown[:, 2], (255 * expected / 4).round().astype(np.uint8))
    assert scores.order() == [1, 0]
