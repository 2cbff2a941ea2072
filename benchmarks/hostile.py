"""Whatever a command is given is used, or refused in a sentence: values of every option, bytes of images, of files.

    python -m benchmarks.hostile [--options] [--images 3000] [--files 3000] [--every 1] [--only NAME] [--seed 0]
        [--keep FOLDER]

`--options`: every option and argument of every command, and every argument of the Python API, with wrong types, numbers
out of range, nan, inf, huge, empty, unicode, and paths of another kind. `--images`: pictures of ten formats whose bytes
are flipped, cut, doubled, or spliced. `--files`: the JSON and safetensors files of a run, changed in such ways or into
what they must not say, most of them with manifests that agree; then a command reads them.

Each try is a process of its own, with 20 seconds of computing (120 in all) and 4 GiB. Prints one JSON line a command
(or kind of file), then the sums: tried, accepted, refused in a sentence (by a GenError, or an error of the system that
names a file), tracebacks (whatever else ended it, crashes too), hangs, finished models that were changed by a command
that failed, the greatest growth of memory (MiB), the longest message (characters). Exits with 1 where there is a
traceback, a hang, or a model that was changed.
"""

import hashlib
import inspect
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Unpack, get_args, get_type_hints

import click
import numpy as np
import torch

from pipeline import (
    Model,
    complete,
    evaluate,
    evaluate_folder,
    features,
    features_file,
    generate,
    generate_files,
    load,
    nearest,
    score,
    sharpen,
    train_prior,
    train_vqvae,
)
from pipeline.cli.main import main as gen_command
from pipeline.config.arguments import EvaluateArguments
from pipeline.config.data import DataConfig
from pipeline.data.loading import load_images
from pipeline.errors import GenError
from pipeline.runs.layout import is_finished
from pipeline.storage import MANIFEST, verify
from tests.pipeline.hostile import OBJECTS, VALUES, damaged, damaged_json, damaged_tensors, pictures
from tests.pipeline.tries import Machine, Outcome, Tally, command

_AT_ONCE = 10  # damaged pictures in a folder

_TRAIN = "--preset tiny --steps 2 --hidden 8 --batch-size 8 --precision float32 --quiet"
_COMMANDS = {  # options with which each is quick, and its arguments
    "train-vqvae": (f"--data pictures --out new --num-codes 12 --code-dim 4 {_TRAIN}", ""),
    "train-prior": (f"--out new --layers 2 --head 8 --force {_TRAIN}", "run"),
    "sharpen": ("--steps 2 --batch-size 8 --precision float32 --quiet", "run"),
    "compare": (f"--data pictures --out new --bottlenecks vq,none {_TRAIN}", ""),
    "sample": ("--n 2 --out new --quiet", "run"),
    "complete": ("--run run --keep top:0.5 --n 2 --out new.png", "picture.png"),
    "reconstruct": ("--run run --out new.png --quiet", "picture.png"),
    "score": ("--run run --out new.png --quiet", "picture.png"),
    "nearest": ("--run run --k 2 --out new.png --quiet", "picture.png"),
    "encode": ("--run run --out new.safetensors --quiet", "pictures"),
    "decode": ("--run run --out new --quiet", "codes.safetensors"),
    "evaluate": ("--n 1 --quiet", "run"),
    "info": ("", "run"),
    "status": ("", "run"),
}
# Of some options: another that they do not go with, and one that they do not go without.
_INSTEAD = {"max-minutes": "--steps", "mask": "--keep", "resume": "--preset"}
_BESIDE = {("reconstruct", "seed"): "--random", ("train-prior", "shift"): "--encodings 2"}


def try_options(machine: Machine, every: int, only: str = "") -> Iterator[Tally]:
    """Every parameter of every command, with every value (or every n-th)."""
    number = 0
    for name, described in gen_command.commands.items():
        if only not in f"gen {name}":
            continue
        tally = Tally(f"gen {name}")
        for parameter in described.params:
            for value in VALUES:
                number += 1
                if number % every:
                    continue
                arguments = [name, *_arguments(name, parameter, value)]
                tally.add(machine.outcome(command(machine.begin(), arguments)), " ".join(arguments))
        yield tally


