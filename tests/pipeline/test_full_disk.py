"""A full disk, wherever it is met: exit code 6, a sentence, nothing lost, and going on gives the same to the bit.

`python -m benchmarks.crash --full-disk` goes through every change of the disk that needs room; here are some of them.
"""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.runs.opening import open_run
from tests.pipeline.faults import (
    Change,
    FullDisk,
    Job,
    at_each_change,
    contents,
    gen,
    left_behind,
    make_bases,
    names_a_file,
)

TRAININGS = ["train-vqvae", "train-vqvae, further", "train-prior", "encoding"]
SAMPLES = ["sample, png", "sample, zip", "sample, safetensors"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Job]]:
    """The runs that jobs begin from, and the jobs. Tests only read them."""
    folder = tmp_path_factory.mktemp("bases")
    return folder, {job.name: job for job in make_bases(folder)}


@pytest.mark.parametrize(("name", "tried"), [*((name, 7) for name in TRAININGS), *((name, 12) for name in SAMPLES)])
def test_a_full_disk_costs_nothing(tmp_path: Path, bases: tuple[Path, dict[str, Job]], name: str, tried: int) -> None:
    folder, job, counting = tmp_path / "case", bases[1][name], FullDisk(0, from_then_on=False)
    job.begin(folder, bases[0])
    with at_each_change(folder, counting):
        assert gen(folder, *job.arguments).exit_code == 0
    whole = contents(folder / job.out)
    for number in range(1, counting.changes + 1, counting.changes // tried | 1):  # by turns odd and even
        shutil.rmtree(folder)
        job.begin(folder, bases[0])
        with at_each_change(folder, FullDisk(number, from_then_on=number % 2 == 1)):
            failed = gen(folder, *job.arguments)
        if failed.exit_code == 0:  # a zip is opened in another way where opening it fails
            assert number % 2 == 0 and contents(folder / job.out) == whole
            continue
        assert failed.exit_code == 6, (number, failed.output, failed.exception)
        assert "No space left on device" in failed.output and "Traceback" not in failed.output
        assert names_a_file(failed.output, job.out), failed.output
        assert not left_behind(folder)
        if job.base and (folder / "run/vqvae/manifest.json").exists():  # else names were exchanged, which takes no room
            open_run(folder / "run", "vqvae")
        again = gen(folder, *job.again)
        assert again.exit_code == 0, (number, again.output)
        assert contents(folder / job.out) == whole, number


@pytest.mark.parametrize("number", range(1, 15))
def test_a_finished_model_stays_as_it_is_where_a_longer_training_cannot_begin(
    tmp_path: Path, bases: tuple[Path, dict[str, Job]], number: int
) -> None:
    """Once, its split and its log were written over in place."""
    folder, job = tmp_path / "case", bases[1]["train-vqvae, further"]
    job.begin(folder, bases[0])
    before = contents(folder / "run")
    with at_each_change(folder, FullDisk(number, from_then_on=True)):
        assert gen(folder, *job.arguments).exit_code == 6
    after = contents(folder / "run")
    assert [name for name in before if after.get(name) != before[name]] in ([], ["vqvae/training.json"])
    open_run(folder / "run", "vqvae")


def _full_at_the_second_checkpoint(change: Change) -> None:
    if "step-000000004" in change.path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), change.path)


def a_run_stopped_early(bases: tuple[Path, dict[str, Job]], folder: Path) -> tuple[Job, dict[str, str]]:
    """A training of stage 1 whose disk was full after four of six steps, and what it would have written."""
    job = bases[1]["train-vqvae"]
    job.begin(folder, bases[0])
    with at_each_change(folder, _full_at_the_second_checkpoint):
        assert gen(folder, *job.arguments).exit_code == 6
    assert [path.name for path in (folder / "run/vqvae/checkpoints").glob("step-*")] == ["step-000000002"]
    return job, contents(bases[0] / "stage1" / "run")


def test_a_run_without_its_checkpoints_begins_anew(tmp_path: Path, bases: tuple[Path, dict[str, Job]]) -> None:
    job, whole = a_run_stopped_early(bases, tmp_path / "case")
    shutil.rmtree(tmp_path / "case/run/vqvae/checkpoints")
    assert gen(tmp_path / "case", *job.again).exit_code == 0
    assert contents(tmp_path / "case/run") == whole


def test_a_log_that_was_cut_is_mended_from_the_checkpoint_on(
    tmp_path: Path, bases: tuple[Path, dict[str, Job]]
) -> None:
    job, whole = a_run_stopped_early(bases, tmp_path / "case")
    log = tmp_path / "case/run/vqvae/metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert gen(tmp_path / "case", *job.again).exit_code == 0
    assert contents(tmp_path / "case/run") == whole
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()][-1] == 6


def test_a_half_written_checkpoint_does_not_stand_in_the_way(
    tmp_path: Path, bases: tuple[Path, dict[str, Job]]
) -> None:
    job, whole = a_run_stopped_early(bases, tmp_path / "case")
    half = tmp_path / "case/run/vqvae/checkpoints/.step-000000004.abcdefgh.unfinished"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert gen(tmp_path / "case", *job.again).exit_code == 0
    assert contents(tmp_path / "case/run") == whole


@pytest.mark.parametrize("name", ["train-vqvae, further", "train-prior", "sample, png"])
def test_a_folder_that_must_not_be_written_into_is_a_fault_of_the_system(
    tmp_path: Path, bases: tuple[Path, dict[str, Job]], name: str
) -> None:
    folder, job = tmp_path / "case", bases[1][name]
    job.begin(folder, bases[0])
    before = contents(folder)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):  # root may write everywhere
            return
        failed = gen(folder, *job.arguments)
    finally:
        for path in folders:
            path.chmod(0o755)
    assert failed.exit_code == 6 and "Permission denied" in failed.output and names_a_file(failed.output, job.out)
    assert contents(folder) == before
