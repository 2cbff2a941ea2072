"""Blocks of codes as bytes, under the priors of a run; and what makes their probabilities the same at both ends."""

import platform
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.arithmetic import exact_products
from pipeline.codec.container import CODED, RAW, Block
from pipeline.errors import CheckpointError, UsageError
from pipeline.runs.loading import LoadedPrior
from stage1_vqvae import Codes
from stage2_prior import Stepper, code_levels

_CPU = torch.device("cpu")
_UNKNOWN = 2**-8  # probability of a class that is not known


@dataclass(frozen=True)
class BlockCodes:
    """Codes of some images, coarsest level first, and their classes (-1: unknown), where the prior has any."""

    levels: Codes
    labels: Int[Tensor, "n"] | None

    def __len__(self) -> int:
        return len(self.levels[0])

    def crc(self) -> int:
        """The CRC-32 of codes and labels."""
        parts = [*self.levels, *([] if self.labels is None else [self.labels])]
        crc = 0
        for part in parts:
            crc = zlib.crc32(part.numpy().astype("<i4").tobytes(), crc)
        return crc


def arithmetic() -> str:
    """What decides the last bits of the probabilities on this machine."""
    return f"torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


class BlockCoder:
    """Codes of up to `size` images to bytes and back, under the priors of a run in float64, on one thread of the CPU,
    always as many maps at a time: so the numbers that both ends compute are the same."""

    def __init__(self, priors: Sequence[LoadedPrior], size: int) -> None:
        """`priors`: those of the levels that are kept."""
        self._size, config = size, priors[0].config
        self._num_codes = config.model.num_codes
        with _repeatable():
            networks = [deepcopy(prior.network).to(_CPU).double() for prior in priors]
            self._steppers: Sequence[Stepper] = [network.stepper(size) for network in networks]
        self._class_probabilities = _of_classes(config.class_weights)

    def encode(self, codes: BlockCodes) -> Block:
        """A block of these codes. They are decoded once more: where other ones come out, they are kept as they are."""
        with _repeatable():
            writer = _Writer(codes.levels)
            if codes.labels is not None:
                writer.labels(codes.labels, self._class_probabilities)
            code_levels(self._steppers, self._padded(codes.labels), len(codes), writer)
            block = Block(len(codes), CODED, writer.payload(), codes.crc())
        try:
            self.decode(block, "a block just written")
        except CheckpointError:
            return block._replace(kind=RAW, payload=_raw(codes, self._num_codes))
        return block

    def decode(self, block: Block, what: str) -> BlockCodes:
        """The codes of a block. Raises CheckpointError, which names it, where they are not those that were encoded."""
        n = block.images
        if block.kind == RAW:
            decoded = self._from_raw(block.payload, n, what)
        else:
            with _repeatable():
                reader = _Reader(block.payload, what)
                labels = reader.labels(n, self._class_probabilities) if self._has_classes else None
                decoded = BlockCodes(code_levels(self._steppers, self._padded(labels), n, reader), labels)
        if decoded.crc() != block.codes_crc:
            raise CheckpointError(
                f"{what} decodes to other codes than were encoded: this machine computes the probabilities differently "
                f"({arithmetic()}); decompress it where it was written, or with the versions that its header names"
            )
        return decoded

    @property
    def _has_classes(self) -> bool:
        return len(self._class_probabilities) > 1

    def _padded(self, labels: Int[Tensor, "n"] | None) -> Int[Tensor, "m"] | None:
        if labels is None:
            return None
        return torch.cat([labels, torch.full((self._size - len(labels),), -1)])

    def _from_raw(self, payload: bytes, n: int, what: str) -> BlockCodes:
        grids = [stepper.size for stepper in self._steppers]
        counts = [n * height * width for height, width in grids]
        labelled = 4 * n if self._has_classes else 0
        if len(payload) != labelled + _raw_bytes(sum(counts), self._num_codes):
            raise CheckpointError(f"{what} does not hold the codes of {n} images")
        labels = torch.from_numpy(np.frombuffer(payload[:labelled], "<i4").astype(np.int64)) if labelled else None
        bits = np.unpackbits(np.frombuffer(payload[labelled:], np.uint8))
        width = _bits(self._num_codes)
        flat = bits[: sum(counts) * width].reshape(-1, width) @ (1 << np.arange(width, dtype=np.int64)[::-1])
        parts = torch.split(torch.from_numpy(flat.astype(np.int64)), counts)
        return BlockCodes(tuple(part.view(n, *grid) for part, grid in zip(parts, grids, strict=True)), labels)


