"""A run folder: where each thing lies in it, what its configs hold, and how its models are loaded."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import nn

from pipeline.checkpoint import CONFIG, FORMAT_VERSION, IN_PROGRESS, WEIGHTS, is_finished
from pipeline.codes import AugmentConfig
from pipeline.data import DataConfig
from pipeline.errors import CheckpointError, UsageError, describe
from pipeline.settings import TrainingConfig
from pipeline.storage import load_strictly, read_json, sha256, verify
from stage1_vqvae import VQVAE, VQVAEConfig
from stage2_prior import Prior, PriorConfig, PriorTask, make_prior

RUNS = Path("runs")
SPLIT = "split.safetensors"

DRAWN_FROM_NORMAL = ("gaussian", "mmd")  # continuous bottlenecks that hold codes to N(0, I)

_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class VQVAERun:
    """config.json of stage 1."""

    format_version: Literal[3] = FORMAT_VERSION
    kind: Literal["vqvae"] = "vqvae"
    model: VQVAEConfig
    training: TrainingConfig
    data: DataConfig
    fingerprint: str
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class PriorRun:
    """config.json of stage 2 of a level, with the hash of the stage-1 weights that its codes mean something to."""

    format_version: Literal[3] = FORMAT_VERSION
    kind: Literal["prior"] = "prior"
    model: PriorConfig
    training: TrainingConfig
    augmentation: AugmentConfig = AugmentConfig()
    level: int = 0
    vqvae_sha256: str
    class_names: tuple[str, ...]
    class_weights: tuple[float, ...]


class RunFolder(NamedTuple):
    """The places in a run folder."""

    path: Path

    @property
    def vqvae(self) -> Path:
        """Stage 1."""
        return self.path / "vqvae"

    @property
    def codes(self) -> Path:
        """The extracted code maps."""
        return self.path / "codes"

    @property
    def priors(self) -> Path:
        """Stage 2, a folder a level."""
        return self.path / "prior"

    def prior(self, level: int) -> Path:
        """Stage 2 of a level of codes."""
        return self.priors / str(level)

    @property
    def samples(self) -> Path:
        """Generated images, a folder a seed."""
        return self.path / "samples"


Saved = TypeVar("Saved", VQVAERun, PriorRun)
Network = TypeVar("Network", bound=nn.Module)


def read_config(folder: Path, kind: type[Saved], name: str = CONFIG) -> Saved:
    """The configuration of a stage's model, or with `name` of the run in progress. Raises CheckpointError."""
    content = read_json(folder / name)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder / name} has format_version {version}; this version reads {FORMAT_VERSION}")
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise CheckpointError(f"{folder / name} is not a configuration of this kind: {describe(error)}") from error


def as_json(config: VQVAERun | PriorRun) -> dict[str, Any]:
    """What config.json holds."""
    return asdict(config)


def codes_in_words(config: VQVAEConfig) -> str:
    """The codes of an image: how many, and of what kind."""
    grids = " + ".join(f"{rows} x {columns}" for rows, columns in config.grids)
    if not config.is_discrete:
        return f"{grids}, each {config.code_dim} numbers ({config.bottleneck})"
    return f"{grids}, each one of {config.num_codes} ({config.bottleneck})"


def resuming(stage: Path, *, alone: bool = False) -> str:
    """The command that goes on with the training in a stage's folder, RUN/vqvae or RUN/prior/LEVEL.

    Of several levels it goes on with those that have been begun together, or with this one `alone`.
    """
    if not stage.name.isdigit():
        return f"gen train-vqvae --out {shlex.quote(str(stage.parent))} --resume auto"
    run = RunFolder(stage.parents[1])
    levels = read_config(run.vqvae, VQVAERun).model.levels
    together = all((run.prior(level) / IN_PROGRESS).exists() for level in range(levels))
    level = "" if levels == 1 or (together and not alone) else f" --level {stage.name}"
    return f"gen train-prior {shlex.quote(str(run.path))} --resume auto{level}"


class LoadedVQVAE(NamedTuple):
    """Stage 1, ready for use, its configuration, and the hash of its weights."""

    model: VQVAE
    config: VQVAERun
    sha256: str


def load_vqvae(run: RunFolder, device: torch.device | str = "cpu") -> LoadedVQVAE:
    """Load stage 1 of a run, verified. Raises CheckpointError."""
    verify(run.vqvae)
    config = read_config(run.vqvae, VQVAERun)
    model = VQVAE(config.model)
    load_strictly(model, run.vqvae / WEIGHTS)
    return LoadedVQVAE(_ready(model, device), config, sha256(run.vqvae / WEIGHTS))


