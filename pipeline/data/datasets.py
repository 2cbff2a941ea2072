"""Data sets by name: the embedded digits, and torchvision's, which are downloaded into the cache."""

from types import ModuleType

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from pipeline.data import pixels
from pipeline.data.kept.cache import DOWNLOADS, alone_with, downloads_folder
from pipeline.errors import DataError
from pipeline.reporting import Reporter

EMBEDDED_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def embedded_digits() -> tuple[UInt8[np.ndarray, "n 1 32 32"], Int[np.ndarray, "n"]]:
    """scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998), 8x8 with 17 greys, enlarged to 32x32."""
    from sklearn.datasets import load_digits  # a second to import; only this data needs it

    digits = load_digits()
    small = (digits.images * (255 / 16)).round().astype(np.uint8)
    return np.stack([pixels.fit(Image.fromarray(image), 32, 32, "grey") for image in small]), digits.target


def torchvision_dataset(
    name: str, reporter: Reporter, *, train: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The training or the test part of a torchvision dataset, downloaded into the cache on first use."""
    datasets = import_torchvision_datasets()
    maker = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        with alone_with(DOWNLOADS, reporter):
            dataset = maker(downloads_folder(), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} could not be downloaded ({str(error).splitlines()[0]}); offline, pass --data a folder or a .zip"
        ) from error
    array = np.asarray(dataset.data)
    array = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    names = tuple(name.partition(" - ")[2] or name for name in dataset.classes)  # MNIST calls its classes `3 - three`
    return np.ascontiguousarray(array), np.asarray(dataset.targets), names


def import_torchvision_datasets() -> ModuleType:
    """torchvision.datasets. Raises DataError when torch and torchvision come from different builds."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise DataError(f"torchvision does not fit the installed torch ({error}); `gen doctor` says more") from error
    return datasets
