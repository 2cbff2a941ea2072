"""The rules of a verdict, by five aspects: data, which docs/report.md lists.

Of each aspect the first rule holds whose conditions all do; a condition on a figure that is not known does not.
"""

from typing import Literal, NamedTuple

from pipeline.evaluation.report.blocks import Emphasis
from pipeline.evaluation.report.verdict.signs import Signs

Aspect = Literal["Reconstructions", "Codebook", "Prior", "Time and data", "Samples"]


class Condition(NamedTuple):
    """A figure of Signs beyond a bound."""

    sign: str
    relation: Literal["above", "below"]
    bound: float

    def holds(self, signs: Signs) -> bool:
        """Whether the figure is known, and beyond."""
        value = signs.known(self.sign)
        return value is not None and (value > self.bound if self.relation == "above" else value < self.bound)

    def __str__(self) -> str:
        return f"`{self.sign}` {self.relation} {self.bound:g}"


class Rule(NamedTuple):
    """What to say of an aspect, with the figures of Signs in it, and what to try. The weight orders what limits most;
    0 for what does not, or is not known."""

    name: str
    aspect: Aspect
    conditions: tuple[Condition, ...]
    weight: int
    finding: str
    remedy: str = ""
    emphasis: Emphasis = "limit"
    limits: str = ""  # the end of the sentence "What limits this model most is ..."


def above(sign: str, bound: float) -> Condition:
    """That a figure is greater."""
    return Condition(sign, "above", bound)


def below(sign: str, bound: float) -> Condition:
    """That a figure is less."""
    return Condition(sign, "below", bound)


_MORE_DETAIL = (
    "`gen sharpen RUN` trains the decoder further, and the prior stays{sharp_from_start}. A smaller `--downsampling` "
    "or more `--num-codes` need both stages anew."
)
_LONGER = "More `--max-minutes` or `--steps` for `gen train-vqvae`, then a new prior."
_LONGER_PRIOR = "More `--steps` or `--max-minutes` for `gen train-prior`."
_LESS_GUIDANCE = "A smaller one: `gen evaluate RUN --guidance 1,1.5,2`, then `gen sample --guidance best`."
_MORE_IMAGES = "More images; `--flip` in stage 1, `--dropout 0.5` and `--encodings 4 --shift 2` in stage 2."