def _arguments(name: str, parameter: click.Parameter, value: str) -> list[str]:
    """What is typed after a command, with this value of this parameter in it."""
    options, argument = (text.split() for text in _COMMANDS.get(name, ("", "")))
    if isinstance(parameter, click.Argument):
        return [*options, "--", value]
    flag = max(parameter.opts, key=len)
    without = _INSTEAD.get(flag[2:])
    if without in options:
        at = options.index(without)
        del options[at : at + 2]
    options += _BESIDE.get((name, flag[2:]), "").split()
    given = [f"{flag}={value}"] if isinstance(parameter, click.Option) and parameter.is_flag else [flag, value]
    return [*options, *given, *(argument if argument != ["run"] or flag != "--run" else [])]


def try_functions(machine: Machine, every: int, only: str = "") -> Iterator[Tally]:
    """Every argument of the Python API but reporters, with every object (or every n-th)."""
    folder = machine.begin()
    number = 0
    for function, usual in _functions(folder):
        if only not in function.__qualname__:
            continue
        tally = Tally(f"{function.__qualname__}()")
        for name in _names(function):
            for index, make in enumerate(OBJECTS):
                number += 1
                if number % every:
                    continue
                outcome = machine.outcome(_call(machine.begin(), function, usual, name, make))
                tally.add(outcome, f"{name}=OBJECTS[{index}], {make()!r:.100}")
        yield tally


def _functions(folder: Path) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """Each function with arguments with which it is quick."""
    images = np.zeros((4, 1, 8, 12), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None] * 60
    small = {"hidden": 8, "steps": 2, "batch_size": 8, "preset": "tiny", "precision": "float32"}
    model, run = load(folder / "run"), "run"
    codes = model.encode(images)
    return [
        (train_vqvae, {"data": "pictures", "out": "new", "num_codes": 12, **small}),
        (train_prior, {"run": run, "out": "new", "layers": 2, "head": 8, "force": True, **small}),
        (sharpen, {"run": run, "steps": 2, "batch_size": 8, "precision": "float32"}),
        (load, {"run": run}),
        (generate, {"run": run, "n": 2}),
        (generate_files, {"run": run, "n": 2, "out": "new"}),
        (complete, {"run": run, "image": images[0], "kept": "top:0.5", "n": 2}),
        (score, {"run": run, "images": images}),
        (nearest, {"run": run, "images": images, "k": 2}),
        (features, {"run": run, "images": images}),
        (features_file, {"run": run, "images": images, "out": "new.npz"}),
        (_evaluate, {"run": run, "n": 1}),
        (evaluate_folder, {"samples": "pictures", "run": run, "n": 1}),
        (Model.encode, {"self": model, "images": images}),
        (Model.decode, {"self": model, "codes": codes}),
        (Model.reconstruct, {"self": model, "images": images}),
        (Model.sampler, {"self": model}),
        (Model.sample, {"self": model, "n": 2}),
    ]


def _evaluate(run: Any, **options: Unpack[EvaluateArguments]) -> None:
    """evaluate(), whose runs have no name."""
    evaluate(run, **options)


def _names(function: Callable[..., Any]) -> list[str]:
    """The names of its arguments, those of the configurations too."""
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named += get_type_hints(get_args(get_type_hints(function)[parameter.name])[0])
    return [name for name in named if name not in ("self", "reporter", "accelerator")]


def _call(
    folder: Path, function: Callable[..., Any], usual: dict[str, Any], name: str, make: Callable[[], object]
) -> Callable[[], int]:
    without = {"max_minutes": "steps", "resume": "preset", "images": "data" if function is train_vqvae else ""}.get(
        name
    )

    def work() -> int:
        os.chdir(folder)
        function(**{key: value for key, value in usual.items() if key != without} | {name: make()})
        return 0

    return work


