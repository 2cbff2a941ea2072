"""What a prior gives to the training loop."""

import math

import pytest
import torch

from stage2_prior import CodeBatch, PriorConfig, PriorTask, make_prior
from tests.stage2_prior.priors import prior_classes, random_codes, small_prior


def test_a_summary_has_nats_per_code_and_bits_per_image() -> None:
    task, codes = PriorTask(small_prior(prior_classes()[0]), unigram_nats=1.25), random_codes(6, 4, 5)
    summary = task.summarise(task.evaluate(CodeBatch(codes, None)))
    assert list(summary.values) == ["nats", "uniform_nats", "unigram_nats", "bits_per_image"] and summary.levels == ()
    assert summary.values["uniform_nats"] == pytest.approx(math.log(7)) and summary.values["unigram_nats"] == 1.25
    assert summary.values["bits_per_image"] == pytest.approx(20 * summary.values["nats"] / math.log(2))
    assert task.selection_metric in summary.values
    assert "unigram_nats" not in PriorTask(task.network).summarise(task.evaluate(CodeBatch(codes, None))).values


def test_training_needs_no_data_to_start_from_and_resets_nothing() -> None:
    task = PriorTask(make_prior(PriorConfig(height=4, width=5, num_codes=7, hidden=16, layers=1)))
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    batch = CodeBatch(random_codes(2, 4, 5), None)
    task.initialise([batch], torch.Generator())
    assert len(task.update(task(batch).statistics, 0.5, torch.Generator())) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    assert task.no_weight_decay == [] and task.discriminator_parameters == []
