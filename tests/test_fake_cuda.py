"""Devices without a device: both stages on fake tensors that say they are on a GPU.

A fake tensor has a shape, a type and a device, and no values. Mixing devices, reading a value (`.item()`, `bool()`) and
shapes that depend on values raise here as they would fail or wait on a GPU. What this cannot see: an index on the CPU
into a tensor on the GPU, a CPU scalar added to one, and what needs a driver, such as generators, streams and the
backward pass. So `update`, which takes a generator, and training as a whole are not tried, nor is the noise of an image
under a likelihood, which is a checksum of its values.
"""

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from stage1_vqvae import VQVAE, DecoderTask, ObjectiveConfig, VQVAEConfig, VQVAETask
from stage2_prior import (
    CodeBatch,
    Noise,
    Prior,
    PriorConfig,
    PriorTask,
    SamplingOptions,
    code_nats,
    draw,
    draw_levels,
    mixture_bits,
    stepper_of,
)
from tests.stage2_prior.priors import prior_classes

DISCRETE, CONTINUOUS = ("vq", "gumbel", "fsq"), ("gaussian", "mmd", "none")
TINY = {"height": 16, "width": 16, "hidden": 16, "residual_blocks": 1, "num_codes": 8, "code_dim": 4}


@pytest.fixture(autouse=True)
def _on_a_fake_gpu() -> Iterator[None]:
    """Modules have to be made there: a fake one cannot be moved."""
    with FakeTensorMode(), torch.device("cuda:0"):
        yield


def stage1(bottleneck: str, **options: object) -> VQVAETask:
    return VQVAETask(VQVAE(VQVAEConfig(**TINY | {"bottleneck": bottleneck} | options)))  # type: ignore[arg-type]


def images() -> Tensor:
    return torch.zeros(4, 3, 16, 16, dtype=torch.uint8)


def assert_on_gpu(values: Mapping[str, Tensor]) -> None:
    assert values and {name: value.device.type for name, value in values.items()} == dict.fromkeys(values, "cuda")


@pytest.mark.parametrize("network", ["strided", "residual"])
@pytest.mark.parametrize(
    ("bottleneck", "levels", "level_kind"),
    [(name, 1, "hierarchical") for name in (*DISCRETE, *CONTINUOUS)]
    + [(name, 2, kind) for name in DISCRETE for kind in ("hierarchical", "residual")],
)
def test_stage_1_stays_on_the_device(bottleneck: str, levels: int, level_kind: str, network: str) -> None:
    task = stage1(bottleneck, levels=levels, level_kind=level_kind, network=network, objective="sharp")
    output = task.train()(images(), 0.5)
    assert_on_gpu({"loss": output.loss} | output.metrics)
    assert_on_gpu({str(level): own.sums for level, own in enumerate(output.statistics)} | {"loss": output.loss})
    assert_on_gpu(task.eval().evaluate(images()))
    codes = task.network.encode(images())
    decoded = task.network.decoder(task.network.levels.decode(codes))
    assert_on_gpu({"decoded": decoded} | {str(level): own for level, own in enumerate(codes)})
    assert len(codes) == levels and decoded.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("options", [{"features": "kmeans"}, {"features": "classes"}, {"frequency_weight": 1.0}])
def test_the_losses_of_a_sharp_training_stay_on_the_device(options: dict[str, object]) -> None:
    output = stage1("vq", objective="sharp", feature_matching=1.0, **options).train()(images(), 0.5)
    assert_on_gpu({"loss": output.loss} | output.metrics)


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized-logistic"])
def test_a_likelihood_stays_on_the_device(likelihood: str) -> None:
    task = stage1("gaussian", likelihood=likelihood)
    assert_on_gpu({"loss": task.train()(images(), 0.5).loss})
    assert task.network.likelihood is not None
    reconstruction = task.network(images(), 0.5).reconstruction
    assert_on_gpu({"nats": task.network.likelihood.nats(reconstruction.double(), images())})


