"""Sizes by name: what each means for both stages, and which one is chosen for whom."""

from typing import Literal, NamedTuple, TypeAlias

PresetName = Literal["tiny", "digits", "small", "base", "large", "photos64-cpu", "photos64", "photos128", "photos256"]
OptionValue: TypeAlias = int | float | str


def preset_for(images: int) -> PresetName:
    """The preset of a prior for a number of training images: little data wants a small network and much dropout.

    `large` and those of photographs are never chosen unasked: most of them take a GPU.
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

_BASE = Preset(
    vqvae={"steps": 20_000, "batch_size": 64, "learning_rate": 2e-3},
    prior=_PRIOR | {"hidden": 96, "layers": 8, "first_kernel": 5, "dropout": 0.1, "steps": 50_000, "batch_size": 32},
)
_LARGE_PRIOR = _PRIOR | {
    "hidden": 256,
    "layers": 15,
    "head": 512,
    "dropout": 0.1,
    "learning_rate": 1e-3,
    "steps": 200_000,
}
# Maps of 16x16 codes at every size. Codes of length 1 and 64 dimensions look better at the same PSNR, and all are used.
_PHOTOS: dict[str, OptionValue] = {
    "network": "residual",
    "hidden": 512,
    "num_codes": 4096,
    "code_dim": 64,
    "unit_codes": True,
    "steps": 100_000,
    "learning_rate": 4e-4,
    "warmup_steps": 1000,
}

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
    "base": _BASE,
    "large": Preset(
        vqvae={
            "hidden": 256,
            "residual_blocks": 4,
            "residual_channels": 64,
            "num_codes": 2048,
            "steps": 100_000,
        },
        prior=_LARGE_PRIOR,
    ),
    # A multiply-add costs a CPU hours: this network has no more of them than that of `base` on the same images.
    "photos64-cpu": Preset(
        vqvae={
            "network": "residual",
            "hidden": 64,
            "num_codes": 1024,
            "steps": 20_000,
            "batch_size": 32,
        },
        prior=_BASE.prior | {"layers": 10, "first_kernel": 7},
    ),
    "photos64": Preset(vqvae=_PHOTOS | {"hidden": 256, "num_codes": 2048, "batch_size": 256}, prior=_LARGE_PRIOR),
    "photos128": Preset(vqvae=_PHOTOS | {"downsampling": 8}, prior=_LARGE_PRIOR),
    "photos256": Preset(vqvae=_PHOTOS | {"downsampling": 16}, prior=_LARGE_PRIOR),
}
