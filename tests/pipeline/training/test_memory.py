"""What needs more memory than there is, is refused before it is built, and the option that needs it is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.config.training import TrainingConfig
from pipeline.errors import CheckpointError, ResourceError
from pipeline.runs.loading import check_image_fits
from pipeline.runs.opening import open_run
from pipeline.sampling.model import load
from pipeline.storage import write_manifest
from pipeline.training.cost import memory
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage2_prior import CodeBatch, PriorConfig, PriorTask, make_prior

MODELS = [
    VQVAEConfig(),
    VQVAEConfig(bottleneck="gumbel", objective="sharp", hidden=32),
    VQVAEConfig(bottleneck="fsq", likelihood="discretized-logistic"),
    VQVAEConfig(bottleneck="gaussian", likelihood="gaussian"),
    VQVAEConfig(levels=2, codebook_rule="simvq"),
    VQVAEConfig(network="residual", hidden=64, unit_codes=True),
    VQVAEConfig(network="residual", hidden=32, levels=2, downsampling=2, residual_blocks=1),
    PriorConfig(num_classes=3),
    PriorConfig(prior="pixelsnail", hidden=64, layers=5),
    PriorConfig(prior="transformer", hidden=64, layers=5),
    PriorConfig(coarser=(12,), hidden=32),
]


@pytest.mark.parametrize("model", MODELS)
def test_the_estimate_is_that_of_the_network_itself(model: VQVAEConfig | PriorConfig) -> None:
    """Against weights and saved tensors of the real network. Of an odd number of images a discriminator sees the
    greater half."""
    training = TrainingConfig(batch_size=8, micro_batches=2, average_decay=0.9, precision="float32")
    task: torch.nn.Module
    batch: object
    if isinstance(model, VQVAEConfig):
        task, batch = VQVAETask(VQVAE(model)), torch.zeros((4, 3, 32, 32), dtype=torch.uint8)
    else:
        task, codes = PriorTask(make_prior(model)), torch.zeros((4, 8, 8), dtype=torch.int64)
        batch = CodeBatch(
            codes, torch.zeros(4, dtype=torch.int64) if model.num_classes else None, [codes] * len(model.coarser)
        )
    weights = sum(tensor.nbytes for tensor in [*task.parameters(), *task.buffers()])
    kept = memory.saved_bytes(task, batch)
    besides = 5 * weights + memory.WORKING * kept.largest
    for device, heap in (("cpu", memory.HEAP), ("cuda", 1)):
        said = memory.training_memory(model, training, torch.device(device))
        assert said == pytest.approx(besides + heap * kept.total, rel=0.02)


def test_a_map_of_as_many_positions_as_a_head_has_channels_is_counted_whole() -> None:
    training = TrainingConfig(batch_size=64, precision="float32")
    bytes_of = {
        width: memory.training_memory(
            PriorConfig(prior="transformer", hidden=128, height=4, width=width), training, torch.device("cpu")
        )
        for width in (4, 5, 6)
    }
    assert bytes_of[4] == bytes_of[5] < bytes_of[6], "4x4 positions are 16, as the channels of a head"


def test_multiply_adds_of_the_strided_network_are_those_counted_by_hand() -> None:
    tiny = VQVAEConfig(
        channels=1,
        height=8,
        width=8,
        hidden=8,
        residual_blocks=1,
        residual_channels=4,
        num_codes=64,
        code_dim=3,
    )
    encoder = 16 * 1 * 4 * (4 * 4) + 16 * 4 * 8 * (2 * 2) + 8 * 8 * (2 * 2) + (8 * 8 + 8 * 8) * (2 * 2)
    codes = 8 * 3 * (2 * 2) + 3 * 64 * (2 * 2)  # the projection, and the distances to all codes
    decoder = 9 * 3 * 8 * (2 * 2) + (9 * 8 * 4 + 4 * 8) * (2 * 2) + 16 * 8 * 4 * (2 * 2) + 16 * 4 * 1 * (4 * 4)
    assert memory.multiply_adds(tiny) == encoder + codes + decoder
    assert memory.multiply_adds(replace(tiny, objective="sharp")) == encoder + codes + decoder, "of the network alone"


def test_multiply_adds_of_the_residual_network_are_those_counted_by_hand() -> None:
    tiny = VQVAEConfig(
        network="residual", channels=1, height=8, width=8, hidden=16, residual_blocks=1, num_codes=64, code_dim=3
    )
    encoder = 9 * 4 * 8 * (4 * 4) + 2 * 9 * 8 * 8 * (4 * 4) + 16 * 8 * 16 * (2 * 2) + 2 * 16 * 16 * (2 * 2)
    codes = 16 * 3 * (2 * 2) + 3 * 64 * (2 * 2)
    decoder = 9 * 3 * 16 * (2 * 2) + 2 * 9 * 16 * 16 * (2 * 2) + 9 * 16 * 32 * (2 * 2)
    decoder += 2 * 9 * 8 * 8 * (4 * 4) + 9 * 8 * 4 * (4 * 4)
    assert memory.multiply_adds(tiny) == encoder + codes + decoder


def test_multiply_adds_of_a_prior_are_in_proportion_to_its_map() -> None:
    counts = [memory.multiply_adds(PriorConfig(height=side, width=side, hidden=16, layers=3)) for side in (8, 16)]
    assert counts[1] == pytest.approx(4 * counts[0], rel=0.02) and counts[0] > 64 * 3 * 16 * 16


@pytest.mark.parametrize("network", ["strided", "residual"])
def test_a_model_for_whose_layers_there_is_no_room_is_not_loaded(
    network: Literal["strided", "residual"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a residual block there are at a time its input, and of its last convolution input and output."""
    model = VQVAEConfig(network=network, height=64, width=64, hidden=64, downsampling=4)
    feature_map = 4 * 32 * 32 * 32  # bytes, of the first resolution
    needed = (4 if network == "residual" else 2) * feature_map + 4 * 3 * 64 * 64
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(available=needed))
    check_image_fits(model, torch.device("cpu"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(available=needed - 1))
    with pytest.raises(ResourceError, match=r"an image of 64x64 pixels, as config\.json says, takes about"):
        check_image_fits(model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--batch-size", "16000000", "--batch-size (16,000,000)"),
        ("--hidden", "16384", "--hidden (16,384)"),
        ("--num-codes", "16777216", "--num-codes (16,777,216)"),
    ],
)
def test_a_training_that_does_not_fit_is_refused_by_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, named: str
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(available=2**30))
    before = psutil.Process().memory_info().rss
    run = tmp_path / "run"
    result = CliRunner().invoke(main, ["train-vqvae", "--preset", "tiny", "--out", str(run), option, value])
    assert result.exit_code == 6
    assert "this training takes about" in result.output and "and 1.0 GiB are free" in result.output
    assert f"choose a smaller {named}: with the default it would be" in result.output
    assert not run.exists()
    assert psutil.Process().memory_info().rss - before < 2**29  # nothing of it was built


