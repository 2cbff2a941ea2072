"""Images into a .genz file."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_CUR
from pathlib import Path
from typing import BinaryIO, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.codec.coder import BlockCoder, BlockCodes, arithmetic
from pipeline.codec.container import (
    MAGIC,
    RAW,
    Block,
    Header,
    Index,
    Kind,
    Reader,
    size_of,
    write_block,
    write_header,
    write_index,
)
from pipeline.codec.names import unfit_names
from pipeline.config.arguments import CompressArguments
from pipeline.config.codec import CompressConfig
from pipeline.config.options import build
from pipeline.errors import CheckpointError, FolderInUseError, UsageError
from pipeline.reporting import Reporter, Silent
from pipeline.runs.loading import priors_sha256
from pipeline.sampling.inputs import Images, batch_of, check_images
from pipeline.sampling.model import Model, loaded
from pipeline.storage import check_paths, naming, sync

UNFINISHED = ".part"


@dataclass(frozen=True)
class Compressed:
    """What was written, in bytes: all of the file, and of it the entropy-coded codes and labels."""

    path: Path
    images: int
    blocks: int
    raw_blocks: int  # whose codes did not come back from their probabilities, and stand there as they are
    bytes: int
    payload_bytes: int


def compress(
    run: str | Path | Model | None,
    images: Images,
    path: str | Path,
    *,
    labels: Int[np.ndarray, "n"] | None = None,
    names: Sequence[str] = (),
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[CompressArguments],
) -> Compressed:
    """Write the codes of images, uint8 (n, c, h, w), into a new file, as few bits as the run's priors find them likely.

    `labels`: the run's classes by number, -1 where unknown; they are coded too, and codes cost less given them.
    `names`: one an image, kept in the file. `options` are the fields of CompressConfig.

    A block of images is range coded (Martin 1979) under float64 probabilities that both ends compute in the same way,
    decoded once more and compared. What a command that was stopped has written, PATH.part, is gone on with. Codes are
    all that is kept: images come back as `reconstruct` shows them. Raises UsageError and CheckpointError.
    """
    check_paths(run=None if isinstance(run, Model) else run, path=path)
    (config,) = build(options, CompressConfig)
    model, target = loaded(run, "samples", device), Path(path)
    _check(model, target, labels, names, images)
    model.check_levels(config.levels)
    given = check_images(images, model.vqvae.config.model)
    work = _Work(model, given, _labels_for(model, labels, len(given)), config)
    unfinished = target.with_name(target.name + UNFINISHED)
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming(unfinished), _opened_alone(unfinished) as file:
        blocks = _write_blocks(work, unfinished, file, reporter or Silent())
        offsets = tuple(block.offset for block in blocks)
        write_index(file, Index(offsets=offsets, images=len(given), names=tuple(names) if config.keep_names else ()))
        sync(unfinished)
        if target.exists():
            raise UsageError(f"{target} was written by another command meanwhile; what this one made is {unfinished}")
        unfinished.replace(target)
    sync(target.parent)
    return Compressed(
        path=target,
        images=len(given),
        blocks=len(blocks),
        raw_blocks=sum(block.kind == RAW for block in blocks),
        bytes=target.stat().st_size,
        payload_bytes=sum(block.payload_bytes for block in blocks),
    )


def _check(
    model: Model, target: Path, labels: Int[np.ndarray, "n"] | None, names: Sequence[str], images: Images
) -> None:
    """Raise UsageError with all that does not fit."""
    problems = []
    if target.exists():
        problems.append(f"{target} exists already; choose another name")
    if not model.priors:
        problems.append("the codes of this run are numbers, and no prior says how probable they are")
    elif labels is not None:
        classes = len(model.priors[0].config.class_names)
        if len(labels) != len(images) or not np.isin(labels, np.arange(-1, classes)).all():
            problems.append(f"labels are one of -1 to {classes - 1} for each of {len(images):,} images")
    if names and len(names) != len(images):
        problems.append(f"there are {len(names):,} names for {len(images):,} images")
    if unfit := unfit_names(names):
        problems.append(f"{len(unfit):,} names are of no file within a folder, or come twice, such as {unfit[0]!r:.80}")
    if not len(images):
        problems.append("there are no images to compress; give one at least")
    if problems:
        raise UsageError("\n".join(problems))


def header_of(model: Model, levels: int, block_size: int) -> Header:
    """What a file says of the run and the machine that wrote it."""
    config, priors = model.vqvae.config.model, model.priors[:levels]
    return Header(
        codes_sha256=model.vqvae.codes_sha256,
        prior_sha256=priors_sha256(priors),
        arithmetic=arithmetic(),
        image_shape=(config.channels, config.height, config.width),
        grids=config.grids[:levels],
        num_codes=config.num_codes,
        class_names=model.priors[0].config.class_names,
        block_size=block_size,
    )


class _Written(NamedTuple):
    """A block on the disk."""

    offset: int
    kind: Kind
    payload_bytes: int


class _Work(NamedTuple):
    """What is compressed, and under what."""

    model: Model
    images: Images
    labels: Int[Tensor, "n"] | None
    config: CompressConfig

    @property
    def levels(self) -> int:
        """How many are kept."""
        return self.config.levels or len(self.model.priors)

    def codes(self, block: int) -> BlockCodes:
        """The codes of the images of a block."""
        size = self.config.block_size
        levels = self.model.encode(batch_of(self.images, block * size, size))[: self.levels]
        labels = None if self.labels is None else self.labels[block * size : (block + 1) * size]
        return BlockCodes(tuple(level.long() for level in levels), labels)


def _write_blocks(work: _Work, path: Path, file: BinaryIO, reporter: Reporter) -> list[_Written]:
    """Write all blocks, but for those at the beginning of the file that are whole, and of these images."""
    header = header_of(work.model, work.levels, work.config.block_size)
    there = _begun(path, file, header)
    coder = BlockCoder(work.model.priors[: work.levels], work.config.block_size)
    written, end = [], file.seek(0, SEEK_CUR)
    for number in reporter.steps(range(-(-len(work.images) // work.config.block_size)), "compress"):
        codes = work.codes(number)
        block = next(there, None)
        if block is None or (block.images, block.codes_crc) != (len(codes), codes.crc()):
            there, block = iter(()), coder.encode(codes)
            file.seek(end)
            write_block(file, block)
            file.truncate()
            file.flush()
        written.append(_Written(end, block.kind, len(block.payload)))
        end += size_of(block)
    file.seek(end)
    file.truncate()
    return written


@contextmanager
def _opened_alone(path: Path) -> Iterator[BinaryIO]:
    """What a command left unfinished, or a new file, while no other command writes to it. Raises UsageError for a file
    that is none of ours, and FolderInUseError."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(
                f"another command is writing {path}; wait for it, or choose another --out"
            ) from error
        beginning = file.read(len(MAGIC))
        if beginning not in (b"", MAGIC):
            raise UsageError(f"{path} is no file of gen compress; move it away, or choose another --out")
        file.seek(0)
        yield file


def _begun(path: Path, file: BinaryIO, header: Header) -> Iterator[Block]:
    """The whole blocks of a file that was begun with this header; else none, and it begins anew."""
    try:
        reader = Reader(path, file)
        if reader.header == header:
            file.seek(reader.first_block)
            return reader.whole_blocks()
    except CheckpointError:
        pass  # nothing of it is whole
    file.seek(0)
    file.truncate()
    write_header(file, header)
    return iter(())


def _labels_for(model: Model, labels: Int[np.ndarray, "n"] | None, n: int) -> Int[Tensor, "n"] | None:
    """None where the prior has no classes, -1 where they are unknown."""
    if not model.priors[0].config.class_names:
        return None
    return torch.full((n,), -1) if labels is None else torch.from_numpy(np.asarray(labels, np.int64))