class LoadedPrior(NamedTuple):
    """Stage 2 of a level, ready for use, its configuration, and the hash of its weights."""

    model: Prior
    config: PriorRun
    sha256: str


def load_prior(run: RunFolder, level: int, vqvae_sha256: str, device: torch.device | str = "cpu") -> LoadedPrior:
    """Load stage 2 of a level, verified to belong to these stage-1 weights. Raises CheckpointError."""
    folder = run.prior(level)
    verify(folder)
    config = read_config(folder, PriorRun)
    check_belongs(run, config, vqvae_sha256)
    task = PriorTask(make_prior(config.model))
    load_strictly(task, folder / WEIGHTS)
    return LoadedPrior(_ready(task, device).prior, config, sha256(folder / WEIGHTS))


def _ready(module: Network, device: torch.device | str) -> Network:
    """On the device, laid out for fast convolutions, and no longer to be trained."""
    return module.to(torch.device(device)).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def check_latents(config: VQVAERun) -> None:
    """Raise UsageError unless a continuous bottleneck held its codes to a distribution."""
    if config.model.bottleneck not in DRAWN_FROM_NORMAL:
        raise UsageError(
            "there is nothing to draw from: with --bottleneck none nothing says how codes are distributed; train with "
            "gaussian or mmd, or with vq and a prior"
        )


def check_drawable(run: RunFolder) -> None:
    """Raise UsageError or CheckpointError unless images can be drawn from a run."""
    config = read_config(run.vqvae, VQVAERun) if is_finished(run.vqvae) else None
    if config is not None and not config.model.is_discrete:
        check_latents(config)
    else:
        check_priors_are_finished(run, config.model.levels if config else 1)


def can_be_drawn(run: RunFolder) -> bool:
    """Whether images can be drawn from a run."""
    try:
        check_drawable(run)
    except (UsageError, CheckpointError):
        return False
    return True


def check_priors_are_finished(run: RunFolder, levels: int) -> None:
    """Raise CheckpointError unless a run has a prior to draw from, for each level of its codes."""
    missing = [level for level in range(levels) if not is_finished(run.prior(level))]
    if missing and levels > 1:
        raise CheckpointError(
            f"{run.path} has no finished prior of level {', '.join(map(str, missing))}, of {levels} levels; "
            f"train them with `gen train-prior {run.path} --resume auto`"
        )
    if missing:
        raise CheckpointError(f"{run.path} has no finished prior; train one with `gen train-prior {run.path}`")


def check_belongs(run: RunFolder, prior: PriorRun, vqvae_sha256: str) -> None:
    """Raise CheckpointError unless a prior was trained on the codes of these stage-1 weights."""
    if prior.vqvae_sha256 != vqvae_sha256:
        raise CheckpointError(
            f"the prior in {run.prior(prior.level)} was trained on the codes of another vqvae: sha256 "
            f"{prior.vqvae_sha256[:12]}, this one has {vqvae_sha256[:12]}; train a new prior with "
            f"`gen train-prior {run.path} --out NEW_RUN`"
        )


def find_run(run: str | Path | None, wanted: Literal["vqvae", "samples"]) -> RunFolder:
    """The named run, or the newest under runs/ that has a stage 1, or can be drawn from.

    Raises UsageError, CheckpointError.
    """
    if run is not None:
        folder = RunFolder(Path(run))
        if not folder.path.is_dir():
            raise CheckpointError(f"there is no run folder {run}")
        return folder
    folders = [folder for folder in map(RunFolder, RUNS.glob("*")) if is_finished(folder.vqvae)]
    if wanted == "samples":
        folders = [folder for folder in folders if can_be_drawn(folder)]
    if not folders:
        missing = "vqvae" if wanted == "vqvae" else "prior"
        raise UsageError(
            f"no finished {missing} under {RUNS.resolve()}; train one with `gen train-{missing}`, or name a run"
        )
    return max(folders, key=lambda folder: _changed(folder, wanted))


def _changed(run: RunFolder, wanted: Literal["vqvae", "samples"]) -> float:
    """When what is wanted of a run was finished."""
    stages = [run.vqvae, *run.priors.glob("*")] if wanted == "samples" else [run.vqvae]
    return max((stage / WEIGHTS).stat().st_mtime for stage in stages if is_finished(stage))