RULES = (
    Rule(
        "not learned",
        "Reconstructions",
        (above("nmse", 0.5),),
        9,
        "Reconstructions are little better than plain grey (NMSE {nmse:.2f}, where 1 is a constant).",
        "More steps; a smaller `--learning-rate`; `gen train-vqvae` anew if the loss is no number.",
        limits="stage 1, which has hardly learned to reconstruct",
    ),
    Rule(
        "blur of most of the distance",
        "Reconstructions",
        (above("blur_part", 0.5), above("nmse", 0.02)),
        5,
        "Blur: {blur_part:.0%} of the distance between samples and real images is there in reconstructions already.",
        _MORE_DETAIL,
        limits="the blur of stage 1",
    ),
    Rule(
        "blur",
        "Reconstructions",
        (above("nmse", 0.12),),
        5,
        "Blur: reconstructions miss {nmse:.0%} of what varies between pixels (NMSE {nmse:.3f}).",
        _MORE_DETAIL,
        limits="the blur of stage 1",
    ),
    Rule(
        "classes lost",
        "Reconstructions",
        (below("class_restored", 0.85),),
        5,
        "Blur: the judge sees the class in {class_restored:.0%} as many reconstructions as real images.",
        _MORE_DETAIL,
        limits="the blur of stage 1",
    ),
    Rule(
        "missing detail",
        "Reconstructions",
        (below("detail", 0.5), above("nmse", 0.02)),
        2,
        "Fine detail is weak: reconstructions have {detail:.0%} of the high-frequency power of images.",
        _MORE_DETAIL,
        limits="detail that stage 1 loses",
    ),
    Rule(
        "faithful",
        "Reconstructions",
        (above("nmse", -1),),
        0,
        "Faithful: NMSE {nmse:.4f}, where 0 is perfect and 1 a constant grey.",
        emphasis="good",
    ),
    Rule("not evaluated", "Reconstructions", (), 0, "Stage 1 has not been evaluated yet.", emphasis="unknown"),
    Rule(
        "no codebook",
        "Codebook",
        (above("continuous", 0),),
        0,
        "There is none: the codes of this bottleneck are numbers.",
        emphasis="good",
    ),
    Rule(
        "collapsed to one code",
        "Codebook",
        (below("perplexity", 2),),
        10,
        "Collapsed: codes are used as if there were {perplexity:.1f} of them.",
        "Train stage 1 anew, with a smaller `--learning-rate` or a smaller `--code-dim`.",
        limits="the codebook, which has collapsed",
    ),
    Rule(
        "collapsed",
        "Codebook",
        (below("perplexity_fraction", 0.01),),
        10,
        "Collapsed: the perplexity of {perplexity:.1f} is {perplexity_fraction:.1%} of the number of codes.",
        "Train stage 1 anew, with a smaller `--learning-rate` or a smaller `--code-dim`.",
        limits="the codebook, which has collapsed",
    ),
    Rule(
        "few codes in use",
        "Codebook",
        (below("usage", 0.5),),
        3,
        "{usage:.0%} of the codes occur among validation images; the others cost nothing and say nothing.",
        "More steps, or fewer `--num-codes`; a smaller `--code-dim`.",
        limits="a codebook of which most is unused",
    ),
    Rule(
        "in use",
        "Codebook",
        (above("usage", 0),),
        0,
        "In use: {usage:.0%} of the codes occur, as evenly as {perplexity:.0f} equally frequent ones.",
        emphasis="good",
    ),
    Rule("unknown codebook", "Codebook", (), 0, "Stage 1 has not been evaluated yet.", emphasis="unknown"),
    Rule(
        "no prior needed",
        "Prior",
        (above("continuous", 0),),
        0,
        "None: a prior learns codes that are integers.",
        emphasis="good",
    ),
    Rule(
        "no prior",
        "Prior",
        (below("has_prior", 1),),
        0,
        "There is none yet, and so no samples.",
        "`gen train-prior RUN`",
        emphasis="unknown",
    ),
    Rule(
        "overfitted prior",
        "Prior",
        (above("rise", 0.03),),
        6,
        "Overfitted: the best weights are those of step {best_step:,}; validation nats rose by {rise:.1%} after it.",
        _MORE_IMAGES + " `--patience 3` ends such a training sooner.",
        limits="the prior, which overfits",
    ),
    Rule(
        "prior knows little",
        "Prior",
        (below("gain", 0.05),),
        8,
        "Hardly better than counting: {nats:.2f} nats per code, where frequencies alone give {unigram_nats:.2f}.",
        "More steps for the prior, or more `--layers`.",
        limits="the prior, which knows little more than how frequent each code is",
    ),
    Rule(
        "prior still learning",
        "Prior",
        (above("prior_second_half", 0.2),),
        4,
        "Still learning when it ended: {prior_second_half:.0%} of what it gained came in the second half of its steps.",
        _LONGER_PRIOR,
        limits="the prior, which was stopped while it was still learning",
    ),
    Rule(
        "prior has learned",
        "Prior",
        (above("gain", -1),),
        0,
        "It has learned: {nats:.2f} nats per code, {gain:.0%} below the {unigram_nats:.2f} of frequencies alone.",
        emphasis="good",
    ),
    Rule("unmeasured prior", "Prior", (), 0, "It has learned nothing that was measured.", emphasis="unknown"),
    Rule(
        "hardly begun",
        "Time and data",
        (above("nmse", 0.5), above("stage1_steps", 0)),
        7,
        "Not enough: after its {stage1_steps:,} steps stage 1 has hardly begun to reconstruct.",
        _LONGER,
        limits="the time that stage 1 was trained",
    ),
    Rule(
        "too short",
        "Time and data",
        (above("stage1_second_half", 0.25),),
        7,
        "Too short: the second half of stage 1 took away {stage1_second_half:.0%} of its error.",
        _LONGER,
        limits="the time that stage 1 was trained",
    ),
    Rule(
        "few passes",
        "Time and data",
        (below("stage1_passes", 3), below("training_images", 1_000_000)),
        6,
        "Short: stage 1 has seen each of the {training_images:,} images {stage1_passes:.1f} times.",
        _LONGER,
        limits="the time that stage 1 was trained",
    ),
    Rule(
        "few passes of the prior",
        "Time and data",
        (below("prior_passes", 3), below("training_images", 1_000_000)),
        6,
        "Short: the prior has seen each of the {training_images:,} maps {prior_passes:.1f} times.",
        _LONGER_PRIOR,
        limits="the time that the prior was trained",
    ),
    Rule(
        "few images",
        "Time and data",
        (above("nmse_over_training", 1.3), above("nmse", 0.01)),
        3,
        "Few images: stage 1 errs {nmse_over_training:.1f} times as much on validation images as on the "
        "{training_images:,} it learned from.",
        _MORE_IMAGES,
        limits="the number of images",
    ),
    Rule(
        "few images for the prior",
        "Time and data",
        (above("rise", 0.03), below("training_images", 20_000)),
        3,
        "Few images: {training_images:,}, which the prior learned by heart before its training was over.",
        _MORE_IMAGES,
        limits="the number of images",
    ),
    Rule(
        "enough",
        "Time and data",
        (above("stage1_second_half", -10),),
        0,
        "Stage 1 has settled: the second half of its steps took away {stage1_second_half:.0%} of the error. That "
        "its learning rate had fallen by then has a part in this.",
        emphasis="good",
    ),
    Rule(
        "unknown time", "Time and data", (), 0, "Too few evaluations to say.", "`--evaluations 10`", emphasis="unknown"
    ),
    Rule(
        "guidance too strong",
        "Samples",
        (above("guidance", 1), below("recall_kept", 0.5)),
        6,
        "Guidance {guidance:g} is too strong: the recall of samples is {recall_kept:.0%} of that of reconstructions.",
        _LESS_GUIDANCE,
        limits="guidance, which is too strong",
    ),
    Rule(
        "guidance beyond the data",
        "Samples",
        (above("guidance", 1), below("coverage_kept", 0.5)),
        6,
        "Guidance {guidance:g} is too strong: {coverage_kept:.0%} as many real images have a sample near as have a "
        "reconstruction.",
        _LESS_GUIDANCE,
        limits="guidance, which is too strong",
    ),
    Rule(
        "copies",
        "Samples",
        (above("near_copies", 0.1),),
        5,
        "{near_copies:.0%} of the samples are near copies of training images, where 1 % is usual.",
        _MORE_IMAGES,
        limits="that it repeats what it was trained on",
    ),
    Rule(
        "little variety",
        "Samples",
        (below("recall_kept", 0.7),),
        4,
        "Little variety: their recall is {recall_kept:.0%} of that of reconstructions.",
        "`--temperature 1` without `--top-k` and `--top-p`; more steps for the prior.",
        limits="the variety of its samples",
    ),
    Rule(
        "classes not shown",
        "Samples",
        (below("class_kept", 0.7),),
        4,
        "Classes are unclear: the judge sees the one asked for in {class_shown:.0%} of the samples.",
        "`gen evaluate RUN --guidance 1,1.5,2,3`, then `gen sample --guidance best`; more steps for the prior.",
        limits="samples that do not show their class",
    ),
    Rule(
        "measured",
        "Samples",
        (above("recall_kept", 0),),
        0,
        "Varied: with guidance {guidance:g} their recall is {recall_kept:.0%} of that of reconstructions.",
        emphasis="good",
    ),
    Rule(
        "evaluated without sets",
        "Samples",
        (above("evaluated", 0),),
        0,
        "Their variety was not measured; the tables say why.",
        emphasis="unknown",
    ),
    Rule(
        "nothing measured",
        "Samples",
        (),
        0,
        "Not measured.",
        "`gen evaluate RUN --guidance 1,1.5,2`",
        emphasis="unknown",
    ),
)
