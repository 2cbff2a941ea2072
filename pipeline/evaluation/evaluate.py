"""How good a run is: `evaluate()`, which `gen evaluate` calls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline import processes
from pipeline.config.arguments import EvaluateArguments
from pipeline.config.evaluation import MOST_BY_DEFAULT, EvaluateConfig
from pipeline.config.options import build
from pipeline.config.sampling import DecoderName
from pipeline.data.codes.shards import read_parts as read_code_maps
from pipeline.data.splits import load_split
from pipeline.errors import CheckpointError, GenError, UsageError, WeightsUnavailableError
from pipeline.evaluation import likelihood, pictures
from pipeline.evaluation.measures.inception import lpips_of
from pipeline.evaluation.measures.means import fraction_of, mean_of
from pipeline.evaluation.measures.memory import repeats
from pipeline.evaluation.measures.sets import LEAST
from pipeline.evaluation.parts import Labelled, Source, read_parts
from pipeline.evaluation.stage1 import stage1_figures
from pipeline.evaluation.yardstick import Yardstick, near_quantile, yardstick_of
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.resources import check_writable
from pipeline.runs.card import write_card
from pipeline.runs.evaluation import (
    Evaluation,
    Figure,
    JudgeFacts,
    Measured,
    Setting,
    evaluation_file,
    read_evaluation,
    write_evaluation,
)
from pipeline.runs.layout import SPLIT
from pipeline.runs.loading import priors_sha256
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.options import differing_hashes
from pipeline.storage import check_paths
from pipeline.training.launch import Launch
from pipeline.training.stage2 import codes_identity
from stage1_vqvae import Codes
from stage2_prior import SamplingOptions


def evaluate(
    *runs: str | Path | Model | None,
    data: str | None = None,
    test_data: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[EvaluateArguments],
) -> list[Evaluation]:
    """Measure runs of one data set on its test part, beside two references, by a judge; write each evaluation.json.

    Without `runs`, the newest. `data`, or `images` with `targets`: where the images are now, if not where they were.
    `test_data`: other test images than the run's own, which no training may have seen. `decoder`: as of `load`.
    `options` are the fields of EvaluateConfig. Of several settings (`guidance`, `temperature`) the one of the least
    Fréchet distance (of kernel distance, where images are few) to the validation part is chosen, and measured on the
    test part with other samples. Where accelerate has launched several processes they divide the drawing of samples.
    Raises GenError, also for runs of different images or parts, which no judge can compare.
    """
    (config,) = build(options, EvaluateConfig)
    asked = runs or (None,)
    for run in asked:
        check_paths(run=None if isinstance(run, Model) else run, data=data, test_data=test_data)
    launch = Launch({}, processes.start(), reporter or reporter_for_api(), None)
    models = [loaded(run, "finished", device, decoder=decoder) for run in asked]
    evaluating = [_Evaluating(model, config, test_data, launch) for model in models]
    _check_alike(models)
    for one in evaluating:
        processes.on_main(launch.accelerator, one.check_writable)
        one.plan()
    first = evaluating[0].model
    most = None if config.inception else max(MOST_BY_DEFAULT, config.n or 0)
    parts = read_parts(first.run, Source(data, test_data, images, targets), most, launch)
    flip = any(one.model.vqvae.config.data.flip for one in evaluating)
    yardstick = yardstick_of(parts, config, flip=flip, device=first.device, reporter=launch.reporter)
    return [one.run(yardstick) for one in evaluating]


def _check_alike(models: Sequence[Model]) -> None:
    """Raise UsageError unless one judge can be trained for all runs: on the same images, divided alike."""
    first, *others = models
    for other in others:
        ours, theirs = first.vqvae.config, other.vqvae.config
        splits = [load_split(model.run.folder.vqvae / SPLIT) for model in (first, other)]
        differing = {
            "images": ours.fingerprint != theirs.fingerprint,
            "test images": ours.test_fingerprint != theirs.test_fingerprint,
            "parts (by --seed, --validation, --test)": any(
                not np.array_equal(a, b) for a, b in zip(*splits, strict=True)
            ),
        }
        names = [name for name, differs in differing.items() if differs]
        if names:
            raise UsageError(
                f"{first.run.called} and {other.run.called} have different {' and '.join(names)}, so that "
                "their judges would differ, and figures of one would say nothing beside those of the other; evaluate "
                "them one at a time"
            )


class _Drawn(NamedTuple):
    """Samples of a setting."""

    setting: Setting
    images: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, "n"] | None
    codes: Codes


class _Sets(NamedTuple):
    """Figures of sets of images, and the samples that are nearest to a training image with these, for a picture."""

    reconstructed: dict[str, Figure]
    compared: list[Measured]
    samples: Measured | None
    pairs: UInt8[np.ndarray, "m c h w"] | None


@dataclass
class _Evaluating:
    """One run, and what is to be measured of it."""

    model: Model
    config: EvaluateConfig
    test_data: str | None
    launch: Launch
    settings: list[SamplingOptions] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check_writable(self) -> None:
        """Raise UsageError or ResourceError, before any work, where the figures could not be written."""
        self.model.run.check_is_own()
        check_writable(evaluation_file(self.model.run.folder, self.config.judge))

    def plan(self) -> None:
        """The settings to draw with. Raises UsageError for one that the run does not support."""
        try:
            self.model.run.check_can_be_sampled()
        except GenError as error:
            self.notes.append(f"no samples: {error}")
            return
        guidance, schedules = self.config.guidance or (None,), self.config.guidance_schedule or (None,)
        config = self.model.vqvae.config.model
        if not config.is_discrete and (self.config.guidance or self.config.guidance_schedule):
            self.notes.append(f"no guidance: the codes of a {config.bottleneck} bottleneck know no classes")
            guidance, schedules = (None,), (None,)
        # At scale 1 all schedules are one.
        guided = dict.fromkeys((scale, None if scale == 1 else way) for scale, way in product(guidance, schedules))
        for (scale, schedule), temperature in product(guided, self.config.temperature or (None,)):
            asked = SamplingOptions(guidance=scale, guidance_schedule=schedule, temperature=temperature)
            self.settings.append(self.model.sampler(options=asked).options)

    def run(self, yardstick: Yardstick) -> Evaluation:
        """Measure all that applies to this run, and write it there."""
        model, config, test = self.model, self.model.vqvae.config, yardstick.parts.test
        self.launch.reporter.say(f"evaluating {model.run.folder.path}")
        sets = self._sets(yardstick)
        nats = likelihood.likelihood(model, test, self.launch.reporter) if model.priors else None
        stage1 = self._stage1(test, yardstick)
        evaluation = Evaluation(
            codes_sha256=model.vqvae.codes_sha256,
            decoder_sha256=model.vqvae.decoder_sha256,
            prior_sha256=priors_sha256(model.priors),
            judge=yardstick.facts,
            images=yardstick.images,
            test_images=len(test.images),
            test_data=self.test_data,
            seed=self.config.seed,
            stage1=stage1,
            stage2=likelihood.figures(nats, config.model.values) if nats else {},
            classes=likelihood.by_class(nats, test, config.class_names) if nats else {},
            floor=yardstick.floor.figures,
            reconstructed=sets.reconstructed,
            settings=tuple(sets.compared),
            best=_best(sets.compared),
            samples=sets.samples,
            notes=(*self.notes, *yardstick.notes),
        )

        def write() -> None:
            write_evaluation(model.run.folder, evaluation)
            write_card(model.run.folder, evaluation)
            model.run.folder.evaluation.mkdir(exist_ok=True)
            if nats:
                pictures.write_nats(model.run.folder, nats.levels)
            if sets.pairs is not None:
                pictures.write_nearest(model.run.folder, sets.pairs)

        processes.on_main(self.launch.accelerator, write)
        return evaluation

    def _sets(self, yardstick: Yardstick) -> _Sets:
        """Reconstructions of validation images and samples, against the test part."""
        validation, labels = yardstick.real["validation"]
        codes, trained = self.model.encode(validation), self._trained_codes()
        restored = yardstick.measured(self.model.decode(codes).numpy(), labels)
        reconstructed = restored.figures | _repeated(codes, trained)
        if not self.settings:
            return _Sets(reconstructed, [], None, None)
        compared = self._compared(yardstick) if len(self.settings) > 1 else self._compared_before(yardstick.facts)
        drawn = self._draw(self._chosen(compared), yardstick.images, self.config.seed)
        judged = yardstick.measured(drawn.images, drawn.labels, near_quantile(restored.nearest))
        figures = judged.figures | _repeated(drawn.codes, trained)
        pairs = pictures.nearest_pairs(drawn.images, yardstick.parts.image_set.images, judged.nearest)
        return _Sets(reconstructed, compared, Measured(setting=drawn.setting, figures=figures), pairs)

    def _stage1(self, test: Labelled, yardstick: Yardstick) -> dict[str, Figure]:
        codes = self.model.encode(test.images)
        restored = self.model.decode(codes).numpy()
        if not self.model.vqvae.config.model.is_discrete:
            bottleneck = self.model.vqvae.config.model.bottleneck
            self.notes.append(f"no codebook, and no stage 2: the codes of a {bottleneck} bottleneck are numbers")
        found = stage1_figures(self.model, test, codes, restored, yardstick)
        if self.config.inception:
            try:
                distances = lpips_of(test.images, restored, self.model.device, self.launch.reporter)
                found["lpips"] = mean_of(distances)
            except (WeightsUnavailableError, UsageError) as error:
                self.notes.append(f"no LPIPS: {error}")
        return found

    def _compared(self, yardstick: Yardstick) -> list[Measured]:
        """The figures of each setting against the validation part; other samples are measured in the end."""
        if yardstick.images < LEAST:
            raise UsageError(
                f"choosing among {len(self.settings)} settings takes {LEAST} validation and test images at least, and "
                f"there are {yardstick.images}; give one --guidance and one --temperature"
            )
        found = []
        for options in self.settings:
            drawn = self._draw(options, yardstick.images, (self.config.seed + 1) % 2**63)
            figures = yardstick.compared(drawn.images, drawn.labels, "validation")
            found.append(Measured(setting=drawn.setting, figures=figures))
        return found

    def _compared_before(self, judge: JudgeFacts) -> list[Measured]:
        """The settings that were compared last time, if that was this very model under this judge."""
        try:
            before = read_evaluation(self.model.run.folder, self.config.judge)
        except CheckpointError:
            return []  # it will be written anew
        if before is None or before.judge.sha256 != judge.sha256:
            return []
        return [] if differing_hashes(before, self.model.vqvae, self.model.priors) else list(before.settings)

    def _chosen(self, compared: list[Measured]) -> SamplingOptions:
        best = _best(compared) if len(self.settings) > 1 else None
        return next((one for one in self.settings if best == _setting(one)), self.settings[0])

    def _draw(self, options: SamplingOptions, n: int, seed: int) -> _Drawn:
        setting = _setting(options)
        self.launch.reporter.say(f"drawing {n:,} samples, {setting}")
        samples = self.model.sample(
            n, seed=seed, options=options, accelerator=self.launch.accelerator, reporter=self.launch.reporter
        )
        labels = None if samples.labels is None else samples.labels.numpy()
        return _Drawn(setting, samples.images.numpy(), labels, samples.codes)

    def _trained_codes(self) -> tuple[Codes, ...]:
        """The code maps that the prior has learned, in all views, shard by shard, if they are still there."""
        if not self.model.priors:
            return ()
        prior, vqvae, folder = self.model.priors[0].config, self.model.vqvae, self.model.run.folder
        identity = codes_identity(folder, vqvae, prior.augmentation)
        maps = read_code_maps(folder.codes, identity, vqvae.config.model, len(vqvae.config.class_names))
        if maps is None:
            self.notes.append(f"no repeated codes: those that the prior was trained on are no longer in {folder.codes}")
            return ()
        return tuple(codes for shard in maps["train"].shards for codes in (shard.levels, *shard.views))


def _setting(options: SamplingOptions) -> Setting:
    guidance, schedule, temperature = options.guidance, options.guidance_schedule, options.temperature
    assert isinstance(guidance, float) and schedule is not None and temperature is not None
    return Setting(guidance=guidance, guidance_schedule=schedule, temperature=temperature)


def _best(compared: Sequence[Measured]) -> Setting | None:
    """The setting of the least Fréchet distance, or kernel distance where images are few."""

    def distance(one: Measured) -> float:
        return one.figures.get("frechet_distance", one.figures["kernel_distance"]).value

    return min(compared, key=distance).setting if compared else None


def _repeated(codes: Codes, trained: tuple[Codes, ...]) -> dict[str, Figure]:
    return {"repeated_codes": fraction_of(repeats(codes, trained))} if trained else {}
