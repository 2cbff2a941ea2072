"""One and two processes do the same; a launch that would go wrong silently is refused."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import UsageError, generate, generate_files, train_prior, train_vqvae
from pipeline.runs.layout import LOGS
from pipeline.runs.validation import read_validation
from pipeline.storage import load_tensors, read_json, verify
from pipeline.training.loop.checkpoint import list_checkpoints
from tests.pipeline.signalled_worker import STEPS
from tests.pipeline.training.test_step import of_images
from tests.pipeline.training.test_tracking import in_metrics, in_tensorboard
from tests.pipeline.worker import (
    DRAWN,
    FILED,
    GIVEN,
    INITIAL,
    KINDS,
    LOGGED,
    SHARPENED,
    SIGNALLED,
    SKIPPED,
    STAGE_1_KINDS,
    STARTED,
    UNEVEN,
    work,
)
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

ROOT = Path(__file__).parents[2]
SAID = "stderr.txt"  # what two processes have said


def launch(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the worker, and then the command of docs/processes.md, in several CPU processes, as is shown there."""
    page = (ROOT / "docs" / "processes.md").read_text()
    [shown] = [block for block in re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "USE_CPU" in block]
    assert shown.count(" launch ") == shown.count(" -m pipeline ") == shown.count("--n 64") == 1
    typed = shown.replace(" launch ", " launch --main_process_port 0 ").replace("--n 64", "--n 5")
    typed = typed.replace(" -m pipeline ", f" -m tests.pipeline.worker {shlex.quote(str(folder))} ")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", typed], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same work done by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    torch.set_num_threads(1)  # as each of the two has: sums of more threads differ in their last bits
    images, targets = shapes()
    given = folder / "one" / GIVEN
    train_vqvae(out=given, images=images, targets=targets, **TINY_VQVAE, validation=0.275, test=0.275)  # 11 images each
    train_prior(given, images=images, targets=targets, label_dropout=0.2, force=True, **TINY_PRIOR)
    for name in (GIVEN, "runs/photos"):
        shutil.copytree(given, folder / "two" / name)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("one", "two"):
            patch.setenv("GEN_CACHE", str(folder / "cache"))  # one judge, of which other threads would change last bits
            if name == "one":
                work(folder / name)
            else:
                result = launch(folder / name)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Warning" not in result.stderr, result.stderr[-3000:]
    (folder / "two" / SAID).write_text(result.stderr)
    return folder / "one", folder / "two"


