"""Randomness is a function of (seed, purpose, index)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.training import TrainingConfig, is_due, learning_rate
from pipeline.randomness import Purpose, batch_indices, crops, flips, generator, number, stream, views


@given(st.integers(1, 30), st.integers(1, 40))
def test_every_epoch_meets_every_item_once(population: int, batch_size: int) -> None:
    steps = -(-3 * population // batch_size)
    batches = [batch_indices(7, step, batch_size, population) for step in range(steps)]
    items = np.concatenate([p.items for p in batches])
    epochs = np.concatenate([p.epochs for p in batches])
    for epoch in range(3):
        assert sorted(items[epochs == epoch]) == list(range(population))


def test_epochs_differ_and_so_do_seeds() -> None:
    first, second, other = (batch_indices(seed, step, 50, 50).items for seed, step in ((0, 0), (0, 1), (1, 0)))
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_flips_are_a_fair_coin_of_seed_epoch_and_item() -> None:
    batches = [batch_indices(0, step, 500, 1000) for step in range(8)]
    coins = [flips(0, p, 1000) for p in batches]
    assert 0.45 < np.concatenate(coins).mean() < 0.55
    by_item = {(e, i): c for p, own in zip(batches, coins, strict=True) for i, e, c in zip(*p, own, strict=True)}
    again = batch_indices(0, 0, 4000, 1000)  # the same epochs in one batch
    assert [by_item[e, i] for i, e in zip(*again, strict=True)] == flips(0, again, 1000).tolist()
    assert not np.array_equal(flips(0, batches[0], 1000), flips(1, batches[0], 1000))


def test_views_are_a_fair_die_of_seed_epoch_and_item() -> None:
    batch = batch_indices(0, 0, 6000, 1000)
    rolled = views(0, batch, 1000, 3)
    counts = np.bincount(rolled)
    assert len(counts) == 3 and counts.min() > 1800
    again = batch_indices(0, 7, 500, 1000)  # a part of the same epochs
    by_item = {(e, i): v for i, e, v in zip(*batch, rolled, strict=True)}
    assert [by_item[e, i] for i, e in zip(*again, strict=True)] == views(0, again, 1000, 3).tolist()
    assert views(0, batch, 1000, 1).tolist() == [0] * 6000


def test_crops_are_a_fair_die_of_seed_epoch_and_item_and_none_of_views() -> None:
    batch = batch_indices(0, 0, 6000, 1000)
    cut = crops(0, batch, 1000, 3)
    counts = np.bincount(cut)
    assert len(counts) == 3 and counts.min() > 1800
    again = batch_indices(0, 7, 500, 1000)  # a part of the same epochs
    by_item = {(e, i): position for i, e, position in zip(*batch, cut, strict=True)}
    assert [by_item[e, i] for i, e in zip(*again, strict=True)] == crops(0, again, 1000, 3).tolist()
    assert not np.array_equal(cut, views(0, batch, 1000, 3)) and not np.array_equal(cut, crops(1, batch, 1000, 3))
    assert crops(0, batch, 1000, 1).tolist() == [0] * 6000


def test_numbers_differ_by_purpose_and_index() -> None:
    numbers = {number(s, p, i) for s in range(3) for p in Purpose for i in range(5)}
    assert len(numbers) == 3 * len(Purpose) * 5
    assert all(0 <= n < 2**63 for n in numbers)
    device = torch.device("cpu")
    draws = [torch.rand(3, generator=generator(1, Purpose.CODEBOOK, 2, device=device)) for _ in range(2)]
    assert torch.equal(*draws)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainingConfig(learning_rate=0.5, warmup_steps=10)
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == rates[10] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[10:])) and rates[-1] < 1e-5
    assert rates[505] == pytest.approx(0.25)
    assert learning_rate(config, 0, 5) == 0.5, "a run too short for a warm-up has none"
    constant = TrainingConfig(learning_rate=0.5, warmup_steps=10, schedule="constant")
    assert [learning_rate(constant, step, 1000) for step in (0, 9, 10, 999)] == pytest.approx([0.05, 0.5, 0.5, 0.5])


@given(st.integers(1, 20), st.integers(1, 300))
def test_what_is_done_n_times_is_done_n_times_and_at_the_end(times: int, total: int) -> None:
    due = [step for step in range(1, total + 1) if is_due(times, step, total)]
    assert len(due) == min(times, total) and due[-1] == total


# What a seed means for all time: a number and three digits of a stream of (seed 3, purpose, index 5).
GOLDEN = {
    "SPLIT": (1374224419159112019, [736, 724, 612]),
    "ORDER": (818463220519293219, [270, 206, 199]),
    "FLIP": (8457714677105321250, [417, 189, 307]),
    "TRAINING_NOISE": (6180145758212258522, [391, 307, 876]),
    "CODEBOOK": (7178667128109471427, [479, 970, 704]),
    "WEIGHTS": (7676665696089097185, [94, 846, 124]),
    "LABELS": (5525251667612077635, [509, 419, 681]),
    "LATENTS": (4848602349974703868, [80, 758, 376]),
    "VIEW": (3729513947249911909, [895, 423, 328]),
    "SHIFT": (4763855332561736766, [869, 516, 67]),
    "CANDIDATES": (8850379385532052848, [507, 50, 204]),
    "SHOWN": (3218790646744562354, [463, 469, 926]),
    "JUDGE": (8396094898161007060, [184, 291, 877]),
    "CROP": (3702536198327680122, [970, 233, 613]),
    "FEATURES": (4124911612092164386, [881, 346, 854]),
}


def test_the_random_numbers_of_every_purpose_are_written_down() -> None:
    found = {p.name: (number(3, p, 5), stream(3, p, 5).integers(1000, size=3).tolist()) for p in Purpose}
    assert found == GOLDEN
    assert number(3, Purpose.TRAINING_NOISE, 5, 1) == 1131243439322986435
    assert number(0, Purpose.CODEBOOK) == 2494635221133837528


def test_what_a_step_is_trained_on_is_written_down() -> None:
    batch = batch_indices(3, 1, 8, 6)
    assert batch.epochs.tolist() == [1, 1, 1, 1, 2, 2, 2, 2] and batch.items.tolist() == [0, 2, 5, 1, 3, 4, 5, 0]
    assert flips(3, batch, 6).astype(int).tolist() == [0, 0, 1, 1, 0, 0, 1, 0]
    assert views(3, batch, 6, 4).tolist() == [2, 3, 2, 0, 2, 3, 0, 3]
    assert crops(3, batch, 6, 25).tolist() == [24, 2, 3, 11, 7, 20, 2, 21]
