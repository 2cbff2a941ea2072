"""Drawing and completing on the page, seen row by row."""

import shlex
from collections.abc import Iterator
from math import ceil, sqrt
from time import perf_counter

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.config.options import Options, build, given
from pipeline.config.sampling import CompleteConfig, SampleConfig
from pipeline.errors import UsageError
from pipeline.evaluation.report.images import dimmed, opaque
from pipeline.sampling.complete import complete
from pipeline.sampling.labels import Label, in_words
from pipeline.sampling.motion.film import over_pixels, unfinished
from pipeline.serving.pictures import sheet
from pipeline.serving.served import Answer, Served, Show, given_image
from stage1_vqvae import Codes, VQVAEConfig
from stage2_prior import SamplingOptions

_COLUMNS = 4  # of a picture of few images


def draw(served: Served, label: Label, options: Options) -> Iterator[Answer]:
    """Images of a class, of options of SampleConfig and SamplingOptions (None: not given)."""

    def work(show: Show) -> Answer:
        config, sampling = build(given(options), SampleConfig, SamplingOptions)
        columns, started = _columns(config.n), perf_counter()
        done: list[UInt8[np.ndarray, "n h w 4"]] = []

        def watch(levels: Codes) -> None:
            images = np.concatenate([*done, dimmed(*unfinished(served.model, levels))])
            show(Answer(sheet(images, columns), _progress(levels, served, f"images {len(images)} of {config.n}")))

        sampler = served.model.sampler(seed=config.seed, label=label, options=sampling, watch=watch)
        size = sampler.batch_size(config.n, config.batch_size)
        for batch in np.array_split(np.arange(config.n), -(-config.n // size)):
            done.append(opaque(sampler.sample(batch).images.numpy()))
        words = f"{config.n} images of seed {config.seed} in {perf_counter() - started:.1f} s. To draw them again:"
        return Answer(sheet(np.concatenate(done), columns), f"{words}\n```\n{_command(served, label, options)}\n```")

    yield from served.answers(work)


def _columns(n: int) -> int:
    return max(min(n, _COLUMNS), ceil(sqrt(n)))


def _progress(levels: Codes, served: Served, what: str) -> str:
    drawn, total = levels[-1], served.model.vqvae.config.model.levels
    rows = int((drawn[0] >= 0).all(1).sum())
    of_level = f"level {len(levels)} of {total}, " if total > 1 else ""
    return f"{what}: {of_level}row {rows} of {drawn.shape[1]}"


def _command(served: Served, label: Label, options: Options) -> str:
    """What draws the same images in a terminal."""
    parts = ["gen", "sample", served.model.run.called]
    if label is not None:
        parts += ["--class", in_words(label, served.model.priors[0].config.class_names) or ""]
    for name, value in given(options).items():
        parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)


def complete_image(
    served: Served, image: UInt8[np.ndarray, "c h w"] | None, painted: str, label: Label, options: Options
) -> Iterator[Answer]:
    """The image with what is kept of it, and completions, of options of CompleteConfig and SamplingOptions.

    `painted` has a 0 or a 1 for each code of the finest level, in raster order: 1 where it is drawn anew.
    """

    def work(show: Show) -> Answer:
        original = given_image(image)
        config, _ = build(given(options), CompleteConfig, SamplingOptions)
        kept = kept_pixels(painted, served.model.vqvae.config.model)
        first = [opaque(original[None]), dimmed(original[None], kept[None])]
        columns = _columns(2 + config.n)

        def watch(levels: Codes) -> None:
            shown = tuple(level[:: config.candidates][: config.n] for level in levels)
            images = dimmed(*unfinished(served.model, shown))
            images[:, kept] = first[0][:, kept]
            what = f"{config.n} completions of {config.candidates} candidates"
            show(Answer(sheet(np.concatenate([*first, images]), columns), _progress(levels, served, what)))

        done = complete(served.model, original, kept, label=label, watch=watch, **given(options))  # type: ignore[arg-type]
        words = f"The image, what of it is kept, and {config.n} completions; all of them are decoded from codes."
        return Answer(sheet(np.concatenate([*first, opaque(done.images.numpy())]), columns), words)

    yield from served.answers(work)


def kept_pixels(painted: str, config: VQVAEConfig) -> Bool[np.ndarray, "h w"]:
    """The pixels that stand where codes of the finest level are painted. Raises UsageError."""
    rows, columns = config.grids[-1]
    if len(painted) != rows * columns or not set(painted) <= {"0", "1"}:
        raise UsageError(f"the mask has {len(painted)} codes, and the image {rows} x {columns}; choose the image again")
    if "1" not in painted:
        raise UsageError("Nothing is painted: paint over the image what is to be drawn anew.")
    if "0" not in painted:
        raise UsageError("All is painted, and nothing is left to go by: leave a part, or draw whole images.")
    mask = np.array([cell == "1" for cell in painted]).reshape(1, rows, columns)
    return ~over_pixels(mask, (config.height, config.width))[0]