def stage2(kind: type[Prior], coarser: tuple[int, ...]) -> tuple[Prior, CodeBatch]:
    config = PriorConfig(
        height=2, width=4, num_codes=7, num_classes=3, hidden=16, layers=2, head=16, coarser=coarser, label_dropout=0.1
    )
    of_coarser = [torch.zeros(2, 1, 2, dtype=torch.int64) for _ in coarser]
    return kind(config), CodeBatch(torch.zeros(2, 2, 4, dtype=torch.int64), torch.zeros(2).long(), of_coarser)


@pytest.mark.parametrize("coarser", [(), (5,)])
@pytest.mark.parametrize("kind", prior_classes())
def test_stage_2_learns_scores_and_draws_on_the_device(kind: type[Prior], coarser: tuple[int, ...]) -> None:
    prior, batch = stage2(kind, coarser)
    task = PriorTask(prior).train()
    assert_on_gpu(task(batch).metrics)
    assert_on_gpu(task.eval().evaluate(batch))
    assert_on_gpu({"nats": code_nats(prior, *batch)})
    options = SamplingOptions(temperature=0.7, top_k=3, top_p=0.9)
    for guidance, known in ((1.0, None), (2.0, batch.codes)):
        stepper = stepper_of(prior, 2, guidance)
        stepper.begin(batch.labels, batch.coarser)
        assert_on_gpu(draw(stepper, Noise(3, torch.arange(2)), options, known)._asdict())


@pytest.mark.parametrize("bottleneck", ["vq", "gaussian"])
def test_a_decoder_trained_further_stays_on_the_device(bottleneck: str) -> None:
    network = stage1(bottleneck, likelihood="gaussian").network
    task = DecoderTask(network, ObjectiveConfig(features="kmeans"))
    for mode in (task.train(), task.eval()):
        output = mode(images(), 0.5)
        assert_on_gpu({"loss": output.loss} | output.metrics)
    assert_on_gpu(task.evaluate(images()))


@pytest.mark.parametrize("kind", prior_classes())
def test_levels_are_drawn_and_scored_on_the_device(kind: type[Prior]) -> None:
    coarse = kind(PriorConfig(height=1, width=2, num_codes=5, num_classes=3, hidden=16, layers=2, head=16))
    fine, batch = stage2(kind, (5,))
    steppers = [stepper_of(prior, 2, 1.0) for prior in (coarse, fine)]
    drawn = draw_levels(steppers, Noise(3, torch.arange(2)), batch.labels, SamplingOptions())
    found = {"coarse": drawn.codes[0], "fine": drawn.codes[1], "sum": drawn.log_probability}
    assert_on_gpu(found | {"known": drawn.known_log_probability})
    bits = mixture_bits([coarse, fine], [*batch.coarser, batch.codes], {0: 0.5, 2: 0.5})
    assert [level.shape for level in bits] == [(2, 1, 2), (2, 2, 4)]
    assert {level.device.type for level in bits} == {"cpu"}, "what people read"


def test_a_tensor_on_another_device_is_found() -> None:
    """The comparison can fail: in each stage one weight is on the CPU."""
    task = stage1("vq")
    task.network.levels.bottlenecks[0].register_buffer("codebook", torch.zeros(8, 4, device="cpu"))
    with pytest.raises(RuntimeError, match="from device cpu to device cuda:0"):
        task.network.encode(images())
    prior, batch = stage2(prior_classes()[0], ())
    prior.embedding.weight = torch.nn.Parameter(torch.zeros(7, 16, device="cpu"))
    with pytest.raises(RuntimeError, match="device"):
        code_nats(prior, *batch)


def test_a_value_that_is_waited_for_is_found() -> None:
    """What is decoded is checked, once a batch: codes may come from files. The check reads the greatest code."""
    network = stage1("vq").network
    with pytest.raises(RuntimeError, match="local_scalar_dense"):
        network.decode(network.encode(images()))
