"""`python -m benchmarks.gpu` runs, at toy size on whatever device is here, and what it says is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, gpu_correctness
from benchmarks.gpu import covered
from pipeline import load
from stage2_prior.sampling import noise


def lines_of(part: str, *options: str) -> list[dict[str, Any]]:
    """What a part appends to its file, which it prints as well."""
    done = CliRunner().invoke(gpu.main, ["--part", part, "--toy", "--out", "gpu.jsonl", *options])
    assert done.exit_code == 0, done.output
    written = Path("gpu.jsonl").read_text().splitlines()
    assert done.stdout.splitlines() == written[-len(done.stdout.splitlines()) :]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_part_but_the_long_ones_appends_what_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    training = lines_of("training")
    drawing = lines_of("drawing")
    assert [(line["stage"], line["batch"]) for line in training] == [(1, 4), (2, 4)]
    assert [(line["prior"], line["batch"]) for line in drawing] == [(p, b) for p in gpu.PRIORS for b in (1, 3)]
    assert all(line["images_per_second"] > 0 and line["torch"] == torch.__version__ for line in training + drawing)
    assert all(line["device"] and line["commit"] and line["toy"] for line in training + drawing)
    monkeypatch.setattr(gpu, "in_turn", lambda layouts, *_: iter([{"layout": layouts[0]}]))
    several = lines_of("processes")
    assert len(Path("gpu.jsonl").read_text().splitlines()) == len(training) + len(drawing) + len(several) == 7


def test_a_part_ends_after_its_minutes_and_says_so() -> None:
    first, last = lines_of("training", "--minutes", "0")
    assert first["stage"] == 1 and last["left_out"] == "what comes after 0 minutes"


def test_the_files_of_tests_exist() -> None:
    root = Path(gpu.__file__).parents[1]
    assert all((root / name).is_file() for name in (*gpu.TESTS, *gpu.TOY_TESTS))


def test_both_stages_resume_and_compare_as_they_should() -> None:
    found = {line["check"]: line for line in lines_of("correctness")}
    assert found["resumed bit for bit"]["tensors"] > 20 and found["resumed bit for bit"]["tensors_that_differ"] == 0
    assert found["codes of CPU and device"]["codes"] == 40 * 4
    assert found["draws over batch sizes"]["draws"] == found["draws and a forward pass"]["draws"] == 6 * 4


def test_a_difference_is_counted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(trained)
    assert gpu_correctness.against_forward(model, 6)["draws_that_differ"] == 0
    words = noise.image_words
    monkeypatch.setattr(noise, "image_words", lambda _, indices, level: words(1, indices, level))
    assert int(str(gpu_correctness.against_forward(model, 6)["draws_that_differ"])) > 0


def test_time_is_counted_once_where_kernels_overlap() -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5), (6.0, 7.0)]) == 5
    assert covered([]) == 0
