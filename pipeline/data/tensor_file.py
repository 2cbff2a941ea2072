"""A file of arrays with as many rows each, written a few rows at a time: safetensors, or from there NumPy's .npz."""

import json
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Shaped

from pipeline.errors import UsageError

_NAMES = MappingProxyType({np.dtype("float32"): "F32", np.dtype("int32"): "I32", np.dtype("int64"): "I64"})
_LARGEST_HEADER = 100_000_000  # bytes that the safetensors library reads


class ArrayKind(NamedTuple):
    """What kind of array is to be written: its type, and its shape, rows first."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How much the whole takes."""
        return self.dtype.itemsize * prod(self.shape)


class TensorFile:
    """A new safetensors file, of which `write` fills in rows; more than a batch of them is never in memory.

    The format is 8 bytes with the length of a JSON header, the header, and the arrays, each as a whole, one after
    another. Raises UsageError where the metadata are more than a header holds.
    """

    def __init__(self, file: BinaryIO, arrays: Mapping[str, ArrayKind], metadata: Mapping[str, str]) -> None:
        self._file, self._arrays, self._starts = file, arrays, dict[str, int]()
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        # The largest numbers first: so each array begins where its type may in memory.
        for name, (dtype, shape) in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
            self._starts[name], end = end, end + arrays[name].bytes
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (self._starts[name], end)}
        content = json.dumps(header, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        if len(content) > _LARGEST_HEADER:
            raise UsageError(
                f"names and metadata take {len(content):,} bytes, and a .safetensors file holds {_LARGEST_HEADER:,} of "
                "them; end --out in .npz"
            )
        self._data = 8 + len(content)
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(self._data + end)

    def write(self, name: str, first: int, rows: Shaped[np.ndarray, "m ..."]) -> None:
        """Write rows of an array, from row `first` on."""
        dtype, shape = self._arrays[name]
        assert rows.dtype == dtype and rows.shape[1:] == shape[1:], name
        self._file.seek(self._data + self._starts[name] + first * dtype.itemsize * prod(shape[1:]))
        self._file.write(rows.tobytes())

    def mapped(self) -> dict[str, Shaped[np.ndarray, "n ..."]]:
        """The arrays of the file, mapped into memory for reading; it must be open for reading too."""
        self._file.flush()
        return {
            name: np.memmap(self._file, dtype, "r", self._data + self._starts[name], shape)
            for name, (dtype, shape) in self._arrays.items()
        }
