"""What a network reaches over the validation part: validation.json, and the same in words."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.runs.layout import VALIDATION
from pipeline.storage import read_json, validated

# What to watch, in a line: of a prior, and of stage 1.
_BRIEF_OF_PRIORS = ("nats", "uniform_nats", "unigram_nats", "bits_per_image")
_BRIEF = ("nmse", "psnr", "bits_per_dim", "codebook_usage", "perplexity", "active_units")
_CODES_IN_WORDS = {  # in this order
    "codebook_usage": "{:.1%} used",
    "dead_codes": "{:.0f} dead",
    "perplexity": "perplexity {:.1f}",
    "entropy": "entropy {:.3f} nats",
    "code_norm": "length of codes {:.3g}",
    "output_norm": "of encoder outputs {:.3g}",
    "active_units": "{:.1%} of units active",
    "unit_variance": "variance of a unit {:.3g}",
    "kl_per_unit": "KL {:.3g} nats per unit",
    "bits_per_image": "{:,.0f} bits per image",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Metrics:
    """Values over a split: of the network as a whole, and of each level of its codes."""

    values: dict[str, float]
    levels: tuple[dict[str, float], ...] = ()

    def named(self) -> dict[str, float]:
        """All of them by name; of several levels names end in the level's number.

        >>> Metrics({"nmse": 0.1}, ({"perplexity": 9.0},)).named()
        {'nmse': 0.1, 'perplexity': 9.0}
        >>> Metrics({"nmse": 0.1}, ({"perplexity": 9.0}, {"perplexity": 7.0})).named()
        {'nmse': 0.1, 'perplexity/0': 9.0, 'perplexity/1': 7.0}
        """
        return self.values | {
            f"{name}/{level}" if len(self.levels) > 1 else name: value
            for level, values in enumerate(self.levels)
            for name, value in values.items()
        }

    def brief(self) -> str:
        """What to watch, in a line."""

        def watched(values: Mapping[str, float]) -> dict[str, float]:
            names = _BRIEF_OF_PRIORS if "nats" in values else _BRIEF
            return {name: value for name, value in values.items() if name in names}

        shown = Metrics(watched(self.values), tuple(map(watched, self.levels)))
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.named().items())

    def rows(self) -> list[tuple[str, str]]:
        """A table: the values of the whole, then the health of each level's codes."""
        several = len(self.levels) > 1
        return [
            ("  validation", Metrics(self.values).brief()),
            *((f"  codes {level}" if several else "  codes", _in_words(own)) for level, own in enumerate(self.levels)),
        ]


def _in_words(values: Mapping[str, float]) -> str:
    return ", ".join(form.format(values[name]) for name, form in _CODES_IN_WORDS.items() if name in values)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Validation:
    """validation.json: the metrics of the published weights, after which step they were reached, and how many were
    done in all."""

    step: int
    steps_done: int
    metrics: Metrics


def read_validation(stage: Path) -> Validation:
    """validation.json of a finished stage. Raises CheckpointError."""
    return validated(stage / VALIDATION, read_json(stage / VALIDATION), Validation)
