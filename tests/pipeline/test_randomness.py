"""Randomness is a function of (seed, purpose, index)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.training import TrainingConfig, is_due, learning_rate
from pipeline.randomness import Purpose, batch_indices, flips, generator, number, views


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
