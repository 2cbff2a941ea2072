"""What a run has written about itself: settings, metrics, validation and evaluation. No weights, no images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.config.training import TrainingConfig
from pipeline.data.splits import load_split
from pipeline.errors import CheckpointError
from pipeline.runs.evaluation import Evaluation, read_evaluation
from pipeline.runs.layout import CONFIG, IN_PROGRESS, METRICS, SHARP, SPLIT, STATUS, RunFolder, is_finished
from pipeline.runs.overview import numbers_of
from pipeline.runs.saved import DecoderRun, PriorRun, Saved, StageRun, VQVAERun, read_config
from pipeline.runs.status import Status
from pipeline.runs.validation import Validation, read_validation
from pipeline.storage import check_paths, read_json, validated

VALIDATION = "validation_"  # of the metrics that are an evaluation's


class Curve(NamedTuple):
    """A metric over the steps of a training."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class StageRecord:
    """A training: its settings, what it logged, and what its best weights reach, once they are published."""

    name: str  # vqvae, vqvae/decoders/sharp, prior/0, ...
    settings: StageRun
    lines: Sequence[dict[str, float]]
    validation: Validation | None
    resumed_at: int | None = None  # the step that the last command on this stage went on from

    @property
    def training(self) -> TrainingConfig:
        """How it was, or is, trained."""
        return self.settings.training

    @property
    def steps_done(self) -> int:
        """So many steps are behind it."""
        return (
            self.validation.steps_done
            if self.validation
            else max((int(line["step"]) for line in self.lines), default=0)
        )

    def curve(self, name: str) -> Curve:
        """What was logged of a metric."""
        there = [(int(line["step"]), line[name]) for line in self.lines if name in line and math.isfinite(line[name])]
        return Curve(tuple(step for step, _ in there), tuple(value for _, value in there))

    def metrics(self) -> dict[str, float]:
        """What the published weights reach on the validation part, by name; else the last evaluation."""
        if self.validation is not None:
            return self.validation.metrics.named()
        evaluated = [line for line in self.lines if any(name.startswith(VALIDATION) for name in line)]
        last = evaluated[-1] if evaluated else {}
        return {name.removeprefix(VALIDATION): value for name, value in last.items() if name.startswith(VALIDATION)}


@dataclass(frozen=True)
class RunRecord:
    """A run as its files describe it; `parts`: training, validation and test images."""

    folder: RunFolder
    vqvae: StageRecord
    sharp: StageRecord | None
    priors: Sequence[StageRecord]
    parts: tuple[int, int, int] | None
    evaluation: Evaluation | None

    @property
    def settings(self) -> VQVAERun:
        """Of stage 1."""
        assert isinstance(self.vqvae.settings, VQVAERun)
        return self.vqvae.settings

    @property
    def stages(self) -> list[StageRecord]:
        """All that have been begun, in order."""
        return [self.vqvae, *([] if self.sharp is None else [self.sharp]), *self.priors]

    @property
    def unfinished(self) -> list[StageRecord]:
        """Those of which no weights are published, or that are trained further."""
        return [stage for stage in self.stages if stage.validation is None]


def read_record(path: str | Path) -> RunRecord:
    """Read what a run has written. Raises CheckpointError where no training has begun, or a file is damaged."""
    check_paths(run=path)
    folder = RunFolder(Path(path))
    if not folder.contains_run():
        there = "is no run folder: no training has begun in it" if folder.path.is_dir() else "is not there"
        raise CheckpointError(f"{folder.path} {there}")
    vqvae = _stage(folder, folder.vqvae, VQVAERun)
    assert isinstance(vqvae.settings, VQVAERun)
    priors = [folder.prior(level) for level in range(vqvae.settings.model.levels)]
    sharp = folder.decoder(SHARP)
    split = load_split(folder.vqvae / SPLIT) if (folder.vqvae / SPLIT).exists() else None
    return RunRecord(
        folder,
        vqvae,
        _stage(folder, sharp, DecoderRun) if _has_begun(sharp) else None,
        [_stage(folder, stage, PriorRun) for stage in priors if _has_begun(stage)],
        None if split is None else (len(split.train), len(split.validation), len(split.test)),
        read_evaluation(folder),
    )


def _has_begun(stage: Path) -> bool:
    return is_finished(stage) or (stage / IN_PROGRESS).exists()


def _stage(folder: RunFolder, stage: Path, kind: type[Saved]) -> StageRecord:
    finished, name = is_finished(stage), str(stage.relative_to(folder.path))
    settings = read_config(stage, kind, CONFIG if finished else IN_PROGRESS)
    validation = read_validation(stage) if finished else None
    return StageRecord(name, settings, read_metrics(stage / METRICS), validation, _resumed_at(folder, name))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that can be read and name their step; none where there is no such file."""
    if not path.is_file():
        return []
    lines = map(numbers_of, path.read_text(errors="replace").splitlines())
    return [line for line in lines if math.isfinite(line.get("step", math.nan))]


def _resumed_at(folder: RunFolder, stage: str) -> int | None:
    """Of the last command on a run, if it was about this stage: earlier ones leave no trace."""
    path = folder.path / STATUS
    if not path.exists():
        return None
    status = validated(path, read_json(path), Status)
    return status.first_step or None if status.stage == stage else None
