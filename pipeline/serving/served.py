"""A run as the page has it: loaded once, with the images that it can be tried on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.config.sampling import DecoderName
from pipeline.errors import GenError, UsageError
from pipeline.evaluation.report.shown import Shown
from pipeline.runs.loading import load_vqvae
from pipeline.runs.opening import open_run
from pipeline.sampling.model import Model
from pipeline.serving.requests import Requests


class Answer(NamedTuple):
    """What the page shows of a request, while it is at work and at its end: a picture if there is one, and words."""

    picture: Image.Image | None
    words: str


Show: TypeAlias = Callable[[Answer], None]


@dataclass
class Served:
    """One model in memory, and what is known of the run's images; `test_bits` are those scored so far."""

    model: Model
    shown: Shown
    requests: Requests = field(default_factory=Requests)
    test_bits: list[float] = field(default_factory=list)
    _other: Model | None = None  # with the decoder that the page was not opened with

    def answers(self, work: Callable[[Show], Answer]) -> Iterator[Answer]:
        """What a request shows, in its turn; instead of an error that a person can mend, the sentence that says how."""
        try:
            yield from self.requests.answers(work)
        except GenError as error:
            yield Answer(None, str(error))

    @property
    def why_no_drawing(self) -> str:
        """Why nothing can be drawn, completed or scored; empty where it can."""
        if not self.model.vqvae.config.model.is_discrete:
            kind = self.model.vqvae.config.model.bottleneck
            return f"The codes of a {kind} bottleneck are numbers, and no prior says how probable they are."
        try:
            self.model.run.check_can_be_sampled()
        except GenError as error:
            return f"Nothing can be drawn, completed or scored yet: {error}."
        return ""

    @property
    def decoders(self) -> list[DecoderName]:
        """Those that there are, the one in use first."""
        return ["plain"] if self.model.run.sharp is None else ["sharp", "plain"]

    def with_decoder(self, decoder: DecoderName) -> Model:
        """Stage 1 with this decoder. Raises UsageError, CheckpointError."""
        if decoder == self.model.run.decoder:
            return self.model
        if self._other is None or self._other.run.decoder != decoder:
            run = open_run(self.model.run.folder.path, "vqvae", decoder)
            self._other = replace(self.model, run=run, vqvae=load_vqvae(run, self.model.device), priors=())
        return self._other


def given_image(image: UInt8[np.ndarray, "c h w"] | None) -> UInt8[np.ndarray, "c h w"]:
    """The image. Raises UsageError where none is chosen."""
    if image is None:
        raise UsageError("Choose an image first: one of those shown, or upload one.")
    return image