STAGES = [(kind, stage) for kind in KINDS for stage in ("vqvae", "prior/0")]
STAGES += [
    (SHARPENED, "vqvae/decoders/sharp"),
    ("levels", "prior/1"),
    *((kind, "vqvae") for kind in (*STAGE_1_KINDS, SKIPPED, INITIAL)),
]


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_one_and_two_processes_train_to_the_same_weights(one_and_two: tuple[Path, Path], kind: str, stage: str) -> None:
    one, two = (list_checkpoints(folder / kind / stage / "checkpoints")[-1] for folder in one_and_two)
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert len(files) == (2 if stage == "vqvae" else 3), "with an average, but for stage 1"
    for name in files:
        first, second = load_tensors(one / name), load_tensors(two / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.allclose(first[key], second[key], rtol=0, atol=1e-5), f"{name}: {key}"


@pytest.mark.parametrize(("kind", "stage"), STAGES)
def test_one_and_two_processes_measure_the_same(one_and_two: tuple[Path, Path], kind: str, stage: str) -> None:
    one, two = (read_validation(folder / kind / stage) for folder in one_and_two)
    assert (one.step, one.steps_done) == (two.step, two.steps_done)
    assert one.metrics.named() == pytest.approx(two.metrics.named(), rel=1e-4)


def test_a_loss_that_is_no_number_on_one_process_skips_the_step_on_all(one_and_two: tuple[Path, Path]) -> None:
    for folder in one_and_two:
        lines = [json.loads(line) for line in (folder / SKIPPED / "vqvae" / "metrics.jsonl").read_text().splitlines()]
        skipped = {line["step"]: line["skipped_steps"] for line in lines if "skipped_steps" in line}
        assert skipped == {step: int(step == 4) for step in range(1, 13)}


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_and_two_processes_extract_the_same_codes(one_and_two: tuple[Path, Path], kind: str) -> None:
    for part in ("train", "validation"):  # a shard each, which of two processes each has one
        one, two = (load_tensors(folder / kind / "codes" / f"{part}-00000.safetensors") for folder in one_and_two)
        assert {"level0", "labels"} | ({"view1.level0"} if part == "train" else set()) <= one.keys()
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    nats = [read_json(folder / kind / "codes" / "index.json")["unigram_nats"] for folder in one_and_two]
    assert nats[0] == nats[1]


@pytest.mark.parametrize("kind", DRAWN)
def test_one_and_two_processes_draw_the_same_images(one_and_two: tuple[Path, Path], kind: str) -> None:
    run = one_and_two[1] / kind  # one and the same model, drawn from by two processes and now by one
    precisions: tuple[Literal["float32", "float64"], ...] = ("float32", "float64")
    for precision in precisions:
        drawn_by_two = load_tensors(run / f"samples-{precision}.safetensors")
        drawn_by_one = generate(run, 11, seed=5, precision=precision)
        assert all(torch.equal(drawn_by_two[f"codes{i}"], codes) for i, codes in enumerate(drawn_by_one.codes))
        assert (drawn_by_two["images"].int() - drawn_by_one.images.int()).abs().max() <= 1
        assert drawn_by_one.labels is not None and torch.equal(drawn_by_two["labels"], drawn_by_one.labels)


def test_one_and_two_processes_write_the_same_files(one_and_two: tuple[Path, Path], tmp_path: Path) -> None:
    run = one_and_two[1] / FILED
    by_two = run / "files"  # parts of two images, odd ones by the second process
    generate_files(run, n=11, seed=5, out=tmp_path / "files", batch_size=2, format="zip")
    names = sorted(str(path.relative_to(tmp_path / "files")) for path in (tmp_path / "files").rglob("*.*"))
    assert names == sorted(str(path.relative_to(by_two)) for path in by_two.rglob("*.*"))
    assert sum(name.endswith(".zip") for name in names) == 6
    for name in (name for name in names if name.startswith("codes/")):
        one, two = load_tensors(tmp_path / "files" / name), load_tensors(by_two / name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    expected = generate(run, 11, seed=5).images
    for index in range(11):
        with zipfile.ZipFile(sorted(by_two.glob("*.zip"))[index // 2]) as archive:
            image = np.array(Image.open(io.BytesIO(archive.read(f"{index:06d}.png"))))
        assert np.abs(image.astype(int) - expected[index, 0].numpy()).max() <= 1


def test_the_launch_that_is_shown_runs_as_it_stands(one_and_two: tuple[Path, Path]) -> None:
    """On a run as README makes it; the other launches on the page want GPUs."""
    assert len(list((one_and_two[1] / "runs/photos/samples/seed-0").glob("0*.png"))) == 5


@pytest.mark.parametrize("stage", ["prior/0", "prior/1"])
def test_of_two_processes_one_logs_to_a_tracker(one_and_two: tuple[Path, Path], stage: str) -> None:
    run = one_and_two[1] / LOGGED
    assert len(list((run / LOGS / stage).glob("events.*"))) == 1
    assert in_tensorboard(run, stage) == in_metrics(run, stage)


def test_one_and_two_processes_evaluate_alike(one_and_two: tuple[Path, Path]) -> None:
    one, two = (json.loads((folder / GIVEN / "evaluation.json").read_text()) for folder in one_and_two)
    assert one["images"] == 11 and one["samples"]["setting"]["guidance"] == 2 and one["judge"] == two["judge"]
    for name in ("stage1", "stage2", "floor", "reconstructed"):
        for figure, expected in one[name].items():
            assert two[name][figure]["value"] == pytest.approx(expected["value"], rel=1e-4, abs=1e-6), (name, figure)
    ours, theirs = (evaluation["samples"]["figures"]["nearest_distance"]["value"] for evaluation in (one, two))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_processes_that_do_not_see_the_same_files_all_stop_and_say_so(one_and_two: tuple[Path, Path]) -> None:
    """Once, a node without the run folder began anew while the other resumed."""
    _, folder = one_and_two
    for rank in range(2):
        run, images, missing = json.loads((folder / f"disagreed-{rank}.json").read_text())
        which = f"number {rank} of 2"
        assert run.startswith("2 the processes do not see the same of the run in") and which in run
        assert images.startswith("2 the processes do not see the same of the images given") and which in images
        assert missing.startswith("3 no such file or folder" if rank == 0 else "2 another process could not go on with")
    assert not (folder / "other").exists() and not (folder / "missing").exists()


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    images, targets = shapes()
    with pytest.raises(UsageError, match="2 processes were launched, but each sees 1"):
        train_vqvae(out="run", images=images, targets=targets, **TINY_VQVAE)
    assert not Path("run").exists()


def test_half_precision_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    images, targets = shapes()
    with pytest.raises(UsageError, match="'fp16' is not supported"):
        train_vqvae(out="run", images=images, targets=targets, **TINY_VQVAE)


def test_processes_that_do_not_divide_the_micro_batches_are_refused(one_and_two: tuple[Path, Path]) -> None:
    _, folder = one_and_two
    said = (folder / SAID).read_text()
    assert [json.loads((folder / f"uneven-{rank}.json").read_text()) for rank in range(2)] == [2, 2]
    assert (
        "gen: error: this training has 1 micro-batches a step, which cannot be divided evenly over 2 processes" in said
    )
    assert "Traceback" not in said and not (folder / UNEVEN).exists()


def test_all_processes_start_from_what_the_first_has_and_evaluate_together(
    one_and_two: tuple[Path, Path], tmp_path: Path
) -> None:
    """Weights that differed by rounding alone would choose different codes, and the processes drift apart."""
    started = one_and_two[1] / STARTED
    first, second = (load_tensors(started / f"{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    trainer = of_images(tmp_path, {"likelihood": "gaussian"})
    trainer.start()
    assert not torch.equal(trainer.module.state_dict()["network.encoder.0.weight"], first["network.encoder.0.weight"])
    trainer.module.load_state_dict(first)
    alone = trainer.evaluate().named()  # all 11 images, of which each process had five or six
    for rank in range(2):
        assert json.loads((started / f"{rank}.json").read_text()) == pytest.approx(alone, rel=1e-5)


def test_a_signal_to_one_of_two_processes_stops_both_and_loses_nothing(one_and_two: tuple[Path, Path]) -> None:
    """SIGTERM to the second in its fourth step, SIGHUP to the first while it saves; then to the end."""
    folder = one_and_two[1] / SIGNALLED
    first, second = (json.loads((folder / f"process-{rank}.json").read_text()) for rank in (0, 1))
    assert [code for code, _ in first] == [code for code, _ in second] == [128 + 15, 128 + 1, 0]
    reached = [(status["state"], status["exit_code"], status["step"], status["total_steps"]) for _, status in first]
    assert reached == [
        ("interrupted", 128 + 15, 10, STEPS),  # processes agree every ten steps
        ("interrupted", 128 + 1, 30, STEPS),  # the save was after step 20
        ("finished", 0, STEPS, STEPS),
    ]
    whole, parts = (list_checkpoints(folder / name / "vqvae" / "checkpoints") for name in ("whole", "parts"))
    assert [path.name[-2:] for path in parts] == ["30", "40"], "the last two, as many as are kept"
    for path in parts:
        verify(path)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_tensors(whole[-1] / name), load_tensors(parts[-1] / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
