"""What config.json holds, of each stage."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.config.data import DataConfig
from pipeline.config.training import AugmentConfig, TrainingConfig
from pipeline.formats import FORMAT_VERSION, read_current
from pipeline.runs.layout import CONFIG
from pipeline.storage import JsonObject, validated
from stage1_vqvae import ObjectiveConfig, VQVAEConfig
from stage2_prior import GuidanceScale, PriorConfig

# Continuous bottlenecks that hold codes to N(0, I), so that new codes can be drawn from it.
SAMPLED_FROM_NORMAL = ("gaussian", "mmd")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class InitialRun:
    """The run that another one began from, and the hashes of what its weights were."""

    run: str
    codes_sha256: str
    decoder_sha256: str

    def __str__(self) -> str:
        return f"{self.run}, codes_sha256 {self.codes_sha256[:12]}, decoder_sha256 {self.decoder_sha256[:12]}"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class VQVAERun:
    """config.json of stage 1."""

    format_version: Literal[8] = FORMAT_VERSION
    kind: Literal["vqvae"] = "vqvae"
    model: VQVAEConfig
    training: TrainingConfig
    data: DataConfig
    fingerprint: str  # of the images
    test_fingerprint: str | None = None  # of the files of an official test part
    class_names: tuple[str, ...]
    init: InitialRun | None = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PriorRun:
    """config.json of stage 2 of a level, with the hash of what decides the meaning of its codes.

    `guidance` is what samples are drawn with where none is given; of several levels the first one's counts. It was
    resolved when the training began, so that a seed keeps its pictures; folders from before there was one have 1.
    """

    format_version: Literal[8] = FORMAT_VERSION
    kind: Literal["prior"] = "prior"
    model: PriorConfig
    training: TrainingConfig
    augmentation: AugmentConfig = AugmentConfig()
    level: int = 0
    codes_sha256: str
    class_names: tuple[str, ...]
    class_weights: tuple[float, ...]
    guidance: GuidanceScale = 1.0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DecoderRun:
    """config.json of a decoder that was trained further, with the hash of what decides the meaning of its codes."""

    format_version: Literal[8] = FORMAT_VERSION
    kind: Literal["decoder"] = "decoder"
    objective: ObjectiveConfig
    training: TrainingConfig
    codes_sha256: str


StageRun: TypeAlias = VQVAERun | PriorRun | DecoderRun
Saved = TypeVar("Saved", VQVAERun, PriorRun, DecoderRun)


def read_config(folder: Path, kind: type[Saved], name: str = CONFIG) -> Saved:
    """The configuration of a stage's model, or with `name` of the training in progress. Raises CheckpointError."""
    path = folder / name
    return validated(path, read_current(path), kind)


def as_json(config: StageRun) -> JsonObject:
    """What config.json holds."""
    return asdict(config)


def codes_in_words(config: VQVAEConfig) -> str:
    """The codes of an image: how many, and of what kind."""
    grids = " + ".join(f"{rows} x {columns}" for rows, columns in config.grids)
    if not config.is_discrete:
        return f"{grids}, each {config.dimension} numbers ({config.bottleneck})"
    return f"{grids}, each one of {config.num_codes} ({config.bottleneck})"


def network_in_words(config: PriorConfig) -> str:
    """The kind of network that a prior is."""
    return {"pixelcnn": "gated PixelCNN", "pixelsnail": "PixelSNAIL", "transformer": "transformer"}[config.prior]


def images_in_words(config: VQVAEConfig) -> str:
    """Channels, height and width of an image."""
    return f"{config.channels} x {config.height} x {config.width}"
