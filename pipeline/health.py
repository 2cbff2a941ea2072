"""The health of codes in words, and the least of it that stage 2 needs."""

import re
from collections.abc import Mapping

from pipeline.errors import UsageError
from pipeline.run import RunFolder
from stage1_vqvae import VQVAEConfig

COLLAPSED = 0.01  # perplexity as a share of the codes below which stage 2 has nothing to learn
_BRIEF = ("nmse", "psnr", "code_use", "perplexity", "active_units", "bits_per_dim")
_BRIEF_OF_PRIORS = ("nats", "nats_uniform", "nats_by_frequency", "bits_an_image")
_WORDS = {  # in this order
    "code_use": "{:.1%} used",
    "dead_codes": "{:.0f} dead",
    "perplexity": "perplexity {:.1f}",
    "entropy": "entropy {:.3f} nats",
    "code_norm": "length of codes {:.3g}",
    "output_norm": "of encoder outputs {:.3g}",
    "active_units": "{:.1%} of units active",
    "unit_variance": "variance of a unit {:.3g}",
    "kl_a_unit": "KL {:.3g} nats a unit",
    "bits_an_image": "{:,.0f} bits an image",
}


def brief(values: Mapping[str, float]) -> str:
    """What to watch of an evaluation, in a line."""
    shown = _BRIEF_OF_PRIORS if any(_stem(name) == "nats" for name in values) else _BRIEF
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if _stem(name) in shown)


def rows(measured: Mapping[str, float]) -> list[tuple[str, str]]:
    """All of an evaluation of stage 1: how near images are, then a row for each level of codes."""
    near = {name: value for name, value in measured.items() if name in ("nmse", "psnr", "bits_per_dim")}
    suffixes = list(dict.fromkeys(name.removeprefix(_stem(name)) for name in measured if _stem(name) in _WORDS))
    return [
        ("  held out", brief(near)),
        *((f"  codes {suffix.removeprefix('_')}".rstrip(), _in_words(measured, suffix)) for suffix in suffixes),
    ]


def _in_words(measured: Mapping[str, float], suffix: str) -> str:
    return ", ".join(form.format(measured[name + suffix]) for name, form in _WORDS.items() if name + suffix in measured)


def _stem(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def check_codebook(folder: RunFolder, config: VQVAEConfig, measured: Mapping[str, float]) -> None:
    """Raise UsageError when the codes say next to nothing: a prior would reach few nats, and draw one picture."""
    least = max(1.5, COLLAPSED * config.num_codes)
    for name, perplexity in measured.items():
        if _stem(name) == "perplexity" and perplexity < least:
            suffix = name.removeprefix("perplexity")
            used, total = measured[f"code_use{suffix}"] * config.num_codes, config.num_codes
            level = f" of level {suffix.removeprefix('_')}" if suffix else ""
            raise UsageError(
                f"the codebook{level} in {folder.vqvae} has collapsed: {used:.0f} of {total} codes are used, "
                f"to the effect of {perplexity:.1f} (perplexity, held out; {least:.3g} are wanted). Train stage 1 anew "
                "and longer, with fewer --num-codes or a smaller --code-dim; or go on with --force"
            )
