"""A run is opened once: each configuration is parsed and each weight file hashed once, whatever is done with it."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline import CheckpointError, UsageError, complete, generate, generate_files, load, score, storage
from pipeline.cli.main import main
from pipeline.runs.opening import Run, open_run
from tests.tiny import shapes

IMAGES, _ = shapes()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[str]]:
    """How often each JSON file is read, and each file hashed, by the end of its path."""
    counted: dict[str, Counter[str]] = {"parsed": Counter(), "hashed": Counter()}
    sha256, read_text = storage.sha256, Path.read_text

    def counting_hash(path: Path) -> str:
        counted["hashed"]["/".join(path.parts[-2:])] += 1
        return sha256(path)

    def counting_read(path: Path, *arguments: str) -> str:
        counted["parsed"]["/".join(path.parts[-2:])] += path.suffix == ".json"
        return read_text(path, *arguments)

    monkeypatch.setattr(storage, "sha256", counting_hash)
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


def test_what_contradicts_a_loaded_model_is_refused(trained: Path) -> None:
    model = load(trained, precision="float64")
    assert model.precision == "float64" and len(generate(model, 1)) == 1
    with pytest.raises(UsageError, match="the model given is of float64; leave precision out, or load it in float32"):
        generate(model, 1, precision="float32")
    with pytest.raises(UsageError, match="--device toaster is not to be had here"):
        generate(model, 1, device="toaster")
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


def test_the_newest_run_that_serves_is_found(trained: Path) -> None:
    _, second, third = copies(trained, "first", "second", "third")
    assert Run.newest("vqvae").folder.path == third
    shutil.rmtree(third / "prior")
    assert Run.newest("samples").folder.path == second and open_run(None, "vqvae").folder.path == third
    config = json.loads((second / "vqvae" / "config.json").read_text())
    (second / "vqvae" / "config.json").write_text(json.dumps({**config, "format_version": 3}))
    assert Run.newest("samples").folder.path == Path("runs/first")


def test_a_run_of_an_older_format_is_refused_by_name(trained: Path) -> None:
    [run] = copies(trained, "run")
    config = json.loads((run / "vqvae" / "config.json").read_text())
    (run / "vqvae" / "config.json").write_text(json.dumps({**config, "format_version": 3}))
    with pytest.raises(CheckpointError, match=r"config.json has format_version 3; this version reads 4; train the run"):
        load(run)
    with pytest.raises(UsageError, match=r"no finished vqvae under .*passed over: .*format_version 3"):
        load()
