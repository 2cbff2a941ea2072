"""What makes reconstructions sharp: the terms of the loss besides the squared error, and their weights."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Features = Literal["none", "kmeans", "classes", "vgg"]

RAMP = 0.1  # of the training, over which the adversarial loss grows to its full weight


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ObjectiveConfig:
    """The losses of a sharp training; they are added to the squared error over the data's variance."""

    adversarial_weight: float = Field(
        default=0.05,
        ge=0,
        description="Weight of the adversarial loss of a patch discriminator (PatchGAN), against the blur of squared "
        "error; 0: no discriminator.",
    )
    adversarial_start: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Fraction of the training at which the adversarial loss starts; it has its full weight a tenth "
        "later. The discriminator is trained from the beginning.",
    )
    discriminator_rate: float = Field(
        default=0.25,
        gt=0,
        le=100,
        description="The discriminator's learning rate, over that of all else; a slower one swings less between "
        "winning and losing.",
    )
    feature_matching: float = Field(
        default=0.0, ge=0, description="Weight of the distance between features of the discriminator."
    )
    features: Features = Field(
        default="none",
        description="Frozen features whose distance is added: kmeans, filters learned from your own images; classes, "
        "a small classifier of the folders' classes; vgg, VGG16 trained on ImageNet (LPIPS without its linear "
        "weights), downloaded by torchvision.",
    )
    feature_weight: float = Field(default=1.0, gt=0, description="Weight of the distance between --features.")
    frequency_weight: float = Field(
        default=0.0, ge=0, description="Weight of the focal frequency loss, over the data's variance."
    )

    def idle(self, given: Iterable[str], owner: str) -> dict[str, str]:
        """Of the options given those without an effect, each with what it belongs to; all belong to `owner`."""
        found = dict.fromkeys(set(given) & {field.name for field in fields(ObjectiveConfig)}, owner) if owner else {}
        if not owner and self.features == "none" and "feature_weight" in given:
            found["feature_weight"] = "--features other than none"
        if not owner and not self.adversarial_weight:
            names = {"adversarial_start", "discriminator_rate", "feature_matching"} & set(given)
            found |= dict.fromkeys(names, "an --adversarial-weight above 0")
        return found
