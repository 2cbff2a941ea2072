"""Which class each image of a seed is drawn as."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.randomness import Purpose, stream
from pipeline.runs.saved import PriorRun

BALANCED = "balanced"

Label: TypeAlias = (
    int | np.integer | str | Sequence[int | np.integer | str] | Int[np.ndarray, "m"] | Int[Tensor, "m"] | None
)

_MOST_DIGITS = 9  # of a class by its number


def labels_of(
    image_indices: Int[np.ndarray, "n"], label: Label, seed: int, config: PriorRun
) -> Int[Tensor, "n"] | None:
    """The class of each image, a function of its index: the one asked for, or those asked for in turn; without any,
    drawn in the training data's proportions.

    Raises UsageError for a class that does not exist.
    """
    check_label(label, config)
    if config.model.num_classes == 0:
        return None
    if label is not None:
        numbers = np.array(class_numbers(label, config.class_names))
        return torch.from_numpy(numbers[image_indices % len(numbers)])
    uniforms = [stream(seed, Purpose.LABELS, int(index)).random() for index in image_indices]
    bounds = np.cumsum(config.class_weights)
    return torch.from_numpy(np.searchsorted(bounds / bounds[-1], uniforms, side="right"))


def class_probabilities(label: Label, config: PriorRun) -> dict[int | None, float]:
    """The classes that an image may be of, with their probabilities: those asked for alike, or all in the training
    data's proportions; None alone where there are no classes.

    Raises UsageError for a class that does not exist.
    """
    check_label(label, config)
    if not config.class_names:
        return {None: 1.0}
    if label is None:
        total = sum(config.class_weights)
        return {number: weight / total for number, weight in enumerate(config.class_weights) if weight}
    numbers = class_numbers(label, config.class_names)
    return dict.fromkeys(numbers, 1 / len(set(numbers)))


def check_label(label: Label, config: PriorRun) -> None:
    """Raise UsageError for a class that does not exist."""
    if label is not None and not config.class_names:
        raise UsageError("this model was trained without classes; leave --class out")
    if label is not None:
        class_numbers(label, config.class_names)


def class_numbers(label: Label, names: tuple[str, ...]) -> list[int]:
    """Classes by name or number: one, several, a text of several between commas, or `balanced` for all.

    >>> names = ("cat", "dog", "bird")
    >>> class_numbers("dog", names), class_numbers(2, names), class_numbers("bird, cat", names)
    ([1], [2], [2, 0])
    >>> class_numbers("balanced", names)
    [0, 1, 2]

    Raises UsageError with all that do not exist.
    """
    label = plain(label)
    if label == BALANCED and BALANCED not in names:
        return list(range(len(names)))
    wanted: list[object] = list(label) if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    if isinstance(label, str) and _number(label, names) is None:
        wanted = [part.strip() for part in label.split(",")]
    numbers = [_number(one, names) for one in wanted]
    unknown = [f"{one!r:.60}" for one, number in zip(wanted, numbers, strict=True) if number is None]
    if unknown or not wanted:
        missing = " and ".join(dict.fromkeys(unknown)) or "named"
        raise UsageError(f"there is no class {missing}; the classes are {', '.join(names)} (or 0 to {len(names) - 1})")
    return [number for number in numbers if number is not None]


def plain(label: Label) -> Label:
    """The same classes, with an array or a tensor as numbers of Python."""
    return label.tolist() if isinstance(label, np.ndarray | np.generic | Tensor) else label


def in_words(label: Label, names: tuple[str, ...]) -> str | None:
    """The classes asked for, by name. Raises UsageError when one does not exist."""
    return None if label is None else ", ".join(names[number] for number in class_numbers(label, names))


def _number(label: object, names: tuple[str, ...]) -> int | None:
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        is_number = label.isascii() and label.isdigit() and len(label) <= _MOST_DIGITS
        label = int(label) if is_number else None
    if not isinstance(label, int | np.integer) or isinstance(label, bool):
        return None
    return int(label) if 0 <= label < len(names) else None
