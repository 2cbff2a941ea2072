"""Sizes by name: what each means for both stages, and which one is chosen for whom."""

from typing import Literal, NamedTuple, TypeAlias

from pipeline.config.options import OptionDict, Options
from stage2_prior.config import PriorName

PresetName = Literal["tiny", "digits", "small", "base", "large", "photos64-cpu", "photos64", "photos128", "photos256"]
OptionValue: TypeAlias = int | float | str


def preset_for(images: int) -> PresetName:
    """The preset of a prior for a number of training images: little data wants a small network and much dropout.

    `large` and those of photographs are never chosen unasked: most of them take a GPU.
    """
    return "small" if images < _LITTLE_DATA else "base"


class Preset(NamedTuple):
    """What a size means for both stages: defaults that a flag overrides. With another `--prior` than that of `prior`,
    options in `instead` replace those of the same name."""

    vqvae: dict[str, OptionValue]
    prior: dict[str, OptionValue]
    instead: dict[PriorName, dict[str, OptionValue]]

    def defaults(self, stage: str, asked: Options) -> OptionDict:
        """The options of a stage where these were asked for, which decide the network and its width.

        The learning rate of a transformer that is wider than the preset's falls with its width, as that of matrices
        should that Adam trains (Yang et al. 2022, "Tensor Programs V", table 3).
        """
        if stage == "vqvae":
            return {**self.vqvae}
        differing = next((own for name, own in self.instead.items() if name == asked.get("prior")), {})
        own: OptionDict = {**self.prior, **differing, "prior": asked.get("prior", self.prior["prior"])}
        width, usual, rate = asked.get("hidden"), own["hidden"], own["learning_rate"]
        assert isinstance(usual, int) and isinstance(rate, float)
        if own["prior"] == "transformer" and isinstance(width, int | float) and width > usual:
            own["learning_rate"] = rate * usual / width
        return own


_PRIOR: dict[str, OptionValue] = {
    "average_decay": 0.999,
    "weight_decay": 0.01,
    "label_dropout": 0.1,
    "evaluations": 10,
    "patience": 3,
}
_LITTLE_DATA = 5_000  # training images below which a smaller prior with more dropout does better


def _transformer(hidden: int, layers: int, learning_rate: float, **others: OptionValue) -> dict[str, OptionValue]:
    size: dict[str, OptionValue] = {"hidden": hidden, "layers": layers, "first_kernel": 5, "dropout": 0.1}
    return _PRIOR | {"prior": "transformer", "learning_rate": learning_rate} | size | others


def _convolutional(
    hidden: int, layers: int, first_kernel: int, learning_rate: float, **others: OptionValue
) -> dict[PriorName, dict[str, OptionValue]]:
    own: dict[str, OptionValue] = {
        "hidden": hidden,
        "layers": layers,
        "first_kernel": first_kernel,
        "learning_rate": learning_rate,
        **others,
    }
    return {"pixelcnn": own, "pixelsnail": own}


_SMALL = Preset(
    vqvae={"hidden": 64, "num_codes": 64, "steps": 1000, "batch_size": 64},
    prior=_PRIOR
    | {
        "prior": "pixelcnn",
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
    instead={"transformer": {"layers": 3, "first_kernel": 3, "learning_rate": 3e-3}, "pixelsnail": {}},
)

_BASE = Preset(
    vqvae={"steps": 20_000, "batch_size": 64, "learning_rate": 2e-3},
    prior=_transformer(96, 4, 1.6e-2, steps=80_000, batch_size=32),
    instead=_convolutional(96, 8, 5, 2e-3, steps=50_000),
)
# Not measured here, as it takes a GPU. At such sizes transformers beat PixelSNAIL in equal time (Esser et al. 2021).
_LARGE_PRIOR = _transformer(512, 12, 3e-3, head=512, steps=200_000)
_LARGE_INSTEAD = _convolutional(256, 15, 7, 1e-3)
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
        prior=_transformer(32, 2, 1.6e-2, head=64, steps=300, batch_size=32),
        instead=_convolutional(32, 5, 7, 2e-3),
    ),
    # The embedded digits hold 8x8 pixels of detail: 4x4 codes are enough, and easier to learn from 1,600 of them.
    "digits": Preset(vqvae=_SMALL.vqvae | {"downsampling": 8}, prior=_SMALL.prior, instead=_SMALL.instead),
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
        instead=_LARGE_INSTEAD,
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
        prior=_BASE.prior,
        instead=_convolutional(96, 10, 7, 2e-3, steps=50_000),
    ),
    "photos64": Preset(
        vqvae=_PHOTOS | {"hidden": 256, "num_codes": 2048, "batch_size": 256},
        prior=_LARGE_PRIOR,
        instead=_LARGE_INSTEAD,
    ),
    "photos128": Preset(vqvae=_PHOTOS | {"downsampling": 8}, prior=_LARGE_PRIOR, instead=_LARGE_INSTEAD),
    "photos256": Preset(vqvae=_PHOTOS | {"downsampling": 16}, prior=_LARGE_PRIOR, instead=_LARGE_INSTEAD),
}