def try_images(machine: Machine, tries: int, rng: random.Random) -> Iterator[Tally]:
    """Damaged pictures beside a whole one: each is an image or named as bad, in silence."""
    tally, whole = Tally("images"), pictures()
    while tally.counts["tried"] < tries:
        folder = machine.work / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "whole.png").write_bytes(whole["colour.png"])
        for index in range(min(_AT_ONCE, tries - tally.counts["tried"])):
            name = rng.choice(sorted(whole))
            other = whole[rng.choice(sorted(whole))]
            (folder / f"{index}-{name}").write_bytes(damaged(whole[name], rng, other))
        _add_pictures(machine, tally, machine.outcome(partial(_decode, folder)), folder)
    yield tally


def _decode(folder: Path) -> int:
    found = load_images(DataConfig(data=str(folder), image_size="16", on_bad_image="skip"))
    named = {line.partition(": ")[0] for line in found.skipped}
    assert named | set(found.names) == {path.name for path in folder.iterdir()} and "whole.png" in found.names
    assert all(line.partition(": ")[2] for line in found.skipped)
    print(len(found.names) - 1, len(found.skipped))
    return 0


def _add_pictures(machine: Machine, tally: Tally, outcome: Outcome, folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    if outcome.status == 0 and not outcome.errors:
        accepted, refused = map(int, outcome.output.split())
        tally.growth = max(tally.growth, outcome.growth)
        tally.counts.update({"tried": accepted + refused, "accepted": accepted, "refused": refused})
        return
    tally.add(outcome._replace(status=outcome.status or 1), str(names))
    machine.keep(folder)
    tally.counts["tried"] += len(names) - 2


_READERS = {
    "info": "info run",
    "sample": "sample run --n 3 --out new --quiet",
    "sample best": "sample run --guidance best --n 2 --out new --quiet",
    "sample further": "sample run --n 4 --batch-size 2 --quiet",
    "status": "status run",
    "status as JSON": "status run --json",
    "train-prior": "train-prior run --resume auto --steps 8 --quiet",
    "train-prior anew": f"train-prior run --out new --layers 2 --head 8 --force {_TRAIN}",
    "train-vqvae": "train-vqvae --out run --resume auto --steps 8 --quiet",
    "decode": "decode codes.safetensors --run run --out new --quiet",
    "reconstruct": "reconstruct picture.png --run run --out new.png --quiet",
}


def try_files(machine: Machine, tries: int, rng: random.Random) -> Iterator[Tally]:
    """Damaged files of a run, which a command then reads."""
    folder = machine.begin()
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.suffix in _DAMAGED]
    tallies: dict[str, Tally] = {}
    for index in range(tries):
        name = names[index % len(names)]
        reader = rng.choice(_readers(name))
        kind = "codes/*" if "/codes/" in name else Path(name).name
        tally = tallies.setdefault(kind, Tally(kind))
        _try_file(machine, tally, name, reader, rng)
    yield from tallies.values()


def _readers(name: str) -> list[str]:
    """The commands that read a file."""
    if "/samples/" in name:
        return ["sample further"]
    if name.endswith("evaluation.json"):
        return ["info", "sample best"]
    if name == "codes.safetensors":
        return ["decode"]
    if "/codes/" in name:
        return ["train-prior"]
    if "/checkpoints/" in name:
        return ["train-prior"] if "/prior/" in name else ["train-vqvae"]
    if name.endswith(("metrics.jsonl", "status.json")):
        return ["status", "status as JSON", "train-prior" if "/prior/" in name else "train-vqvae"]
    if "/prior/" in name:
        return [reader for reader in _READERS if reader not in ("train-vqvae", "decode", "train-prior anew")]
    return list(_READERS)


_DAMAGED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": damaged_json,
    ".jsonl": damaged_json,
    ".safetensors": damaged_tensors,
}


