"""What the page says of an image: how unusual it is, where, and what codes keep of it."""

from collections.abc import Iterator
from math import log10

import numpy as np
from jaxtyping import UInt8

from pipeline.config.sampling import DecoderName
from pipeline.evaluation.report.images import opaque
from pipeline.evaluation.score import images_at_a_time, score
from pipeline.serving.pictures import heat, sheet
from pipeline.serving.served import Answer, Served, Show, given_image

_COMPARED = 256  # images of the run that another is compared with, at most


def score_image(served: Served, image: UInt8[np.ndarray, "c h w"] | None) -> Iterator[Answer]:
    """The image beside where it surprises; its bits, and how many images of the run cost fewer."""

    def work(show: Show) -> Answer:
        original = given_image(image)
        scores = score(served.model, original[None])
        bits, where = float(scores.bits[0]), scores.surprise_of_pixels((original.shape[1], original.shape[2]))[0]
        picture = sheet(np.concatenate([opaque(original[None]), heat(where)]), 2)
        words = [f"**{bits:,.0f} bits** for its codes."]
        if scores.bits_per_dim is not None:
            words = [f"**{bits:,.0f} bits** for its codes, {float(scores.bits_per_dim[0]):.3f} a pixel value in all."]
        if served.shown.parts is None:
            words.append(served.shown.why_not)
        else:
            for done, of in _scored_tests(served):
                show(Answer(picture, f"{words[0]} Comparing it with {of} images: {done} scored."))
            words.append(_compared(bits, served))
        words.append("To the right, where they are spent: black for none, white for the most.")
        return Answer(picture, " ".join(words))

    yield from served.answers(work)


def _scored_tests(served: Served) -> Iterator[tuple[int, int]]:
    """Score what is not scored yet of the images to compare with, a few at a time; yields how many are, and of how
    many."""
    images = served.shown.images.images[:_COMPARED]
    while (done := len(served.test_bits)) < len(images):
        yield done, len(images)
        few = images[done : done + images_at_a_time(served.model)]
        served.test_bits += score(served.model, few).bits.tolist()


def _compared(bits: float, served: Served) -> str:
    others = np.array(served.test_bits)
    return (
        f"That is more than **{(others < bits).mean():.0%}** of {len(others)} images of {served.shown.name} cost "
        f"({others.min():,.0f} to {others.max():,.0f} bits, {np.median(others):,.0f} in the middle)."
    )


def reconstruct(
    served: Served, image: UInt8[np.ndarray, "c h w"] | None, levels: int | None, decoder: DecoderName | None
) -> Iterator[Answer]:
    """The image beside what its codes keep of it, of the first levels, by one of the decoders."""

    def work(_: Show) -> Answer:
        original = given_image(image)
        model = served.with_decoder(decoder or served.model.run.decoder)
        restored = model.reconstruct(original[None], levels).numpy()
        error = float(np.square(original / 255.0 - restored[0] / 255.0).mean())
        words = f"To the right what the codes keep. PSNR **{-10 * log10(max(error, 1e-12)):.1f} dB**."
        return Answer(sheet(np.concatenate([opaque(original[None]), opaque(restored)]), 2), words)

    yield from served.answers(work)
