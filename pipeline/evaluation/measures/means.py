"""Statistics over images, each with its standard error."""

from math import log

import numpy as np
from jaxtyping import Bool, Float

from pipeline.runs.evaluation import Figure


def mean_of(values: Float[np.ndarray, "n"]) -> Figure:
    """The mean over images."""
    return Figure(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None)


def fraction_of(which: Bool[np.ndarray, "n"]) -> Figure:
    """The fraction of the images that are so; its error as that of two successes and two failures more (Agresti and
    Coull 1998), as one of 0 or 1 is not certain either."""
    n, count = len(which), int(which.sum())
    moved = (count + 2) / (n + 4)
    return Figure(count / n, (moved * (1 - moved) / (n + 4)) ** 0.5)


def ratio_of(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]) -> Figure:
    """The ratio of two means over the same images; its error by the delta method."""
    ratio, scale = float(first.sum() / max(second.sum(), 1e-12)), max(float(second.mean()), 1e-12)
    error = mean_of(first - ratio * second).error
    return Figure(ratio, None if error is None else error / scale)


def psnr_of(errors: Float[np.ndarray, "n"]) -> Figure:
    """PSNR (dB) of the mean over images of squared errors on [0, 1]; its error by the delta method."""
    mean = mean_of(errors)
    value = max(mean.value, 1e-12)
    slope = 10 / log(10) / value
    return Figure(-10 / log(10) * log(value), None if mean.error is None else slope * mean.error)