def _try_file(machine: Machine, tally: Tally, name: str, reader: str, rng: random.Random) -> None:
    folder = machine.begin(stage1_alone=reader == "train-vqvae")
    path = folder / name
    if not path.is_file():
        return
    path.write_bytes(_DAMAGED[path.suffix](path.read_bytes(), rng))
    mended = rng.random() < 0.8
    if mended:
        _mend(path)
    before = _models(folder / "run")
    outcome = machine.outcome(command(folder, _READERS[reader].split()))
    tried = f"{_READERS[reader]}, {name}{', in its manifest' * mended}"
    counted = tally.counts["tracebacks"] + tally.counts["hangs"]
    accepted = tally.add(outcome, tried)
    trained = accepted and reader in ("train-prior", "train-vqvae")
    if (not trained and _models(folder / "run") != before) or (trained and not _is_whole(folder / "run", reader)):
        tally.counts["changed"] += 1
        tally.fault(f"a finished model was changed ({reader}, {name})", tried + outcome.errors)
    elif tally.counts["tracebacks"] + tally.counts["hangs"] == counted:
        return
    machine.keep(folder)


def _mend(path: Path) -> None:
    """Let the manifest, or the index, say that a changed file is right."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest, index = path.parent / MANIFEST, path.parent / "index.json"
    if manifest.is_file() and manifest != path:
        files = json.loads(manifest.read_text())
        if path.name in files:
            manifest.write_text(json.dumps({**files, path.name: {"bytes": path.stat().st_size, "sha256": digest}}))
    if index.is_file() and index != path:
        content = json.loads(index.read_text())
        for shard in (shard for part in content["parts"].values() for shard in part):
            shard["sha256"] = digest if shard["file"] == path.name else shard["sha256"]
        index.write_text(json.dumps(content))


def _models(run: Path) -> dict[str, bytes]:
    """The files of all finished models."""
    names = ("config.json", "model.safetensors", "validation.json", "split.safetensors", MANIFEST)
    stages = [stage for stage in (run / "vqvae", *run.glob("prior/*")) if is_finished(stage)]
    there = [stage / name for stage in stages for name in names if (stage / name).is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).digest() for path in there}


def _is_whole(run: Path, reader: str) -> bool:
    try:
        verify(run / ("vqvae" if reader == "train-vqvae" else "prior/0"))
    except GenError:
        return False
    return True


@click.command()
@click.option("--options", is_flag=True, help="Every option of every command, and of the Python API.")
@click.option("--images", default=0, help="Damaged pictures.")
@click.option("--files", default=0, help="Damaged files of a run.")
@click.option("--every", default=1, show_default=True, help="Of the values of options every n-th.")
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="A folder for what led to faults.")
@click.option("--only", default="", help="Of commands and functions those whose name holds this.")
def main(options: bool, images: int, files: int, every: int, seed: int, keep: Path | None, only: str) -> None:
    """Try and print."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what has used a GPU cannot be forked
    torch.set_num_threads(1)
    total, started, growth, longest = Counter[str](), time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as work:
        machine, rng = Machine(Path(work).resolve(), keep), random.Random(seed)  # noqa: S311 - no secret
        parts = [try_options(machine, every, only), try_functions(machine, every, only)] if options else []
        parts += [try_images(machine, images, rng)] if images else []
        parts += [try_files(machine, files, rng)] if files else []
        for tally in (tally for part in parts for tally in part):
            print(json.dumps(tally.line()), flush=True)
            total, growth, longest = total + tally.counts, max(growth, tally.growth), max(longest, tally.longest)
    seconds = round(time.perf_counter() - started, 1)
    print(
        json.dumps({"on": "all", **total, "growth_mib": round(growth / 2**20), "longest": longest, "seconds": seconds})
    )
    sys.exit(any(total[kind] for kind in ("tracebacks", "hangs", "changed")))


if __name__ == "__main__":
    main()
