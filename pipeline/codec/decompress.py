"""Images out of a .genz file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.codec.coder import BlockCoder, BlockCodes, arithmetic
from pipeline.codec.container import Header, Index, Reader
from pipeline.codec.names import picture_names
from pipeline.config.sampling import DecoderName
from pipeline.data.codes.maps import join_levels
from pipeline.errors import CheckpointError, UsageError
from pipeline.reporting import Reporter, Silent
from pipeline.runs.loading import priors_sha256
from pipeline.sampling.generate import Generated
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.samples import Samples, picture_name
from pipeline.storage import JsonObject, atomic_file, check_paths, naming, read_json, sha256, write_json

NOTE = "compressed.json"  # in a folder of images, the file that they come from


class Decompressed(NamedTuple):
    """Images (n, c, h, w) with their codes and labels (-1: unknown), and the names of their files, where kept."""

    samples: Samples
    names: tuple[str, ...]


def decompress(
    path: str | Path,
    run: str | Path | Model | None = None,
    *,
    images: range | None = None,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    reporter: Reporter | None = None,
) -> Decompressed:
    """The images of a .genz file, or those of the numbers `images` alone, for which the blocks they are in are read.

    `run`: the one that it was compressed with, by default the newest. `decoder`: as of `load`. Raises UsageError, and
    CheckpointError for a file that is damaged, by block, for one of another run, and where this machine computes other
    probabilities than the one that wrote it: no wrong image is given without a word.
    """
    check_paths(path=path, run=None if isinstance(run, Model) else run)
    with _opened(Path(path), run, device, decoder, reporter or Silent()) as file:
        wanted = range(file.contents.images) if images is None else images
        if not len(wanted) or not 0 <= min(wanted) <= max(wanted) < file.contents.images:
            raise UsageError(f"{path} holds images 0 to {file.contents.images - 1:,}; got {wanted}")
        size = file.header.block_size
        numbers = sorted({number // size for number in wanted})
        steps = (reporter or Silent()).steps(range(len(numbers)), "decompress")
        parts = {numbers[step]: file.codes(numbers[step]) for step in steps}
        codes = _chosen(parts, wanted, size)
        names = tuple(file.contents.names[number] for number in wanted) if file.contents.names else ()
        return Decompressed(file.samples(codes), names)


def decompress_files(
    path: str | Path,
    out: str | Path,
    run: str | Path | Model | None = None,
    *,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    reporter: Reporter | None = None,
) -> Generated:
    """Write all images of a .genz file into a new folder, as PNG files under their names.

    The whole file is checked before the first is written. A command that was stopped goes on after the blocks whose
    files are all there; a folder with anything else in it is refused. Raises what `decompress` raises.
    """
    check_paths(path=path, out=out, run=None if isinstance(run, Model) else run)
    folder = Path(out)
    with _opened(Path(path), run, device, decoder, reporter or Silent()) as file:
        file.reader.check_blocks(file.contents)
        count = file.contents.images
        names = picture_names(file.contents.names) or [picture_name(number) for number in range(count)]
        _begin(folder, {"file_sha256": sha256(Path(path)), "decoder_sha256": file.model.vqvae.decoder_sha256})
        size, new = file.header.block_size, 0
        for number in (reporter or Silent()).steps(range(len(file.contents.offsets)), "decompress"):
            block = [folder / name for name in names[number * size : (number + 1) * size]]
            if not all(target.exists() for target in block):
                _write(file.samples(file.codes(number)), block)
                new += len(block)
    return Generated(folder, count, new)


def _begin(folder: Path, source: JsonObject) -> None:
    """Note where the images of a folder come from. Raises UsageError for one that holds those of another file, or
    anything else."""
    note = folder / NOTE
    if note.is_file():
        if read_json(note) != source:
            raise UsageError(f"{folder} holds images of another file, or of another decoder; choose another --out")
    elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} holds other files already; choose another --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, source)


class _File(NamedTuple):
    """A .genz file and the run that it was compressed with."""

    reader: Reader
    contents: Index
    model: Model
    coder: BlockCoder

    @property
    def header(self) -> Header:
        """What the file says of its run."""
        return self.reader.header

    def codes(self, block: int) -> BlockCodes:
        """The codes of a block. Raises CheckpointError."""
        what = f"block {block} of {self.reader.path}"
        return self.coder.decode(self.reader.block_of(self.contents, block), what)

    def samples(self, codes: BlockCodes) -> Samples:
        """The images of codes."""
        images = self.model.decode(codes.levels)
        return Samples(images, codes.levels, codes.labels, self.header.class_names, self.header.codes_sha256)


@contextmanager
def _opened(
    path: Path,
    run: str | Path | Model | None,
    device: str | torch.device | None,
    decoder: DecoderName | None,
    reporter: Reporter,
) -> Iterator[_File]:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; name one that `gen compress` wrote")
    with naming(path), path.open("rb") as content:
        reader = Reader(path, content)
        index = reader.index()
        model = loaded(run, "samples", device, decoder=decoder)
        _check_belongs(path, reader.header, model)
        if reader.header.arithmetic != arithmetic():
            reporter.say(
                f"{path} was written with {reader.header.arithmetic}, and here it is {arithmetic()}: blocks may "
                "differ, so each is checked"
            )
        priors = model.priors[: len(reader.header.grids)]
        yield _File(reader, index, model, BlockCoder(priors, reader.header.block_size))


def _check_belongs(path: Path, header: Header, model: Model) -> None:
    """Raise CheckpointError unless the file was compressed with this run."""
    ours = {"codes_sha256": model.vqvae.codes_sha256}
    ours["prior_sha256"] = priors_sha256(model.priors[: len(header.grids)])
    theirs = {"codes_sha256": header.codes_sha256, "prior_sha256": header.prior_sha256}
    config = model.vqvae.config.model
    if header.grids != config.grids[: len(header.grids)] or header.num_codes != config.num_codes:
        raise CheckpointError(f"{path} says that its maps are of other sizes than those of {model.run.called}")
    differing = [f"{name} {theirs[name][:12]}, not {ours[name][:12]}" for name in ours if theirs[name] != ours[name]]
    if differing:
        raise CheckpointError(
            f"{path} was compressed with another run than {model.run.called}: {'; '.join(differing)}; name that "
            "run with --run"
        )


def _chosen(parts: dict[int, BlockCodes], wanted: range, size: int) -> BlockCodes:
    """The codes of these images, in their order."""
    orders = {block: order for order, block in enumerate(parts)}
    rows = torch.tensor([orders[number // size] * size + number % size for number in wanted])
    levels = tuple(level[rows] for level in join_levels(part.levels for part in parts.values()))
    labels: list[Int[Tensor, "m"]] = [part.labels for part in parts.values() if part.labels is not None]
    return BlockCodes(levels, torch.cat(labels)[rows] if labels else None)


def _write(samples: Samples, targets: Sequence[Path]) -> None:
    for image, target in zip(samples.to_pil(), targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as unfinished:
            image.save(unfinished, format="png")
