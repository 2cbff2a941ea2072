"""What a model draws, how it draws, what it finds unusual, and what it may have copied: pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.data.pictures import evenly_spread
from pipeline.errors import GenError
from pipeline.evaluation.measures.memory import nearest_trained
from pipeline.evaluation.report.blocks import Block, Choice, Figure, Missing, Panel, Section, Slider
from pipeline.evaluation.report.images import dimmed, opaque, strip
from pipeline.evaluation.report.shown import Shown
from pipeline.evaluation.score import score, surprise_shown
from pipeline.reporting import Silent
from pipeline.runs.evaluation import Evaluation, Setting
from pipeline.sampling.complete import complete
from pipeline.sampling.model import Model
from pipeline.sampling.motion.film import moments
from pipeline.sampling.samples import Samples
from stage2_prior import SamplingOptions

_CLASSES, _SCALES = 12, 4  # at most, of samples
_OF_EACH = 8  # samples of a class
_SAMPLES = 64  # where they have no classes, and of which the nearest to training images are shown
_PIXELS = 2**18  # of all samples of a scale of guidance, about: they are kept without loss
_FRAMES, _DRAWN = 12, 3
_COMPLETED, _COMPLETIONS = 4, 3
_UNUSUAL = 8
_SCORED = 128
_KEPT = "top:0.5"


@dataclass(frozen=True)
class Drawing:
    """Samples of a model, drawn once for all that is shown of them."""

    shown: Shown
    evaluation: Evaluation | None

    @property
    def model(self) -> Model:
        """The model that draws."""
        return self.shown.model

    @property
    def measured(self) -> Setting | None:
        """How those samples were drawn that were measured."""
        return self.evaluation.samples.setting if self.evaluation and self.evaluation.samples else None

    @cached_property
    def options(self) -> SamplingOptions:
        """As the samples that were measured; else as the run draws by default."""
        return self.model.resolve(SamplingOptions(**asdict(self.measured)) if self.measured else SamplingOptions())

    @cached_property
    def samples(self) -> Samples:
        """By `options`."""
        return self.model.sample(_SAMPLES, options=self.options)


def stage2_sections(shown: Shown, evaluation: Evaluation | None) -> list[Section]:
    """Samples, how they are drawn, completions, unusual images and nearest training images."""
    drawing = Drawing(shown, evaluation)
    sections = [_section("samples", "Samples", _samples, drawing)]
    if shown.model.vqvae.config.model.is_discrete:
        sections += [
            _section("frames", "How a map is drawn", _frames, drawing),
            _section("completions", "Completions", _completions, drawing),
            _section("unusual", "What is unusual, and where", _unusual, drawing),
        ]
    return [*sections, _section("nearest", "Nearest training images", _nearest, drawing)]


def _section(name: str, title: str, make: Callable[[Drawing], Iterator[Block]], drawing: Drawing) -> Section:
    try:
        return Section(name, title, list(make(drawing)))
    except GenError as error:
        return Section(name, title, [Missing("Left out", str(error))])


def _samples(drawing: Drawing) -> Iterator[Block]:
    model, names = drawing.model, drawing.model.vqvae.config.class_names
    model.run.check_can_be_sampled()
    if not names or not model.priors:
        images = drawing.samples.images.numpy()
        yield Figure(
            f"{len(images)} samples",
            [Panel("", strip(images, f"{len(images)} images drawn by the model", 8))],
            "Drawn with seed 0, none chosen. They should be as varied as the originals above and hold together as a "
            "whole: good texture without a shape is a prior that sees too little of the map.",
        )
        return
    default = drawing.options.guidance
    assert isinstance(default, float)
    scales = _scales(drawing, default)
    own = "that of the samples that were measured" if drawing.measured else "this run's own"
    classes = evenly_spread(len(names), _CLASSES).tolist()
    config = model.vqvae.config.model
    of_each = max(2, min(_OF_EACH, _PIXELS // (len(classes) * config.height * config.width)))
    choices = [Choice(f"{scale:g}", _by_class(drawing, scale, classes, of_each)) for scale in scales]
    some = f" {len(classes)} of {len(names):,} classes are shown." if len(classes) < len(names) else ""
    yield Slider(
        "Samples by class",
        "guidance",
        choices,
        scales.index(default),
        f"Drawn with seed 0, none chosen; guidance {default:g} is {own}.{some} With more guidance, classes "
        "become clearer and the images of a row more alike: it is too strong where a row repeats itself, or colours "
        "and strokes are exaggerated.",
    )


def _scales(drawing: Drawing, default: float) -> list[float]:
    """The scales of guidance that were compared by the same schedule, and the run's own; some of them, where there are
    many."""
    own = drawing.model.resolve(SamplingOptions()).guidance
    assert isinstance(own, float)
    settings = [one.setting for one in drawing.evaluation.settings] if drawing.evaluation else []
    schedule = drawing.options.guidance_schedule
    others = sorted({own, *(one.guidance for one in settings if one.guidance_schedule == schedule)} - {default})
    return sorted([default, *(others[index] for index in evenly_spread(len(others), _SCALES - 1))])


def _by_class(drawing: Drawing, scale: float, classes: Sequence[int], of_each: int) -> list[Panel]:
    model, labels = drawing.model, [number for number in classes for _ in range(of_each)]
    options = replace(drawing.options, guidance=scale)
    drawn = model.sample(len(labels), label=labels, options=options).images.numpy()
    names = [model.vqvae.config.class_names[number] for number in classes]
    rows = drawn.reshape(len(classes), of_each, *drawn.shape[1:])
    return [
        Panel(name, strip(row, f"{of_each} samples of class {name}, guidance {scale:g}"))
        for name, row in zip(names, rows, strict=True)
    ]


def _frames(drawing: Drawing) -> Iterator[Block]:
    drawing.model.run.check_can_be_sampled()
    panels = []
    for index in range(_DRAWN):
        codes = tuple(level[index : index + 1] for level in drawing.samples.codes)
        seen = [dimmed(*moment) for moment in moments(drawing.model, codes, _FRAMES)]
        panels.append(Panel(f"sample {index}", strip(np.concatenate(seen), f"sample {index} being drawn")))
    yield Figure(
        "A dozen moments of a drawing",
        panels,
        "Codes are drawn from left to right and row by row, each given those before it, level after level where there "
        "are several; what is not drawn yet is faint. The beginning decides: an image whose upper part is of another "
        "kind than its lower part was drawn by a prior that forgets what it has begun.",
    )


def _completions(drawing: Drawing) -> Iterator[Block]:
    drawing.model.run.check_can_be_sampled()
    images = drawing.shown.first(_COMPLETED)
    panels = []
    for index, image in enumerate(images):
        done = complete(drawing.model, image, _KEPT, n=_COMPLETIONS)
        shown = np.concatenate([opaque(image[None]), dimmed(image[None], done.kept[None]), opaque(done.images.numpy())])
        panels.append(Panel(f"image {index}", strip(shown, "an image, its kept upper half, and three completions")))
    yield Figure(
        "The lower half drawn anew",
        panels,
        f"An image of {drawing.shown.name}, what of it was kept, and {_COMPLETIONS} completions. Lines should go on "
        "across the border, and the completions differ where the rest is open. A seam at the border, or the same "
        "completion three times, is bad.",
    )


def _unusual(drawing: Drawing) -> Iterator[Block]:
    model, images = drawing.model, drawing.shown.images.images[:_SCORED]
    model.run.check_can_be_sampled()
    scores = score(model, images)
    order = scores.order()
    chosen = {"most unusual": order[:_UNUSUAL], "most usual": order[::-1][:_UNUSUAL]}
    heat = surprise_shown(scores, images, [index for indices in chosen.values() for index in indices])
    panels = []
    for number, (name, indices) in enumerate(chosen.items()):
        bits = ", ".join(f"{float(scores.bits[index]):.0f}" for index in indices)
        own = heat[number * len(indices) : (number + 1) * len(indices)]
        panels.append(Panel(name, strip(images[indices], f"the {name} images: {bits} bits")))
        panels.append(Panel("where", strip(own, "where in them codes are improbable, in white")))
    mean, most = float(scores.bits.mean()), float(scores.bits.max())
    yield Figure(
        f"Of {len(images)} images",
        panels,
        f"Of {drawing.shown.name}: {mean:.0f} bits an image on average, {most:.0f} at most. White is where a code "
        "surprised. Unusual should be what you would call so too: rare poses, clutter, damage. Noise that counts as "
        "usual, or plain images as unusual, is a prior that has learned the wrong thing.",
    )


def _nearest(drawing: Drawing) -> Iterator[Block]:
    drawing.model.run.check_can_be_sampled()
    trained = drawing.shown.image_set.images
    samples = drawing.samples.images.numpy()
    nearest = nearest_trained(samples, trained, drawing.shown.trained, drawing.model.device, Silent())
    first = nearest.distances.argsort(kind="stable")[:12]
    pairs = np.stack([samples[first], trained[nearest.indices[first]]], 1)
    names = [f"{nearest.distances[index]:.3f}" for index in first]
    pictures = [
        strip(pair, f"a sample and the training image at distance {name}")
        for pair, name in zip(pairs, names, strict=True)
    ]
    yield Figure(
        f"The 12 of {len(samples)} samples that are nearest to a training image",
        [Panel(name, picture) for name, picture in zip(names, pictures, strict=True)],
        "Each sample beside its nearest training image, with the root mean squared difference of pixels. Similar is "
        "expected, above all of simple images; the same is a model that copies, which more images or dropout mends.",
        "tiles",
    )
