"""The layout of a .genz file: a header, blocks that are read by themselves, an index of them, and where it lies.

Every byte lies under a CRC-32 or is compared, so that a damaged file is named, with the part that is. All numbers are
little-endian; the header and the index are JSON, the latter compressed.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from io import SEEK_CUR, SEEK_END
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.codec.names import unfit_names
from pipeline.config.codec import LARGEST_BLOCK
from pipeline.errors import CheckpointError, describe

MAGIC, VERSION = b"GENZ", 1
_START = Struct("<4sBII")  # the magic, the version, bytes of the header, their CRC
_BLOCK = Struct("<HBIII")  # images, kind, bytes of the payload, CRC of the codes, CRC of all this and the payload
_END = Struct("<QII4s")  # where the index begins, its bytes, their CRC, the magic
_LARGEST_HEADER, _LARGEST_INDEX = 2**24, 2**28  # bytes, as text

T = TypeVar("T")

Kind = Literal[0, 1]
CODED: Kind = 0
RAW: Kind = 1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Header:
    """What is needed to decode, and to know whether this machine and this run can."""

    codes_sha256: str
    prior_sha256: str
    arithmetic: str  # what computed the probabilities
    image_shape: tuple[int, int, int]  # channels, height, width
    grids: tuple[tuple[int, int], ...] = Field(min_length=1)  # of the levels that are kept
    num_codes: int = Field(ge=1)
    class_names: tuple[str, ...]
    block_size: int = Field(ge=1, le=LARGEST_BLOCK)


class Block(NamedTuple):
    """Codes and labels of some images as bytes, and the CRC-32 of the codes themselves."""

    images: int
    kind: Kind
    payload: bytes
    codes_crc: int


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Index:
    """Where each block begins, how many images there are, and what their files were called."""

    offsets: tuple[int, ...]
    images: int = Field(ge=1)
    names: tuple[str, ...]  # none, or one an image


def write_header(file: BinaryIO, header: Header) -> None:
    """The beginning of a file."""
    content = json.dumps(asdict(header), separators=(",", ":")).encode()
    file.write(_START.pack(MAGIC, VERSION, len(content), zlib.crc32(content)) + content)


def write_block(file: BinaryIO, block: Block) -> None:
    """A block, after the header or another one."""
    described = _BLOCK.pack(block.images, block.kind, len(block.payload), block.codes_crc, 0)[:-4]
    crc = zlib.crc32(block.payload, zlib.crc32(described))
    file.write(described + crc.to_bytes(4, "little") + block.payload)


def size_of(block: Block) -> int:
    """Bytes of a block in a file."""
    return _BLOCK.size + len(block.payload)


def write_index(file: BinaryIO, index: Index) -> None:
    """The end of a file."""
    content = zlib.compress(json.dumps(asdict(index), separators=(",", ":")).encode(), 9)
    start = file.seek(0, SEEK_CUR)
    file.write(content + _END.pack(start, len(content), zlib.crc32(content), MAGIC))


class Reader:
    """A .genz file that is open for reading; each method raises CheckpointError, which says what is damaged."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._size = file.seek(0, SEEK_END)
        self.header = self._read_header()
        self.first_block = file.seek(0, SEEK_CUR)

    def index(self) -> Index:
        """Read the index. A file without a whole one is unfinished or cut off."""
        self._file.seek(max(0, self._size - _END.size))
        end = self._file.read(_END.size)
        if len(end) < _END.size or not end.endswith(MAGIC):
            whole = sum(1 for _ in self.whole_blocks())
            raise self._damaged(f"its end is missing: block {whole} and what follows is cut off or damaged")
        start, length, crc, _ = _END.unpack(end)
        content = self._bytes(start, length, "the index")
        if zlib.crc32(content) != crc or start + length + _END.size != self._size:
            raise self._damaged("its index is damaged")
        found = self._parsed(_inflated(content), "index", Index)
        if found.names and (len(found.names) != found.images or unfit_names(found.names)):
            raise self._damaged(f"its index has no name of its own for each of {found.images:,} images")
        blocks = -(-found.images // self.header.block_size)
        if len(found.offsets) != blocks or min(found.offsets) < self.first_block:
            raise self._damaged(f"its index has no place for each of the {blocks:,} blocks of {found.images:,} images")
        return found

    def block(self, number: int, offset: int, expected: int | None = None) -> Block:
        """The block at an offset; `number` is what to call it, `expected` how many images it should have."""
        what = f"block {number}"
        head = self._bytes(offset, _BLOCK.size, what)
        images, kind, length, codes_crc, crc = _BLOCK.unpack(head)
        payload = self._bytes(offset + _BLOCK.size, length, what)
        if zlib.crc32(payload, zlib.crc32(head[:-4])) != crc:
            raise self._damaged(f"{what} is damaged")
        if kind not in (CODED, RAW):
            raise self._damaged(f"{what} is of kind {kind}, and this version knows {CODED} and {RAW}")
        if not 0 < images <= self.header.block_size or expected not in (None, images):
            raise self._damaged(f"{what} has {images} images, where {expected or self.header.block_size} are expected")
        return Block(images, kind, payload, codes_crc)

    def whole_blocks(self) -> Iterator[Block]:
        """The blocks from the first on, up to one that is cut off or damaged."""
        offset, number = self.first_block, 0
        while True:
            try:
                block = self.block(number, offset)
            except CheckpointError:
                return
            yield block
            offset, number = offset + size_of(block), number + 1

    def block_of(self, index: Index, number: int) -> Block:
        """A block by its number."""
        size = self.header.block_size
        return self.block(number, index.offsets[number], min(size, index.images - number * size))

    def check_blocks(self, index: Index) -> None:
        """Read all blocks, so that a damaged file is refused before anything is made of it."""
        for number in range(len(index.offsets)):
            self.block_of(index, number)

    def _read_header(self) -> Header:
        self._file.seek(0)
        start = self._file.read(_START.size)
        if len(start) < _START.size or not start.startswith(MAGIC):
            raise CheckpointError(f"{self.path} is no .genz file: it does not begin as one does")
        _, version, length, crc = _START.unpack(start)
        if version != VERSION:
            raise CheckpointError(f"{self.path} is of version {version}, and this gen reads {VERSION}; install a newer")
        content = self._bytes(_START.size, min(length, _LARGEST_HEADER), "the header")
        if zlib.crc32(content) != crc:
            raise self._damaged("its header is damaged")
        return self._parsed(content, "header", Header)

    def _bytes(self, offset: int, length: int, what: str) -> bytes:
        if offset + length > self._size:
            raise self._damaged(
                f"{what} is cut off: {self._size:,} bytes are there, and it ends at {offset + length:,}"
            )
        self._file.seek(offset)
        return self._file.read(length)

    def _parsed(self, content: bytes, what: str, kind: type[T]) -> T:
        try:
            return TypeAdapter(kind).validate_python(json.loads(content))
        except ValidationError as error:
            raise self._damaged(f"its {what} is not one of this version: {describe(error)}") from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its {what} is not JSON") from error

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {what}; copy it again from where it came")


def _inflated(content: bytes) -> bytes:
    """Decompressed, and no more of it than an index may be; b"" where it is none."""
    try:
        return zlib.decompressobj().decompress(content, _LARGEST_INDEX)
    except zlib.error:
        return b""
