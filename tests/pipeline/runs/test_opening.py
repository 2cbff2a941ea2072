"""A run is opened once: each configuration is parsed and each weight file hashed once, whatever is done with it."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import (
    CheckpointError,
    UsageError,
    complete,
    generate,
    generate_files,
    load,
    score,
    storage,
    train_prior,
    train_vqvae,
)
from pipeline.cli.main import main
from pipeline.runs import loading
from pipeline.runs.opening import open_run
from pipeline.storage import write_manifest
from tests.tiny import TINY_PRIOR, shapes

IMAGES, _ = shapes()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[str]]:
    """How often each JSON file is read, and each file hashed, by the end of its path."""
    counted: dict[str, Counter[str]] = {"parsed": Counter(), "hashed": Counter(), "hashed tensors": Counter()}
    sha256, read_text, tensors_sha256 = storage.sha256, Path.read_text, storage.tensors_sha256

    def counting_hash(path: Path) -> str:
        counted["hashed"]["/".join(path.parts[-2:])] += 1
        return sha256(path)

    def counting_read(path: Path, *arguments: str) -> str:
        counted["parsed"]["/".join(path.parts[-2:])] += path.suffix == ".json"
        return read_text(path, *arguments)

    def counting_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
        counted["hashed tensors"].update(list(tensors))
        return tensors_sha256(tensors)

    monkeypatch.setattr(storage, "sha256", counting_hash)
    monkeypatch.setattr(loading, "tensors_sha256", counting_tensors)
    monkeypatch.setattr(Path, "read_text", counting_read)
    return counted


def test_sampling_parses_and_hashes_each_file_of_the_run_once(
    trained: Path, tmp_path: Path, reads: dict[str, Counter[str]]
) -> None:
    result = CliRunner().invoke(main, ["sample", str(trained), "--n", "2", "--out", str(tmp_path / "new"), "--quiet"])
    assert result.exit_code == 0, result.output
    for stage in ("vqvae", "0"):
        assert reads["parsed"][f"{stage}/config.json"] == 1
        assert reads["parsed"][f"{stage}/manifest.json"] == 1
        assert reads["hashed"][f"{stage}/model.safetensors"] == 1
    assert set(reads["hashed tensors"].values()) == {1}, "those of the network, for what belongs together"


def test_a_loaded_model_is_not_read_again(trained: Path, tmp_path: Path, reads: dict[str, Counter[str]]) -> None:
    model = load(trained)
    before = {kind: dict(counter) for kind, counter in reads.items()}
    first, second = generate(model, 3, seed=1), generate(model, 3, seed=1)
    scores, done = score(model, IMAGES[:2]), complete(model, IMAGES[0], "top:0.5", n=1)
    generate_files(model, n=1, out=tmp_path / "new")
    assert {kind: {k: n for k, n in c.items() if "new" not in k} for kind, c in reads.items()} == before
    assert torch.equal(first.images, second.images) and len(scores) == 2 and len(done.images) == 1
    assert torch.equal(first.images, generate(trained, 3, seed=1).images)
    assert torch.equal(scores.bits, score(trained, IMAGES[:2]).bits)


def test_what_contradicts_a_loaded_model_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(trained, precision="float64")
    assert model.precision == "float64" and len(generate(model, 1)) == 1
    with pytest.raises(UsageError, match="the model given is of float64; leave precision out, or load it in float32"):
        generate(model, 1, precision="float32")
    with pytest.raises(UsageError, match="--device toaster is not to be had here"):
        generate(model, 1, device="toaster")
    monkeypatch.setattr("pipeline.processes.find_device", torch.device)  # another device, as if it were here
    with pytest.raises(UsageError, match=r"the model given is on cpu; leave device='meta' out"):
        score(model, IMAGES[:1], device="meta")


def test_the_device_follows_one_rule(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name that of this process, which accelerate chooses: a GPU where there is one."""
    asked: list[object] = []

    def found(name: object) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr("pipeline.processes.find_device", found)
    load(trained)
    generate(trained, 1)
    score(trained, IMAGES[:1])
    complete(trained, IMAGES[0], "top:0.5", n=1)
    assert asked == [None] * 4


