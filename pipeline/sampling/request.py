"""A folder of samples belongs to one request, and is filled by one command at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline import processes
from pipeline.config.sampling import DecoderName, FloatPrecision, Format
from pipeline.errors import UsageError
from pipeline.formats import FORMAT_VERSION, read_current
from pipeline.resources import check_writable
from pipeline.runs.lock import locked
from pipeline.sampling.samples import CODES, remove_partial
from pipeline.storage import validated, write_json
from stage2_prior import GuidanceSchedule

REQUEST = "request.json"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Request:
    """request.json of a folder of samples: all that decides what its images are, and how they are laid out."""

    format_version: Literal[8] = FORMAT_VERSION
    kind: Literal["samples"] = "samples"
    codes_sha256: str
    decoder: DecoderName = "plain"  # older versions had no other
    decoder_sha256: str
    prior_sha256: str
    seed: int
    label: str | None
    guidance: float
    guidance_schedule: GuidanceSchedule = "constant"  # older versions had no other
    temperature: float
    top_k: int | None
    top_p: float | None
    precision: FloatPrecision
    format: Format


@contextmanager
def sample_folder(folder: Path, request: Request, accelerator: Accelerator) -> Iterator[None]:
    """While it is entered, a folder is filled by this request and by no other command.

    Raises, on every process alike, UsageError when the folder holds anything else or is being written to, and
    CheckpointError when its request cannot be read.
    """
    path = folder / REQUEST

    def check_is_ours() -> None:
        if folder.is_file():
            raise UsageError(f"{folder} is a file, and samples need a folder; choose another --out")
        check_writable(path if folder.is_dir() else folder)
        if not path.exists() and folder.exists() and any(folder.glob("[!.]*")):
            raise UsageError(f"{folder} exists already, and has no {REQUEST} to go on from; choose another --out")

    def prepare() -> None:
        if path.exists():
            _check_same(folder, validated(path, read_current(path), Request), request)
            remove_partial(folder, request.format)
        else:  # before anything else, or a command that is killed leaves a folder that belongs to nothing
            write_json(path, asdict(request))
        (folder / CODES).mkdir(exist_ok=True)

    processes.on_main(accelerator, check_is_ours)
    with locked(folder, accelerator, prepare):
        yield


def _check_same(folder: Path, begun: Request, asked: Request) -> None:
    ours, there = asdict(asked), asdict(begun)
    differing = [f"{name} {there[name]}, not {ours[name]}" for name in there if there[name] != ours[name]]
    if differing:
        remedy = "choose another --out or --seed"
        if begun.decoder != asked.decoder:
            remedy = f"go on with --decoder {begun.decoder}, or {remedy}"
        raise UsageError(f"{folder} holds samples of {'; '.join(differing)}; {remedy}")
