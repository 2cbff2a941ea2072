"""What needs more memory or disk than there is, is refused with both numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from pipeline import resources
from pipeline.errors import ResourceError


def test_more_memory_than_there_is_is_refused_with_both_numbers() -> None:
    total = int(psutil.virtual_memory().total)
    resources.check_memory(torch.device("cpu"), 1, "a step", "use a smaller --batch-size")
    with pytest.raises(
        ResourceError, match=r"a step takes about .* of memory, and .* are free; use a smaller"
    ) as caught:
        resources.check_memory(torch.device("cpu"), 2 * total, "a step", "use a smaller --batch-size")
    assert resources.in_words(2 * total) in str(caught.value)
    assert caught.value.exit_code == 6


def test_more_disk_than_there_is_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet"
    resources.check_disk(path, 1, "the cache", "name another with GEN_CACHE")
    with pytest.raises(
        ResourceError, match=r"the cache takes about .* of disk in .*yet, and .* are free; name"
    ) as caught:
        resources.check_disk(path, 2 * shutil.disk_usage(tmp_path).total, "the cache", "name another with GEN_CACHE")
    assert caught.value.exit_code == 6
    assert not path.exists()


def test_processes_of_a_machine_divide_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resources.free_memory(torch.device("cpu")) == 250


def test_files_that_the_kernel_keeps_in_memory_do_not_count_as_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a container whose limit is reached by the cache of files that were read, nearly all is free."""
    monkeypatch.setattr(resources, "ROOT_GROUP", tmp_path)
    monkeypatch.setattr(Path, "read_text", _grouped(Path.read_text))
    for group, limit in (("", "max"), ("job", "1000000"), ("job/step", "max")):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.current").write_text("999000\n")
        (tmp_path / group / "memory.stat").write_text("anon 4000\ninactive_file 900000\n")
    assert resources.free_memory(torch.device("cpu")) == 901_000


def _grouped(read_text: Callable[..., str]) -> Callable[..., str]:
    def read(path: Path, *arguments: str) -> str:
        return "12:memory:/old\n0::/job/step\n" if str(path) == "/proc/self/cgroup" else read_text(path, *arguments)

    return read