def test_errors_of_the_stages_are_of_the_one_family(trained: Path) -> None:
    model = load(trained)
    with pytest.raises(UsageError, match=r"encodes uint8 images of shape \(n, 1, 8, 12\)"):
        model.encode(np.zeros((1, 1, 9, 9), np.uint8))
    with pytest.raises(UsageError, match=r"codes must lie in \[0, 12\)"):
        model.decode((torch.full((1, 2, 3), 99),))
    with pytest.raises(UsageError, match=r"encodes uint8 images of shape \(n, 1, 8, 12\)"):
        score(model, np.zeros((1, 3, 8, 12), np.uint8))


def test_models_and_samples_say_in_a_line_what_they_are(trained: Path) -> None:
    model = load(trained)
    assert repr(model) == (
        f"Model({str(trained)!r}: images 1 x 8 x 12, codes 2 x 3, each one of 12 (vq), pixelcnn, 2 classes, "
        "float32 on cpu)"
    )
    assert repr(generate(model, 3)) == "Samples(3 images of 1 x 8 x 12, codes of 2 x 3, of 2 classes)"


def copies(trained: Path, *names: str) -> list[Path]:
    """Copies of a run under runs/, each newer than the one before."""
    made = [Path(shutil.copytree(trained, Path("runs") / name)) for name in names]
    for age, run in enumerate(reversed(made)):
        for weights in run.rglob("model.safetensors"):
            os.utime(weights, (10**9 - age, 10**9 - age))
    return made


def age_the_format(run: Path) -> None:
    """Let the configuration of stage 1 say that it is of format 3."""
    config = json.loads((run / "vqvae" / "config.json").read_text())
    (run / "vqvae" / "config.json").write_text(json.dumps({**config, "format_version": 3}))


def test_the_newest_run_that_serves_is_found(trained: Path) -> None:
    _, second, third = copies(trained, "first", "second", "third")
    assert open_run(None, "vqvae").folder.path == third
    shutil.rmtree(third / "prior")
    assert open_run(None, "samples").folder.path == second and open_run(None, "vqvae").folder.path == third
    age_the_format(second)
    assert open_run(None, "samples").folder.path == Path("runs/first")


def test_a_run_of_an_older_format_is_refused_by_name(trained: Path) -> None:
    _, run = copies(trained, "older", "newer")
    age_the_format(run)
    message = r"config.json has format_version 3; this version reads 4 to 8; train the run"
    with pytest.raises(CheckpointError, match=message):
        load(run)
    with pytest.raises(CheckpointError, match=message):
        load()  # the newest run is meant, and not silently another
    with pytest.raises(UsageError, match=message):
        train_vqvae(config=run / "vqvae" / "config.json", out="new")
    shutil.rmtree("runs/older")
    with pytest.raises(UsageError, match=r"no finished prior under .*passed over: .*format_version 3"):
        generate()


@pytest.mark.parametrize("damage", ["weights", "owner", "config"])
def test_a_prior_that_cannot_be_used_stands_in_the_way_of_samples_alone(trained: Path, damage: str) -> None:
    [run] = copies(trained, "run")
    stage = run / "prior" / "0"
    if damage == "weights":
        (stage / "model.safetensors").unlink()
    else:
        config = json.loads((stage / "config.json").read_text())
        change = {"codes_sha256": "0" * 64} if damage == "owner" else {"level": "none"}
        (stage / "config.json").write_text(json.dumps({**config, **change}))
        write_manifest(stage, ["config.json", "model.safetensors", "validation.json"])
    Image.fromarray(IMAGES[0, 0]).save("image.png")
    assert CliRunner().invoke(main, ["reconstruct", "image.png", "--run", str(run)]).exit_code == 0
    for command in ("info", "sample"):
        refused = CliRunner().invoke(main, [command, "--run", str(run)])
        assert refused.exit_code == 4 and str(stage) in refused.output
    done = train_prior(run, out="other", images=IMAGES, targets=shapes()[1], **TINY_PRIOR)
    assert len(generate(done.run, 1)) == 1
