"""How good a run is, as `gen evaluate` has measured it: evaluation.json."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.formats import FORMAT_VERSION, read_current
from pipeline.runs.layout import RunFolder
from pipeline.storage import validated, write_json
from stage2_prior import GuidanceScale, GuidanceSchedule, Temperature


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Figure:
    """A measured value, and its standard error where one is known."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.error is None else f"{self.value:.4g} +- {self.error:.1g}"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Setting:
    """How samples were drawn."""

    guidance: GuidanceScale
    guidance_schedule: GuidanceSchedule = "constant"
    temperature: Temperature

    def __str__(self) -> str:
        schedule = "" if self.guidance_schedule == "constant" else f" {self.guidance_schedule}"
        return f"guidance {self.guidance:g}{schedule}, temperature {self.temperature:g}"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Measured:
    """Samples of a setting, and their figures by name."""

    setting: Setting
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class JudgeFacts:
    """The network whose features and decisions the figures rest on, and how often it is right on test images."""

    number: Literal[1, 2]
    sha256: str
    learned: Literal["classes", "rotations"]
    accuracy: Figure


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Evaluation:
    """evaluation.json of a run and a judge: figures by name.

    `floor` compares validation with test images, `reconstructed` the reconstructions of validation images with test
    images: what samples can be compared with. `settings` are those last compared on the validation part, with `best`
    among them; `samples` were measured on the test part, of the best or of the one asked for. `notes` say what could
    not be measured, and why.
    """

    format_version: Literal[8] = FORMAT_VERSION
    kind: Literal["evaluation"] = "evaluation"
    codes_sha256: str
    decoder_sha256: str
    prior_sha256: str
    judge: JudgeFacts
    images: int  # of each set that is compared
    test_images: int  # that stage 1 and 2 are measured on
    test_data: str | None = None  # where the test images are, if they are no part of the data
    seed: int
    stage1: dict[str, Figure]
    stage2: dict[str, Figure]
    classes: dict[str, Figure]  # nats per code of the test images of each class
    floor: dict[str, Figure]
    reconstructed: dict[str, Figure]
    settings: tuple[Measured, ...]
    best: Setting | None = None
    samples: Measured | None
    notes: tuple[str, ...] = ()


def evaluation_file(folder: RunFolder, judge: int = 1) -> Path:
    """Where the evaluation by a judge lies."""
    return folder.path / ("evaluation.json" if judge == 1 else f"evaluation-judge-{judge}.json")


def write_evaluation(folder: RunFolder, evaluation: Evaluation) -> None:
    """Write it into the run, in place of an earlier one by the same judge."""
    write_json(evaluation_file(folder, evaluation.judge.number), asdict(evaluation))


def read_evaluation(folder: RunFolder, judge: int = 1) -> Evaluation | None:
    """The evaluation of a run by a judge; None where there is none yet. Raises CheckpointError."""
    path = evaluation_file(folder, judge)
    if not path.exists():
        return None
    return validated(path, read_current(path), Evaluation)