class _Memory:
    def __init__(self, available: int) -> None:
        self.available = available


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-codes", "1000000000"],
        ["--hidden", "1000000000"],
        ["--residual-blocks", "100000"],
        ["--batch-size", "1000000000"],
        ["--seed", "99999999999999999999"],
        ["--steps", "99999999999999999999"],
    ],
)
def test_numbers_beyond_reason_are_refused_at_once(tmp_path: Path, arguments: list[str]) -> None:
    """Once, the kernel killed the command after half a minute, or a minute passed in silence."""
    result = CliRunner().invoke(main, ["train-vqvae", "--out", str(tmp_path / "run"), *arguments])
    assert result.exit_code == 2
    assert f"{arguments[0]}: input should be less than or equal to" in result.output and arguments[1] in result.output


def test_a_prior_that_does_not_fit_is_refused_by_the_option(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(available=2**28))
    images = {"prior": ["--hidden", "4096"], "many": ["--layers", "100000"]}
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "prior")
    codes = {name: CliRunner().invoke(main, ["train-prior", str(run), *extra]) for name, extra in images.items()}
    assert codes["prior"].exit_code == 6 and "choose a smaller --hidden (4,096)" in codes["prior"].output
    assert (
        codes["many"].exit_code == 2 and "--layers: input should be less than or equal to 512" in codes["many"].output
    )


@pytest.mark.parametrize(("option", "value"), [("hidden", 16384), ("num_codes", 2**24), ("residual_blocks", 512)])
def test_an_edited_config_is_refused_before_its_network_is_built(
    trained: Path, tmp_path: Path, option: str, value: int
) -> None:
    """The file of the weights says how large the network is; a config that says otherwise builds nothing."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = run / "vqvae" / "config.json"
    content: dict[str, Any] = json.loads(config.read_text())
    content["model"][option] = value
    config.write_text(json.dumps(content))
    listed = json.loads((run / "vqvae" / "manifest.json").read_text())
    write_manifest(run / "vqvae", list(listed))
    before = psutil.Process().memory_info().rss
    with pytest.raises(
        CheckpointError, match=r"does not fit its config\.json: \d+ tensors differ, such as .*by config"
    ):
        load(run)
    assert psutil.Process().memory_info().rss - before < 2**29


def test_a_config_of_ten_million_layers_is_refused_at_once(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = run / "prior" / "0" / "config.json"
    config.write_text(config.read_text().replace('"layers": 3', '"layers": 10000000'))
    with pytest.raises(
        CheckpointError, match=r"config.json is not a file of this kind: --layers: input should be less"
    ):
        open_run(run, "finished")


def test_a_model_larger_than_memory_is_not_loaded(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(available=2000))
    with pytest.raises(ResourceError, match=r"loading .*model.safetensors takes about .* of memory, and 2.0 KiB are"):
        load(trained)


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        (
            "vqvae",
            ResourceError,
            r"an image of 65536x65536 pixels, as config.json says, takes about .* bring the config",
        ),
        (
            "prior/0",
            CheckpointError,
            r"has learned maps of 65536x65536 codes of 12, and stage 1 makes 2x3 of 12; one con",
        ),
    ],
)
def test_an_edited_size_is_refused_though_the_weights_fit_it(
    trained: Path, tmp_path: Path, stage: str, error: type[Exception], message: str
) -> None:
    """Convolutions have the same weights for images and maps of any size."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = run / stage / "config.json"
    content: dict[str, Any] = json.loads(config.read_text())
    size = 2**16 if stage == "vqvae" else 2**15
    content["model"] |= {"height": size, "width": size}
    config.write_text(json.dumps(content))
    write_manifest(run / stage, list(json.loads((run / stage / "manifest.json").read_text())))
    with pytest.raises(error, match=message.replace("65536", str(size))):
        load(run)
