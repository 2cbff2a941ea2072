"""The model and the images that a page shows: what of them there is, and why not the rest."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, UInt8

from pipeline.data.codes.maps import join_levels
from pipeline.data.codes.shards import read_parts as read_code_maps
from pipeline.data.image_set import ImageSet
from pipeline.data.pictures import evenly_spread
from pipeline.errors import DataError
from pipeline.evaluation.parts import Labelled, Parts, Source, read_parts, with_validation_as_test
from pipeline.sampling.model import Model
from pipeline.training.launch import Launch
from pipeline.training.stage2 import codes_identity
from stage1_vqvae import Codes

_MOST = 512  # images that codes are counted over and scored, at most
_TEST = "the test part, which no training has seen"


@dataclass(frozen=True)
class Shown:
    """Images that a model was not trained on, with their codes; `why_not` says what stands in their way."""

    model: Model
    parts: Parts | None
    why_not: str
    name: str  # of the part

    @property
    def images(self) -> Labelled:
        """At random. Raises DataError with the reason where there are none."""
        if self.parts is None:
            raise DataError(self.why_not)
        return self.parts.test

    @property
    def image_set(self) -> ImageSet:
        """All images. Raises DataError."""
        if self.parts is None:
            raise DataError(self.why_not)
        return self.parts.image_set

    @property
    def trained(self) -> Int[np.ndarray, "m"]:
        """Indices of those trained on. Raises DataError."""
        if self.parts is None:
            raise DataError(self.why_not)
        return self.parts.train

    @cached_property
    def codes(self) -> Codes:
        """Of `images`. Raises DataError."""
        return self.model.encode(self.images.images)

    def codes_to_count(self) -> Codes:
        """Of `images`; where they are gone, of the validation images, as the prior learned. Raises DataError."""
        if self.parts is not None:
            return self.codes
        if not self.model.priors:
            raise DataError(self.why_not)
        vqvae, prior = self.model.vqvae, self.model.priors[0].config
        identity = codes_identity(self.model.run.folder, vqvae, prior.augmentation)
        maps = read_code_maps(self.model.run.folder.codes, identity, vqvae.config.model, len(vqvae.config.class_names))
        if maps is None:
            raise DataError(self.why_not)
        return join_levels(shard.levels for shard in maps["validation"].shards)

    def first(self, n: int) -> UInt8[np.ndarray, "n c h w"]:
        """So many of the images, of different classes where there are any. Raises DataError."""
        images, labels = self.images
        if labels is None:
            return images[:n]
        order = np.lexsort((np.arange(len(labels)), labels))
        return images[order[evenly_spread(len(order), n)]]


def shown_of(model: Model, source: Source, launch: Launch) -> Shown:
    """The test part of a run, or where there is none its validation part; without, where the data has gone."""
    config, with_test = model.vqvae.config.data, True
    try:
        with_test = bool(config.test or config.test_data or source.test_data)
        read = read_parts if with_test else with_validation_as_test
        parts = read(model.run, source, _MOST, launch)
    except DataError as error:
        return Shown(model, None, f"The images of this run cannot be shown: {error}", "")
    return Shown(model, parts, "", _TEST if with_test else "the validation part, which chose the best weights")
