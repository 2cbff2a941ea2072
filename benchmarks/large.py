"""Memory and seconds of each phase of both trainings, over the number of images, which are decoded to the disk.

    python -m benchmarks.large [--images 10000,100000,1000000] [--side 8] [--folder FOLDER]

Grey images of noise are made, as PNG in Parquet files, and trained on with `--memory-gib 0` and the preset tiny. Each
phase runs in a child of this process: `scan` (the files and their rows), `decode`, `open` (the decoded set once more),
`start` and `resume` (two steps of stage 1 each, all around them included), `encode, killed` (by itself, with SIGKILL,
once half of the shards of codes are written) and `encode` (what goes on from there, and a step of stage 2).

A JSON line a phase: seconds; anonymous memory in MiB at its beginning and at most (RssAnon of Linux, seen every
hundredth of a second: files that are mapped are not in it; elsewhere resident memory); `bytes_per_image`, by how much
more it grew than with the first number of images, over the images that are more; of `encode` the shards already there.
"""

import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import click
import numpy as np
import psutil
import torch
from PIL import Image

from pipeline import train_prior, train_vqvae
from pipeline.config.arguments import VQVAEArguments
from pipeline.config.data import DataConfig
from pipeline.data.codes.shards import write_shard
from pipeline.data.loading import load_images
from pipeline.data.sources.opening import open_source
from pipeline.reporting import Silent
from pipeline.storage import JsonObject
from pipeline.training.inputs import extract

_FILE, _GROUP = 50_000, 1000  # rows of a file, and of a row group
_SEEN_EVERY = 0.01  # seconds
_MIB = 2**20


class Measured(NamedTuple):
    """A child: seconds that it took, its anonymous bytes at the beginning and at most, and the signal that ended it."""

    seconds: float
    before: int
    most: int
    signal: int


def anonymous_bytes(process: int) -> int:
    """The memory of a process that no file stands for; where the system does not say, all that is resident."""
    status = Path(f"/proc/{process}/status")
    if status.exists():
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        return 1024 * int(found[0]) if found else 0
    return int(psutil.Process(process).memory_info().rss)


def in_child(work: Callable[[], object], *, is_to_be_killed: bool = False) -> Measured:
    """Run something in a child of this process. Raises RuntimeError where it fails."""
    sys.stdout.flush()
    before = most = anonymous_bytes(os.getpid())  # the child begins as a copy
    start, child = time.perf_counter(), os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        most = max(most, anonymous_bytes(child))
        time.sleep(_SEEN_EVERY)
    status = os.waitstatus_to_exitcode(ended[1])
    if status > 0 or (status < 0 and not is_to_be_killed):
        raise RuntimeError(f"a phase ended with {status}")
    return Measured(time.perf_counter() - start, before, most, -status)


def make(folder: Path, n: int, side: int) -> None:
    """Parquet files of so many images, as the Hugging Face hub stores them, of ten classes."""
    import pyarrow
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list("0123456789")}}
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("label", pyarrow.int64()),
        ],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    folder.mkdir(parents=True)
    for first in range(0, n, _FILE):
        with parquet.ParquetWriter(folder / f"train-{first // _FILE:05d}.parquet", schema) as file:
            for start in range(first, min(first + _FILE, n), _GROUP):
                rows = list(range(start, min(start + _GROUP, first + _FILE, n)))
                images = [{"bytes": png(row, side), "path": f"{row}.png"} for row in rows]
                file.write_table(pyarrow.table({"image": images, "label": [row % 10 for row in rows]}, schema))


def png(row: int, side: int) -> bytes:
    """An image of noise, a function of its number."""
    pixels = np.random.default_rng(row).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), "png", compress_level=1)
    return content.getvalue()


def shards(run: Path) -> int:
    """How many files of codes are written."""
    return len(list((run / "codes").glob("*.safetensors")))


def encode_and_die(run: Path, prior: Callable[[], object]) -> None:
    """Encode until half of the shards are written, and be killed."""
    wanted = extract._planned

    def planned(*arguments: Any) -> list[Any]:
        found = list(wanted(*arguments))
        totals.append(len(found))
        return found

    totals = list[int]()

    def written(*arguments: Any) -> None:
        write_shard(*arguments)
        if 2 * shards(run) >= sum(totals):
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(extract, "_planned", planned), patch.object(extract, "write_shard", written):
        prior()


def phases(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is measured, in order."""
    data, run = str(folder / "images" / "*.parquet"), folder / "run"
    config = DataConfig(data=data, memory_gib=0)
    begun: VQVAEArguments = {"data": data, "memory_gib": 0, "steps": 2, "batch_size": 16}
    begun |= {"validation": 0.001, "test": 0.001}  # so that it is not their evaluation that takes the time

    def prior() -> object:
        return train_prior(run, preset="tiny", steps=1, batch_size=16, force=True, reporter=Silent())

    yield "scan", lambda: open_source(Path(data), config.max_bytes)
    yield "decode", lambda: load_images(config, reporter=Silent())
    yield "open", lambda: load_images(config, reporter=Silent())
    yield "start", lambda: train_vqvae(out=run, preset="tiny", reporter=Silent(), **begun)
    yield "resume", lambda: train_vqvae(resume="auto", steps=4, out=run, reporter=Silent())
    yield "encode, killed", lambda: encode_and_die(run, prior)
    yield "encode", prior


def lines(folder: Path, n: int, side: int) -> Iterator[JsonObject]:
    """The phases of one number of images."""
    in_child(lambda: make(folder / "images", n, side))
    for phase, work in phases(folder):
        there = shards(folder / "run")
        found = in_child(work, is_to_be_killed=phase.endswith("killed"))
        yield {
            "images": n,
            "side": side,
            "phase": phase,
            "seconds": round(found.seconds, 2),
            "before_mib": round(found.before / _MIB, 1),
            "most_mib": round(found.most / _MIB, 1),
            **({"killed": found.signal == signal.SIGKILL} if phase.endswith("killed") else {}),
            **({"shards_there": there, "shards": shards(folder / "run")} if phase == "encode" else {}),
        }


@click.command()
@click.option("--images", default="10000,100000,1000000", show_default=True, help="Numbers, separated by commas.")
@click.option("--side", default=8, show_default=True, help="Pixels.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where everything is written; else a temporary folder.")
def main(images: str, side: int, folder: Path | None) -> None:
    """Measure and print."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    first: dict[object, tuple[int, float]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for n in map(int, images.split(",")):
            here = Path(temporary) / str(n)
            with patch.dict(os.environ, {"GEN_CACHE": str(here / "cache")}):
                for line in lines(here, n, side):
                    grown = float(str(line["most_mib"])) - float(str(line["before_mib"]))
                    fewer, less = first.setdefault(line["phase"], (n, grown))
                    more = {} if n == fewer else {"bytes_per_image": round((grown - less) * _MIB / (n - fewer), 1)}
                    print(json.dumps({**line, **more}), flush=True)


if __name__ == "__main__":
    main()
