"""Nearest codes, sums over codes, perplexity and k-means against independent computations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from stage1_vqvae.bottlenecks import codebook
from stage1_vqvae.bottlenecks.codebook import code_sums, k_means, nearest_codes, perplexity


@pytest.mark.parametrize("num_codes", [1, 17, 64, 200])
@pytest.mark.parametrize("block_bytes", [1, 10_000, 2**23])
def test_nearest_codes_are_those_of_the_distance_matrix(
    block_bytes: int, num_codes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codebook, "_block_bytes", lambda device: block_bytes)
    vectors, codes = torch.randn(301, 5, dtype=torch.float64), torch.randn(num_codes, 5, dtype=torch.float64)
    distances = ((vectors.numpy()[:, None] - codes.numpy()[None]) ** 2).sum(-1)
    assert np.array_equal(nearest_codes(vectors, codes).numpy(), distances.argmin(1))


def test_of_equally_near_codes_the_first_is_taken() -> None:
    codes = torch.zeros(200, 3)
    codes[70:] = 1
    assert nearest_codes(torch.stack([torch.zeros(3), torch.ones(3)]), codes).tolist() == [0, 70]
    assert nearest_codes(torch.zeros(0, 3), codes).tolist() == []


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3e38])
def test_vectors_that_are_no_numbers_have_codes_of_the_codebook(value: float) -> None:
    """Such a step is skipped later; until then no code may lie beyond the codebook."""
    vectors = torch.randn(5, 3)
    vectors[2, 1] = value
    codes = nearest_codes(vectors, torch.randn(12, 3))
    assert ((codes >= 0) & (codes < 12)).all()


def test_code_sums_are_those_of_the_one_hot_product() -> None:
    vectors, codes = torch.randn(50, 3, dtype=torch.float64), torch.randint(6, (50,))
    one_hot = np.eye(7)[codes.numpy()]
    sums = code_sums(vectors, codes, 7).numpy()
    np.testing.assert_allclose(sums[:, :3], one_hot.T @ vectors.numpy(), atol=1e-12)
    np.testing.assert_array_equal(sums[:, 3], one_hot.sum(0))


@given(st.integers(1, 20), st.integers(0, 20))
def test_perplexity_of_equal_use_is_the_number_of_used_codes(used: int, unused: int) -> None:
    counts = torch.cat([torch.full((used,), 3.0), torch.zeros(unused)])
    assert float(perplexity(counts)) == pytest.approx(used, rel=1e-5)


def test_k_means_finds_separated_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = (centres[:, None] + 0.1 * torch.randn(3, 40, 2)).reshape(-1, 2)
    # From some starts two centres share a cluster for good; the best of ten does not.
    found = [k_means(vectors, 3, torch.Generator().manual_seed(seed)) for seed in range(10)]
    best = max(found, key=lambda clusters: float(clusters.counts.min()))
    assert best.counts.tolist() == [40, 40, 40]
    assert torch.cdist(best.centres, centres).min(1).values.max() < 0.1


def test_k_means_starts_at_distinct_vectors_out_of_all_of_them() -> None:
    vectors = torch.arange(40.0).reshape(20, 2)
    starts = k_means(vectors, 20, torch.Generator().manual_seed(0), iterations=0).centres
    assert sorted(starts[:, 0].tolist()) == vectors[:, 0].tolist()


def test_an_empty_cluster_moves_onto_a_vector() -> None:
    vectors = torch.cat([torch.zeros(200, 2), torch.tensor([[9.0, 9.0], [8.0, 0.0]])])
    # Of 202 vectors all but two are equal: starts coincide, and only one of each kind wins vectors.
    clusters = k_means(vectors, 3, torch.Generator().manual_seed(0), iterations=200)
    assert sorted(clusters.counts.tolist()) == [1, 1, 200]


def test_k_means_with_fewer_vectors_than_codes_keeps_every_vector() -> None:
    vectors = torch.randn(4, 2)
    clusters = k_means(vectors, 9, torch.Generator().manual_seed(0))
    assert clusters.centres.shape == (9, 2) and clusters.counts.sum() == 4
    assert torch.cdist(vectors, clusters.centres).min(1).values.max() < 1e-6


def test_no_matrix_of_all_vectors_by_all_codes_is_allocated() -> None:
    vectors, codes = torch.randn(2**14, 4), torch.randn(1024, 4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        nearest_codes(vectors, codes)
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert 2**20 < largest <= codebook._block_bytes(vectors.device) < 2**14 * 1024 * 4


def test_samples_are_drawn_from_the_whole_batch_without_replacement() -> None:
    vectors = torch.arange(8000.0)[:, None]
    samples = codebook.sample_vectors(vectors).flatten().tolist()
    assert len(samples) == len(set(samples)) == 1024
    assert max(samples) > 7500 and 3500 < sum(samples) / 1024 < 4500 and samples != sorted(samples)


def test_a_dead_code_takes_a_random_sample_and_one_as_used_as_the_threshold_is_alive() -> None:
    counts, samples = torch.tensor([4.0, 1.0, 0.5, 2.5]), torch.arange(100.0)[:, None]
    taken = set()
    for seed in range(20):
        rows, vectors, mean = codebook.revival(counts, samples, 0.5, torch.Generator().manual_seed(seed))
        assert rows.tolist() == [False, False, True, False] and float(mean) == 2.0  # half of it is 1
        taken.add(tuple(vectors[rows].flatten().tolist()))
    assert len(taken) > 10
    alive, _, _ = codebook.revival(torch.ones(4), samples, 1.0, torch.Generator())
    assert not alive.any()
