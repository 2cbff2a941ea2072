"""Trainings in a tracker: the lines of metrics.jsonl, its pictures and the options, a run of it for each network."""

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import DivergedError, Silent, UsageError, processes, sharpen, train_prior, train_vqvae
from pipeline.config.options import flatten, given
from pipeline.runs.layout import LOGS, METRICS, TRACKER, RunFolder
from pipeline.runs.saved import VQVAERun, read_config
from pipeline.storage import read_json
from pipeline.training.loop.log import Log
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

IMAGES, TARGETS = shapes()
GIVEN: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "reporter": Silent()}
STAGES = ("vqvae", "prior/0", "prior/1", "vqvae/decoders/sharp")
SHORT = {"steps": 4, "evaluations": 2, "checkpoints": 2}

Curves = dict[str, list[tuple[int, float]]]


def events(run: Path, stage: str) -> EventAccumulator:
    """What tensorboard itself reads of a stage's log."""
    return EventAccumulator(str(run / LOGS / stage)).Reload()


def in_tensorboard(run: Path, stage: str) -> Curves:
    """Steps and values of each metric, as tensorboard reads them."""
    found = events(run, stage)
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def in_metrics(run: Path, stage: str) -> Curves:
    """The same, as metrics.jsonl has them, in float32 as tensorboard keeps them."""
    curves: Curves = defaultdict(list)
    for line in (run / stage / METRICS).read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            curves[name].append((step, float(np.float32(value))))
    return dict(curves)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two levels and a sharp decoder, each of whose trainings went to tensorboard; the last was resumed."""
    run = tmp_path_factory.mktemp("logged") / "run"
    train_vqvae(out=run, **GIVEN, **TINY_VQVAE | SHORT, levels=2, downsampling=2, log="tensorboard")
    train_prior(run, **GIVEN, **TINY_PRIOR | SHORT, force=True, log="tensorboard")
    sharpen(run, **GIVEN, steps=4, checkpoints=4, keep=4, log="tensorboard")
    sharpen(resume=run / "vqvae/decoders/sharp/checkpoints/step-000000002", steps=6, **GIVEN, log="tensorboard")
    return run


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_has_what_metrics_has(logged: Path, stage: str) -> None:
    """By step and value, each network in a folder of its own; of steps that were done twice it counts the last."""
    ours, theirs = in_metrics(logged, stage), in_tensorboard(logged, stage)
    assert ours == theirs and {"loss", "learning_rate", "images_per_second"} <= ours.keys()
    assert any(name.startswith("validation_") for name in ours)
    assert [step for step, _ in ours["loss"]] == list(range(1, (7 if stage.endswith("sharp") else 5)))


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_shows_the_pictures_that_the_run_folder_has(logged: Path, stage: str) -> None:
    """After each evaluation; the last is the picture that lies there."""
    name = "samples" if stage.startswith("prior") else "reconstructions"
    shown, curves = events(logged, stage).Images(name), in_metrics(logged, stage)
    evaluated = next(curve for metric, curve in curves.items() if metric.startswith("validation_"))
    assert [one.step for one in shown] == [step for step, _ in evaluated]
    last = Image.open(io.BytesIO(shown[-1].encoded_image_string))
    with Image.open(logged / stage / f"{name}.png") as kept:
        assert np.array_equal(np.array(last), np.array(kept.convert("RGB")))


def test_the_options_are_hyperparameters(logged: Path) -> None:
    (path,) = (logged / LOGS / "vqvae").glob("*/hparams.yml")
    config = read_config(RunFolder(logged).vqvae, VQVAERun)
    expected = given(flatten(config.model, config.data, config.training))
    said = dict(line.split(": ", 1) for line in path.read_text().splitlines())
    assert said.keys() == expected.keys() and (said["levels"], said["learning_rate"]) == ("2", "0.001")


class Recording(GeneralTracker):  # type: ignore[misc]  # accelerate has no types
    """A tracker in the place of one whose package tests do not have: it remembers what it was given."""

    name, requires_logging_directory, main_process_only = "wandb", False, True
    begun: list["Recording"]

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.project, self.options, self.steps, self.finished = project, options, list[int](), 0
        self.id = options.get("id", f"run-{len(self.begun)}")
        self.begun.append(self)

    @property
    def tracker(self) -> "Recording":
        return self

    def log(self, values: dict[str, float], step: int | None = None, **others: Any) -> None:
        assert step is not None and not self.finished
        self.steps += [step] if "loss" in values else []

    def log_images(self, values: dict[str, list[np.ndarray]], step: int | None = None) -> None:
        assert all(image.dtype == np.uint8 and image.shape[2:] == (3,) for (image,) in values.values())

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """The runs of a tracker that begin from now on."""
    begun: list[Recording] = []
    monkeypatch.setattr(Recording, "begun", begun, raising=False)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recording)
    for module in (tracking, processes):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.WANDB])
    return begun


def test_a_resumed_training_goes_on_in_the_run_of_its_tracker(tmp_path: Path, recorded: list[Recording]) -> None:
    """On the same axis of steps; the prior has a run of its own in the same project."""
    run = tmp_path / "some run"
    train_vqvae(out=run, **GIVEN, **TINY_VQVAE | SHORT, log="wandb")
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, reporter=Silent(), resume="auto", steps=6, log="wandb")
    train_prior(run, **GIVEN, **TINY_PRIOR | SHORT, force=True, log="wandb")
    first, second, prior = recorded
    assert read_json(run / "vqvae" / TRACKER) == {"log": "wandb", "run": first.id}
    assert "id" not in first.options and second.options["id"] == first.id != prior.id
    assert [one.options["name"] for one in recorded] == ["vqvae", "vqvae", "prior/0"]
    assert {one.project for one in recorded} == {"some-run"} and [one.finished for one in recorded] == [1, 1, 1]
    assert (first.steps, second.steps, prior.steps) == ([1, 2, 3, 4], [5, 6], [1, 2, 3, 4])


def test_a_tracker_is_finished_whatever_ends_a_training(
    tmp_path: Path, recorded: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(log: Log) -> None:
        raise DivergedError("the loss was no number")

    monkeypatch.setattr(Log, "write", diverge)
    with pytest.raises(DivergedError):
        train_vqvae(out=tmp_path / "run", **GIVEN, **TINY_VQVAE | SHORT, log="wandb")
    assert [one.finished for one in recorded] == [1]


def test_a_tracker_that_cannot_begin_is_a_fault_in_a_sentence(
    tmp_path: Path, recorded: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tracker: Recording) -> None:
        raise RuntimeError("no API key is configured")

    monkeypatch.setattr(Recording, "start", refuse)
    with pytest.raises(UsageError, match="--log wandb cannot begin: no API key is configured"):
        train_vqvae(out=tmp_path / "run", **GIVEN, **TINY_VQVAE | SHORT, log="wandb")
    assert not (tmp_path / "run" / "vqvae" / METRICS).exists()


@pytest.mark.parametrize("log", processes.TRACKERS)
def test_a_tracker_whose_package_is_missing_is_named_before_any_work(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    monkeypatch.setattr(processes, "get_available_trackers", list)
    says = f"--log {log} needs a package that is not installed: pip install {log}"
    with pytest.raises(UsageError, match=says):
        train_vqvae(out=tmp_path / "run", **GIVEN, log=log)
    assert not (tmp_path / "run").exists()
    for train in (train_prior, sharpen):
        with pytest.raises(UsageError, match=says):
            train(trained, images=IMAGES, targets=TARGETS, log=log)
