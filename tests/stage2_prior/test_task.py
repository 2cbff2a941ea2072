"""What a prior gives to the training loop."""

import math
from typing import Any

import pytest
import torch

from stage2_prior import CodeBatch, Prior, PriorConfig, PriorTask, make_prior
from tests.stage2_prior.priors import prior_classes, random_codes, small_prior


def test_a_summary_has_nats_per_code_and_bits_per_image() -> None:
    task, codes = PriorTask(small_prior(prior_classes()[0]), unigram_nats=1.25), random_codes(6, 4, 5)
    summary = task.summarise(task.evaluate(CodeBatch(codes, None)))
    assert list(summary.values) == ["nats", "uniform_nats", "unigram_nats", "bits_per_image"] and summary.levels == ()
    assert summary.values["uniform_nats"] == pytest.approx(math.log(7)) and summary.values["unigram_nats"] == 1.25
    assert summary.values["bits_per_image"] == pytest.approx(20 * summary.values["nats"] / math.log(2))
    assert task.selection_metric in summary.values
    assert "unigram_nats" not in PriorTask(task.network).summarise(task.evaluate(CodeBatch(codes, None))).values


def test_options_without_effect_are_named_with_what_they_belong_to() -> None:
    sizes: dict[str, Any] = {"height": 4, "width": 5, "num_codes": 7, "hidden": 16}
    given = ["hidden", "label_dropout", "condition_blocks", "attention_heads"]
    assert PriorConfig(**sizes).without_effect(given) == [
        "--attention-heads belongs to --prior pixelsnail and transformer; leave it out",
        "--condition-blocks belongs to levels that have a coarser one; leave it out",
        "--label-dropout belongs to data with classes; leave it out",
    ]
    all_have_one = PriorConfig(**sizes, prior="pixelsnail", coarser=(7,), num_classes=3)
    assert all_have_one.without_effect(given) == []
    assert PriorConfig(**sizes).without_effect(["hidden"]) == []


def test_training_needs_no_data_to_start_from_and_resets_nothing() -> None:
    task = PriorTask(make_prior(PriorConfig(height=4, width=5, num_codes=7, hidden=16, layers=1)))
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    batch = CodeBatch(random_codes(2, 4, 5), None)
    task.initialise([batch], torch.Generator())
    assert len(task.update(task(batch).statistics, 0.5, torch.Generator())) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    assert task.no_weight_decay == [] and task.discriminator_parameters == []


@pytest.mark.parametrize("kind", prior_classes())
def test_in_training_some_codes_are_hidden_and_the_others_are_as_they_are(kind: type[Prior]) -> None:
    prior = kind(PriorConfig(height=20, width=30, num_codes=7, hidden=16, layers=1, code_dropout=0.25))
    codes = random_codes(10, 20, 30)
    whole = prior.eval().embed(codes).detach()
    assert torch.equal(whole, prior.embedding.weight.detach()[codes].movedim(-1, 1))
    embedded = prior.train().embed(codes).detach()
    hidden = (embedded == 0).all(1)
    assert torch.equal(embedded, whole * ~hidden[:, None]), "hidden as a whole, and not scaled"
    assert abs(int(hidden.sum()) - 1500) < 4 * (6000 * 0.25 * 0.75) ** 0.5
    assert hidden.flatten(1).any(1).all() and not (hidden[:, :, 1:] == hidden[:, :, :-1]).all()


def test_an_evaluation_knows_every_class() -> None:
    """Labels are hidden by chance in training alone, and the nats of an evaluation are summed in float64."""
    config = PriorConfig(height=4, width=5, num_codes=7, num_classes=3, hidden=16, layers=1, label_dropout=0.9)
    task, codes, labels = PriorTask(make_prior(config)).eval(), random_codes(6, 4, 5), torch.arange(6) % 3
    sums = task.evaluate(CodeBatch(codes, labels))
    logits = task.network(codes, labels).detach().double()
    expected = torch.nn.functional.cross_entropy(logits, codes, reduction="sum")
    assert float(sums["nats"]) == pytest.approx(float(expected), rel=1e-6) and sums["nats"].dtype == torch.float64
    assert int(sums["codes"]) == 120 and int(sums["maps"]) == 6
