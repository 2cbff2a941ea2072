"""Copy a published run into a folder of one's own: what `gen pull` calls."""

from pathlib import Path

from pipeline.errors import UsageError
from pipeline.reporting import Reporter, Silent
from pipeline.resources import check_writable
from pipeline.runs.layout import RUNS
from pipeline.runs.opening import open_run
from pipeline.runs.published.files import copy_run
from pipeline.runs.published.names import published_name
from pipeline.storage import atomic_tree, check_paths


def pull(
    run: str, out: str | Path | None = None, *, revision: str | None = None, reporter: Reporter | None = None
) -> Path:
    """Copy a published run into a new folder, by default runs/NAME, and return that.

    `run`: USER/NAME or hf://USER/NAME of the Hub, or pretrained:NAME. `revision`: a branch, a tag or a commit of the
    Hub; by default the newest. Every file is checked by its hash, and none is run: they are tensors and JSON. Raises
    UsageError, also when the folder exists, CheckpointError when there is no such run, it cannot be reached or is
    damaged, and ResourceError.
    """
    check_paths(run=run, out=out)
    name = published_name(run) or f"hf://{run}"
    if revision is not None:
        if "@" in name or not name.startswith("hf://"):
            raise UsageError(f"--revision {revision} is of a repository of the Hub, named by USER/NAME; got {run}")
        name = f"{name}@{revision}"
    target = Path(out) if out else RUNS / name.partition(":")[2].partition("@")[0].rpartition("/")[2]
    check_writable(target)
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists already; choose another --out")
    (reporter or Silent()).say(f"reading {name}")
    opened = open_run(name, "finished")
    with atomic_tree(target) as unfinished:
        copy_run(opened, unfinished, target.as_posix())
    return target