def _of_classes(weights: Sequence[float]) -> Float[np.ndarray, "k"]:
    """Of no class first, then of each in the training data's proportions."""
    total = sum(weights)
    return np.array([_UNKNOWN, *((1 - _UNKNOWN) * weight / total for weight in weights)])


class _Writer:
    """Range coding: the codes of a block, as they come, become bytes."""

    def __init__(self, levels: Codes) -> None:
        library = _constriction()
        self._levels = levels
        self._encoder = library.stream.queue.RangeEncoder()
        self._any = library.stream.model.Categorical(perfect=False)

    def labels(self, labels: Int[Tensor, "n"], class_probabilities: Float[np.ndarray, "k"]) -> None:
        """Write the classes."""
        tables = np.tile(class_probabilities, (len(labels), 1))
        self._encoder.encode((labels + 1).numpy().astype(np.int32), self._any, tables)

    def code(self, probabilities: Float[Tensor, "n k"], level: int, row: int, column: int) -> Int[Tensor, "n"]:
        """Write the codes of a position."""
        codes = self._levels[level][:, row, column]
        self._encoder.encode(codes.numpy().astype(np.int32), self._any, probabilities.numpy())
        return codes

    def payload(self) -> bytes:
        """All that was written."""
        words: np.ndarray = self._encoder.get_compressed()
        return words.astype("<u4").tobytes()


class _Reader:
    """The same, back from bytes."""

    def __init__(self, payload: bytes, what: str) -> None:
        library = _constriction()
        if len(payload) % 4:
            raise CheckpointError(f"{what} holds {len(payload)} bytes, and codes come in words of 4 bytes")
        self._what = what
        self._decoder = library.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        self._any = library.stream.model.Categorical(perfect=False)

    def labels(self, n: int, class_probabilities: Float[np.ndarray, "k"]) -> Int[Tensor, "n"]:
        """Read the classes of n images."""
        return self._decoded(np.tile(class_probabilities, (n, 1))) - 1

    def code(self, probabilities: Float[Tensor, "n k"], level: int, row: int, column: int) -> Int[Tensor, "n"]:
        """Read the codes of the next position, which are those of these probabilities."""
        return self._decoded(probabilities.numpy())

    def _decoded(self, tables: Float[np.ndarray, "n k"]) -> Int[Tensor, "n"]:
        try:
            codes: np.ndarray = self._decoder.decode(self._any, tables)
        except AssertionError as error:  # how the library says that no code leads to these bytes
            raise CheckpointError(f"{self._what} holds bytes that no codes of this prior lead to ({error})") from error
        return torch.from_numpy(codes.astype(np.int64))


def _raw(codes: BlockCodes, num_codes: int) -> bytes:
    """Labels as four bytes each, and codes as they are, in as many bits as tell them apart."""
    flat = np.concatenate([level.numpy().ravel() for level in codes.levels])
    bits = (flat[:, None] >> np.arange(_bits(num_codes))[::-1]) & 1
    labels = b"" if codes.labels is None else codes.labels.numpy().astype("<i4").tobytes()
    return labels + np.packbits(bits.astype(np.uint8)).tobytes()


def _bits(num_codes: int) -> int:
    return max(1, (num_codes - 1).bit_length())


def _raw_bytes(codes: int, num_codes: int) -> int:
    return -(-codes * _bits(num_codes) // 8)


@contextmanager
def _repeatable() -> Iterator[None]:
    """One thread, so that sums are added in one order, and no precision less than that of the numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with exact_products(_CPU):
            yield
    finally:
        torch.set_num_threads(threads)


def _constriction() -> ModuleType:
    try:
        import constriction  # type: ignore[import-untyped]  # the library has no annotations
    except ImportError as error:
        raise UsageError("compressing takes the library constriction: `pip install 'gen-images[codec]'`") from error
    library: ModuleType = constriction
    return library
