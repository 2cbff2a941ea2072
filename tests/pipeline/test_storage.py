"""Folders are complete or not there; damage is found; nothing is looser than asked for."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline import CheckpointError, UsageError
from pipeline.data.codes.maps import CodeMaps, code_dtype, load_codes, save_codes
from pipeline.storage import (
    atomic_folder,
    check_paths,
    load_metadata,
    load_strictly,
    load_tensors,
    naming,
    read_json,
    remove_unfinished,
    save_tensors,
    sha256,
    verify,
)
from stage1_vqvae import VQVAEConfig


def a_folder(path: Path) -> Path:
    with atomic_folder(path) as unfinished:
        save_tensors(unfinished / "a.safetensors", {"x": torch.arange(100.0)})
        (unfinished / "b.json").write_text("{}")
    return path


def test_a_folder_is_complete_with_a_manifest_of_all_files(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "deep" / "folder")
    verify(folder)
    assert set(json.loads((folder / "manifest.json").read_text())) == {"a.safetensors", "b.json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


def test_a_fault_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"), atomic_folder(tmp_path / "folder") as unfinished:
        (unfinished / "half").write_text("x")
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_command_wrote_meanwhile_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    meanwhile = pytest.raises(FileExistsError, match=r"was written by somebody else meanwhile.*folder")
    with meanwhile, atomic_folder(tmp_path / "folder") as unfinished:
        (unfinished / "a").write_text("ours")
        a_folder(tmp_path / "folder")
    verify(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and not (tmp_path / "folder" / "a").exists()


def test_an_error_of_the_system_is_given_a_name_where_it_has_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as nameless, naming(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (nameless.value.errno, nameless.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    with pytest.raises(OSError, match="No space") as named, naming(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device", "another")
    assert named.value.filename == "another"
    with pytest.raises(OSError, match="a timeout") as other, naming(tmp_path / "file"):
        raise OSError("a timeout")  # of a library, and not of the system
    assert other.value.errno is None and other.value.filename is None


@pytest.mark.parametrize("fault", ["flip", "truncate", "remove", "manifest"])
def test_damage_is_found_and_named(tmp_path: Path, fault: str) -> None:
    folder = a_folder(tmp_path / "folder")
    path = folder / "a.safetensors"
    content = bytearray(path.read_bytes())
    if fault == "flip":
        content[-5] ^= 1  # in the tensor's data, where safetensors itself sees nothing
        path.write_bytes(content)
        load_tensors(path)
        message = "a.safetensors is damaged: sha256"
    elif fault == "truncate":
        path.write_bytes(content[:-40])
        message = "a.safetensors is damaged"
    elif fault == "remove":
        path.unlink()
        message = "a.safetensors is missing"
    else:
        (folder / "manifest.json").unlink()
        message = "holds no finished model"
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "folder")
    manifest = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "secret").write_text("x")
    (folder / "manifest.json").write_text(json.dumps({"../secret": manifest["b.json"]}))
    with pytest.raises(CheckpointError, match=re.escape(str(folder / "secret"))):
        verify(folder)


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        folder = a_folder(tmp_path / "folder")
    finally:
        os.umask(previous)
    assert (folder / "a.safetensors").stat().st_mode & 0o777 == 0o640
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("content", ["", "nonsense", "[1, 2]", "[" * 10**5])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"", b"nonsense", (2**60).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable safetensors file"):
        load_tensors(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors is missing"):
        load_tensors(tmp_path / "other.safetensors")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_loading_is_strict(tmp_path: Path, change: str) -> None:
    module = torch.nn.Linear(2, 3)
    tensors = dict(module.state_dict())
    if change == "missing":
        del tensors["bias"]
    elif change == "extra":
        tensors["other"] = torch.zeros(1)
    else:
        tensors["weight"] = torch.zeros(3, 3)
    save_tensors(tmp_path / "m.safetensors", tensors)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_strictly(torch.nn.Linear(2, 3), tmp_path / "m.safetensors")


def test_code_maps_come_back_as_they_went(tmp_path: Path) -> None:
    maps = CodeMaps(
        levels=(torch.randint(99, (5, 2, 3)).short(), torch.randint(99, (5, 4, 6)).short()),
        labels=torch.arange(5),
        views=((torch.randint(99, (5, 2, 3)).short(), torch.randint(99, (5, 4, 6)).short()),),
    )
    save_codes(tmp_path / "codes.safetensors", maps, {})
    loaded = load_codes(tmp_path / "codes.safetensors")
    assert len(loaded) == 5 and loaded.labels is not None and torch.equal(loaded.labels, torch.arange(5))
    for before, after in zip(maps.levels + maps.views[0], loaded.levels + loaded.views[0], strict=True):
        assert torch.equal(before, after) and after.dtype == torch.int16
    save_tensors(tmp_path / "other.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no code maps"):
        load_codes(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"level0": torch.zeros(5, 6)},
        {"level0": torch.zeros(())},
        {"level0": torch.zeros(0, 2, 3).short(), "labels": torch.arange(0)},
        {"level1": torch.zeros(4, 4, 6).short()},
        {"labels": torch.arange(4)},
        {"labels": torch.zeros(5)},
        {"labels": torch.zeros(5, 1).long()},
        {"view1.level0": torch.zeros(2, 2, 3).short()},
    ],
)
def test_a_file_of_no_whole_code_maps_is_refused(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    whole = {"level0": torch.zeros(5, 2, 3).short(), "labels": torch.arange(5)}
    save_tensors(tmp_path / "codes.safetensors", {**whole, **change})
    with pytest.raises(CheckpointError, match=r"codes\.safetensors holds"):
        load_codes(tmp_path / "codes.safetensors")


@pytest.mark.parametrize("path", ["a\0b", Path("a\0b"), "gr\udcfcn", b"a", 1, 1.5, True, [], {}, np.zeros(3)])
def test_what_can_be_no_path_is_refused_by_name(path: object) -> None:
    with pytest.raises(UsageError, match=r"^out must be the path of a file or folder, .*\nrun must be"):
        check_paths(out=path, data="data", config=None, run=path)


def test_codes_are_stored_in_the_smallest_type_that_holds_them() -> None:
    assert code_dtype(VQVAEConfig(num_codes=2**15)) == torch.int16
    assert code_dtype(VQVAEConfig(num_codes=2**15 + 1)) == torch.int32
    assert code_dtype(VQVAEConfig(bottleneck="none")) == torch.float32
    assert torch.tensor(2**15 - 1, dtype=torch.int16).item() == 2**15 - 1


def test_a_manifest_of_nothing_or_of_wrong_types_is_no_manifest(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "folder")
    for content, message in (("{}", "lists no files"), ('{"a.safetensors": 3}', "is not a file of this kind")):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            verify(folder)


def test_tensors_that_do_not_fit_on_the_disk_are_a_fault_of_the_system(tmp_path: Path) -> None:
    """safetensors has a kind of error of its own for a full disk, which no caller would take for one."""
    with pytest.raises(OSError, match="400 bytes of tensors could not be written") as caught:
        save_tensors(tmp_path / "no" / "such" / "folder.safetensors", {"x": torch.arange(100.0)})
    assert caught.value.filename.endswith("folder.safetensors")


METADATA = {f"key {number}": f'"\\ \u00e9 \n \x1f \U0001f600 {number}' for number in range(12)}
TENSORS = {"b": torch.arange(5, dtype=torch.int16), "a": torch.arange(3.0), "c": torch.zeros(0)}


def test_equal_contents_make_equal_files_in_whatever_order_and_process(tmp_path: Path) -> None:
    """The library writes metadata in an order of its own, another one in every process and every call."""
    reversed_metadata = dict(reversed(METADATA.items()))
    for number in range(20):
        tensors = TENSORS if number % 2 else dict(reversed(TENSORS.items()))
        save_tensors(tmp_path / str(number), tensors, METADATA if number % 3 else reversed_metadata)
    code = "import sys; from pathlib import Path; from tests.pipeline.test_storage import METADATA, TENSORS\n"
    code += "from pipeline.storage import save_tensors; save_tensors(Path(sys.argv[1]), TENSORS, METADATA)"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "another")], cwd=root, check=True)
    assert len({sha256(path) for path in tmp_path.iterdir()}) == 1
    assert load_metadata(tmp_path / "another") == METADATA
    loaded = load_tensors(tmp_path / "another")
    assert loaded.keys() == TENSORS.keys() and all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)


def test_files_whose_metadata_lie_in_another_order_stay_readable(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "older", METADATA)
    assert load_metadata(tmp_path / "older") == METADATA


def test_only_what_is_ours_is_removed_as_half_written(tmp_path: Path) -> None:
    """Once, a hidden folder of somebody else's was, in a folder that samples were drawn into."""
    theirs = [tmp_path / ".tmpabcdef" / "thesis.txt", tmp_path / ".notes.unfinished" / "notes.txt"]
    folders = ("step-000000100.ab_12xyz", "best-000000100", "files.abcdefgh")
    ours = [tmp_path / f".{name}.unfinished" / "x" for name in folders]
    files = [tmp_path / ".config.json.unfinished", tmp_path / ".tmpAb12Cd"]
    for path in (*theirs, *ours, *files):
        path.parent.mkdir(exist_ok=True)
        path.write_text("content")
    remove_unfinished(tmp_path)
    assert all(path.exists() for path in theirs)
    assert not any(path.exists() for path in (*ours, *files))
