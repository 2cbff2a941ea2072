"""The files that a published run consists of: what loading and sampling read, and nothing of its training."""

import shutil
from pathlib import Path

from pipeline.runs.card import name_in_card
from pipeline.runs.layout import CARD, SHARP, is_finished
from pipeline.runs.opening import Run
from pipeline.storage import MANIFEST, read_manifest, sync


def copy_run(run: Run, target: Path, name: str) -> None:
    """Copy the files of a run into a folder, to the disk. Its card there says that it is loaded by this name."""
    for file in files_of(run):
        copy = target / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.folder.path / file, copy)
        if file == CARD:
            name_in_card(copy, name)
        sync(copy)
    for folder in {copy.parent for copy in target.rglob("*")}:
        sync(folder)


def files_of(run: Run) -> list[str]:
    """The files of a run, by their paths in it: of each finished stage its manifest and what that lists, the card, and
    the evaluations."""
    folder = run.folder
    stages = [folder.vqvae, folder.decoder(SHARP), *(folder.prior(level) for level in range(len(run.priors)))]
    paths = [stage / name for stage in stages if is_finished(stage) for name in (MANIFEST, *read_manifest(stage))]
    paths += [path for path in (folder.path / CARD, *sorted(folder.path.glob("evaluation*.json"))) if path.is_file()]
    return [path.relative_to(folder.path).as_posix() for path in paths]
