"""Sizes by name: what each means for both stages, and which one is chosen for whom."""

from typing import Literal, NamedTuple, TypeAlias

PresetName = Literal["tiny", "digits", "small", "base", "large"]
OptionValue: TypeAlias = int | float


def preset_for(images: int) -> PresetName:
    """The preset of a prior for a number of training images: little data wants a small network and much dropout.

    `large` is never chosen unasked: it takes a GPU.
    """
    return "small" if images < _LITTLE_DATA else "base"


class Preset(NamedTuple):
    """What a size means for both stages: defaults that a flag overrides."""

    vqvae: dict[str, OptionValue]
    prior: dict[str, OptionValue]


_PRIOR: dict[str, OptionValue] = {
    "average_decay": 0.999,
    "weight_decay": 0.01,
    "learning_rate": 2e-3,
    "label_dropout": 0.1,
    "evaluations": 10,
    "patience": 3,
}
_LITTLE_DATA = 5_000  # training images below which a smaller prior with more dropout does better

_SMALL = Preset(
    vqvae={"hidden": 64, "num_codes": 64, "steps": 1000, "batch_size": 64},
    prior=_PRIOR
    | {
        "hidden": 64,
        "layers": 6,
        "first_kernel": 5,
        "head": 128,
        "dropout": 0.5,
        "label_dropout": 0.05,
        "learning_rate": 1e-3,
        "steps": 700,
        "batch_size": 64,
    },
)

PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(
        vqvae={
            "hidden": 32,
            "residual_blocks": 1,
            "residual_channels": 16,
            "num_codes": 64,
            "steps": 200,
            "batch_size": 32,
        },
        prior=_PRIOR | {"hidden": 32, "layers": 5, "head": 64, "steps": 300, "batch_size": 32},
    ),
    # The embedded digits hold 8x8 pixels of detail: 4x4 codes are enough, and easier to learn from 1,600 of them.
    "digits": Preset(vqvae=_SMALL.vqvae | {"downsampling": 8}, prior=_SMALL.prior),
    "small": _SMALL,
    "base": Preset(
        vqvae={"steps": 20_000, "batch_size": 64, "learning_rate": 2e-3},
        prior=_PRIOR
        | {"hidden": 96, "layers": 8, "first_kernel": 5, "dropout": 0.1, "steps": 50_000, "batch_size": 32},
    ),
    "large": Preset(
        vqvae={
            "hidden": 256,
            "residual_blocks": 4,
            "residual_channels": 64,
            "num_codes": 2048,
            "steps": 100_000,
        },
        prior=_PRIOR
        | {"hidden": 256, "layers": 15, "head": 512, "dropout": 0.1, "learning_rate": 1e-3, "steps": 200_000},
    ),
}
