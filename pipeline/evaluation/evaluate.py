"""How good a run is: `evaluate()`, which `gen evaluate` calls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from pipeline import processes
from pipeline.config.arguments import EvaluateArguments
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.options import build
from pipeline.data.code_maps import read_parts as read_code_maps
from pipeline.data.splits import load_split
from pipeline.errors import GenError, UsageError
from pipeline.evaluation import likelihood, pictures
from pipeline.evaluation.measures.means import fraction_of
from pipeline.evaluation.measures.memory import repeats
from pipeline.evaluation.measures.sets import LEAST
from pipeline.evaluation.parts import Labelled, Source, read_parts
from pipeline.evaluation.stage1 import stage1_figures
from pipeline.evaluation.yardstick import Judged, Yardstick, yardstick_of
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.runs.card import write_card
from pipeline.runs.evaluation import Evaluation, Figure, Measured, Setting, write_evaluation
from pipeline.runs.layout import SPLIT
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.samples import Samples
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
    reporter: Reporter | None = None,
    **options: Unpack[EvaluateArguments],
) -> list[Evaluation]:
    """Measure runs of one data set on its test part, beside two references, by a judge; write each evaluation.json.

    Without `runs`, the newest. `data`, or `images` with `targets`: where the images are now, if not
    where they were. `test_data`: other test images than the run's own, which no training may have seen. `options` are
    the fields of EvaluateConfig. Of several settings (`guidance`, `temperature`) the one of the least Fréchet distance
    (of kernel distance, where images are few) to the validation part is chosen, and that one is measured on the test
    part. Where accelerate has launched several processes they divide the drawing of samples. Raises GenError, also for
    runs of different images or parts, which no judge can compare.
    """
    (config,) = build(options, EvaluateConfig)
    asked = runs or (None,)
    for run in asked:
        check_paths(run=None if isinstance(run, Model) else run, data=data, test_data=test_data)
    launch = Launch({}, processes.start(), reporter or reporter_for_api(), None)
    models = [loaded(run, "finished", device) for run in asked]
    _check_alike(models)
    first = models[0]
    parts = read_parts(first.run, Source(data, test_data, images, targets), launch)
    yardstick = yardstick_of(
        parts, config, flip=first.vqvae.config.data.flip, device=first.device, reporter=launch.reporter
    )
    launch.reporter.say("measuring the validation images against the test images, as the floor")
    floor = yardstick.measured(*yardstick.real["validation"]).figures
    return [_Evaluating(model, yardstick, config, launch).run(floor) for model in models]


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
            "--flip": ours.data.flip != theirs.data.flip,
        }
        names = [name for name, differs in differing.items() if differs]
        if names:
            raise UsageError(
                f"{first.run.folder.path} and {other.run.folder.path} have different {' and '.join(names)}, so that "
                "their judges would differ, and figures of one would say nothing beside those of the other; evaluate "
                "them one at a time"
            )


class _Drawn(NamedTuple):
    """Samples of a setting, and their figures against the validation part, where settings are compared."""

    samples: Samples
    setting: Setting
    figures: dict[str, Figure]

    @property
    def distance(self) -> float:
        """By which settings are chosen."""
        return self.figures.get("frechet_distance", self.figures["kernel_distance"]).value


@dataclass
class _Evaluating:
    """One run under the yardstick."""

    model: Model
    yardstick: Yardstick
    config: EvaluateConfig
    launch: Launch
    settings: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, floor: dict[str, Figure]) -> Evaluation:
        """Measure all that applies to this run, and write it there."""
        model, yardstick, config = self.model, self.yardstick, self.model.vqvae.config
        self.launch.reporter.say(f"evaluating {model.run.folder.path}")
        self.notes += yardstick.notes
        test, validation = yardstick.real["test"], yardstick.real["validation"]
        nats = likelihood.likelihood(model, test, self.launch.reporter) if model.priors else None
        restored = model.reconstruct(validation.images).numpy()
        drawn = self._drawn()
        judged = self._judged(drawn.samples) if drawn else None
        evaluation = Evaluation(
            codes_sha256=model.vqvae.codes_sha256,
            decoder_sha256=model.vqvae.decoder_sha256,
            prior_sha256=model.sampler().prior_sha256 if drawn else "",
            judge=yardstick.facts,
            images=yardstick.images,
            seed=self.config.seed,
            stage1=self._stage1(test),
            stage2=likelihood.figures(nats, config.model.values) if nats else {},
            classes=likelihood.by_class(nats, test, config.class_names) if nats else {},
            floor=floor,
            reconstructed=yardstick.measured(restored, validation.labels).figures,
            settings=tuple(self.settings),
            chosen=Measured(setting=drawn.setting, figures=judged.figures) if drawn and judged else None,
            notes=tuple(self.notes),
        )

        def write() -> None:
            write_evaluation(model.run.folder, evaluation)
            write_card(model.run.folder, evaluation)
            model.run.folder.evaluation.mkdir(exist_ok=True)
            if nats:
                pictures.write_nats(model.run.folder, nats.levels)
            if drawn and judged:
                trained = yardstick.parts.image_set.images
                pictures.write_nearest(model.run.folder, drawn.samples.images.numpy(), trained, judged.nearest)

        processes.on_main(self.launch.accelerator, write)
        return evaluation

    def _stage1(self, test: Labelled) -> dict[str, Figure]:
        codes = self.model.encode(test.images)
        if not self.model.vqvae.config.model.is_discrete:
            bottleneck = self.model.vqvae.config.model.bottleneck
            self.notes.append(f"no codebook, and no stage 2: the codes of a {bottleneck} bottleneck are numbers")
        return stage1_figures(self.model, test, codes, self.model.decode(codes).numpy(), self.yardstick)

    def _drawn(self) -> _Drawn | None:
        """Samples of the setting asked for, or of the best of several by the validation part; None where there are
        none to be had."""
        try:
            self.model.run.check_can_be_sampled()
        except GenError as error:
            self.notes.append(f"no samples: {error}")
            return None
        asked = list(product(self.config.guidance or (None,), self.config.temperature or (None,)))
        if len(asked) == 1:
            return self._draw(*asked[0])
        if self.yardstick.images < LEAST:
            raise UsageError(
                f"choosing among {len(asked)} settings takes {LEAST} validation and test images at least, and there "
                f"are {self.yardstick.images}; give one --guidance and one --temperature"
            )
        return min((self._compared(*setting) for setting in asked), key=lambda one: one.distance)

    def _draw(self, guidance: float | None, temperature: float | None) -> _Drawn:
        options = self.model.resolve(SamplingOptions(guidance=guidance, temperature=temperature))
        assert isinstance(options.guidance, float) and options.temperature is not None
        setting = Setting(guidance=options.guidance, temperature=options.temperature)
        self.launch.reporter.say(f"drawing {self.yardstick.images:,} samples, {setting}")
        samples = self.model.sample(
            self.yardstick.images,
            seed=self.config.seed,
            options=options,
            accelerator=self.launch.accelerator,
            reporter=self.launch.reporter,
        )
        return _Drawn(samples, setting, {})

    def _compared(self, guidance: float | None, temperature: float | None) -> _Drawn:
        drawn = self._draw(guidance, temperature)
        images, labels = drawn.samples.images.numpy(), drawn.samples.labels
        figures = self.yardstick.compared(images, None if labels is None else labels.numpy(), "validation")
        self.settings.append(Measured(setting=drawn.setting, figures=figures))
        return drawn._replace(figures=figures)

    def _judged(self, samples: Samples) -> Judged:
        labels = None if samples.labels is None else samples.labels.numpy()
        judged = self.yardstick.measured(samples.images.numpy(), labels)
        trained = self._trained_codes() if self.model.priors else None
        repeated = {} if trained is None else {"repeated_codes": fraction_of(repeats(samples.codes, trained))}
        return judged._replace(figures=judged.figures | repeated)

    def _trained_codes(self) -> Codes | None:
        """The code maps that the prior has learned, if they are still there."""
        prior, vqvae, folder = self.model.priors[0].config, self.model.vqvae, self.model.run.folder
        identity = codes_identity(folder, vqvae, prior.augmentation)
        maps = read_code_maps(folder.codes, identity, vqvae.config.model, len(vqvae.config.class_names))
        if maps is None:
            self.notes.append(
                f"no share of repeated code maps: those that the prior was trained on left {folder.codes}"
            )
        return None if maps is None else maps["train"].levels
