"""Opening a run: each configuration is parsed once, each file verified once, of the stages that are needed alone."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pipeline.config.sampling import DecoderName
from pipeline.errors import CheckpointError, GenError, UsageError
from pipeline.runs.layout import IN_PROGRESS, RUNS, SHARP, WEIGHTS, RunFolder, is_finished
from pipeline.runs.published.names import folder_of, published_name
from pipeline.runs.saved import SAMPLED_FROM_NORMAL, DecoderRun, PriorRun, VQVAERun, read_config
from pipeline.storage import check_paths, verify

# Stage 1 alone; whatever is finished; or all that sampling images takes.
Needed = Literal["vqvae", "finished", "samples"]


@dataclass(frozen=True)
class Run:
    """A run folder with a finished stage 1, and the configurations of the stages that it was opened for."""

    folder: RunFolder
    vqvae: VQVAERun
    priors: tuple[PriorRun | None, ...]  # of each level of codes, None where there is no finished one; () if not needed
    sharp: DecoderRun | None = None  # the decoder that stands in for that of stage 1
    name: str | None = None  # of a published run, which is not written into

    @property
    def decoder(self) -> DecoderName:
        """Which decoder makes the images."""
        return "plain" if self.sharp is None else "sharp"

    @property
    def called(self) -> str:
        """What names this run: its path, or the name it is published under."""
        return self.name or str(self.folder.path)

    @property
    def outputs(self) -> RunFolder:
        """Where what is made of it goes unless told otherwise: into it, or beside the runs here if it is published."""
        return self.folder if self.name is None else RunFolder(RUNS / re.sub(r"[^\w.]+", "-", self.name))

    def check_is_own(self, otherwise: str = "") -> None:
        """Raise UsageError for a published run; `otherwise` is what to do besides copying it."""
        if self.name is not None:
            raise UsageError(
                f"{self.name} is a published run, which is not written into; copy it into a folder of your own with "
                f"`gen pull {self.name}`{otherwise}"
            )

    def check_can_be_sampled(self) -> None:
        """Raise UsageError or CheckpointError unless images can be sampled from this run."""
        path, model = self.called, self.vqvae.model
        if not model.is_discrete:
            check_latents(self.vqvae)
            return
        missing = [str(level) for level, prior in enumerate(self.priors) if prior is None]
        if missing and model.levels > 1:
            raise CheckpointError(
                f"{path} has no finished prior of level {', '.join(missing)}, of {model.levels} levels; "
                f"train them with `gen train-prior {path} --resume auto`"
            )
        if missing and (self.folder.prior(0) / IN_PROGRESS).exists():
            raise CheckpointError(
                f"the prior of {path} is unfinished; go on with `gen train-prior {path} --resume auto`"
            )
        if missing:
            raise CheckpointError(f"{path} has no finished prior; train one with `gen train-prior {path}`")

    @property
    def can_be_sampled(self) -> bool:
        """Whether images can be sampled from this run."""
        try:
            self.check_can_be_sampled()
        except GenError:
            return False
        return True


def open_run(path: str | Path | None, needed: Needed, decoder: DecoderName | None = None) -> Run:
    """Open the named run, or the newest under runs/: parse the configurations of what is needed, and verify its files.

    `path`: a folder, pretrained:NAME, or hf://USER/NAME, which is downloaded unless it is in the cache.
    `decoder`: which one makes its images; by default the sharp one where there is one.
    Raises UsageError or CheckpointError, also when there is no run with what is needed.
    """
    check_paths(run=path)
    if decoder is not None and not (isinstance(decoder, str) and decoder in get_args(DecoderName)):
        raise UsageError(f"decoder {decoder!r:.60} is neither of {' and '.join(get_args(DecoderName))}")
    run = _parse(RunFolder(folder_of(path)), needed) if path is not None else _newest(needed)
    run = replace(run, sharp=_sharp(run.folder, decoder), name=None if path is None else published_name(path))
    if needed == "samples":
        run.check_can_be_sampled()
    verify(run.folder.vqvae)
    if run.sharp is not None:
        verify(run.folder.decoder(SHARP))
    for level, prior in enumerate(run.priors):
        if prior is not None:
            verify(run.folder.prior(level))
    return run


def parse_run(folder: RunFolder) -> Run:
    """The configurations of all finished stages of a run, whose files are not verified. Raises CheckpointError."""
    run = _parse(folder, "finished")
    return replace(run, sharp=_sharp(folder, None))


def _sharp(folder: RunFolder, decoder: DecoderName | None) -> DecoderRun | None:
    """The configuration of the sharp decoder, if that is the one to use. Raises UsageError where there is none."""
    stage = folder.decoder(SHARP)
    if decoder == "plain" or (decoder is None and not is_finished(stage)):
        return None
    if not is_finished(stage):
        resume = " --resume auto" if (stage / IN_PROGRESS).exists() else ""
        state = "unfinished; go on" if resume else "not there; train it"
        raise UsageError(f"the sharp decoder of {folder.path} is {state} with `gen sharpen {folder.path}{resume}`")
    return read_config(stage, DecoderRun)


def check_latents(config: VQVAERun) -> None:
    """Raise UsageError unless a continuous bottleneck held its codes to a distribution."""
    if config.model.bottleneck not in SAMPLED_FROM_NORMAL:
        raise UsageError(
            "there is nothing to draw from: with --bottleneck none nothing says how codes are distributed; train with "
            "gaussian or mmd, or with vq and a prior"
        )


def _newest(needed: Needed) -> Run:
    """The newest run that has a finished stage 1, or that images can be sampled from. Raises UsageError for none."""
    finished = [folder for folder in map(RunFolder, RUNS.glob("*")) if is_finished(folder.vqvae)]
    complaint = ""
    for folder in sorted(finished, key=lambda folder: _changed(folder, needed), reverse=True):
        if needed != "samples":
            return _parse(folder, needed)
        try:
            run = _parse(folder, needed)
            run.check_can_be_sampled()
        except GenError as error:
            complaint = complaint or f" (passed over: {error})"
        else:
            return run
    missing = "prior" if needed == "samples" else "vqvae"
    raise UsageError(
        f"no finished {missing} under {RUNS.resolve()}; train one with `gen train-{missing}`, or name a run{complaint}"
    )


def _parse(folder: RunFolder, needed: Needed) -> Run:
    if not folder.path.is_dir():
        raise CheckpointError(f"there is no run folder {folder.path}")
    if not is_finished(folder.vqvae):
        if folder.contains_run():
            command = f"gen train-vqvae --out {folder.path} --resume auto"
            raise CheckpointError(f"stage 1 of {folder.path} is unfinished; go on with `{command}`")
        raise CheckpointError(f"{folder.path} is no run folder: no training has begun in it")
    vqvae = read_config(folder.vqvae, VQVAERun)
    stages = [folder.prior(level) for level in range(vqvae.model.levels)] if needed != "vqvae" else []
    return Run(folder, vqvae, tuple(read_config(s, PriorRun) if is_finished(s) else None for s in stages))


def _changed(folder: RunFolder, needed: Needed) -> float:
    """When what is needed of a run was finished."""
    stages = [folder.vqvae, *folder.priors.glob("*")] if needed == "samples" else [folder.vqvae]
    return max((stage / WEIGHTS).stat().st_mtime for stage in stages if is_finished(stage))
