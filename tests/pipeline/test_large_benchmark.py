"""`python -m benchmarks.large` runs at toy size, and what it says is measured."""

import json
import mmap
import os
import signal

import pytest
from click.testing import CliRunner

from benchmarks import large


def test_every_phase_is_measured_and_a_killed_encoding_goes_on() -> None:
    done = CliRunner().invoke(large.main, ["--images", "600,1100", "--folder", "."], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    order = ["scan", "decode", "open", "start", "resume", "encode, killed", "encode"]
    assert [(line["images"], line["phase"]) for line in found] == [(n, phase) for n in (600, 1100) for phase in order]
    assert all(line["seconds"] > 0 and line["most_mib"] >= line["before_mib"] > 0 for line in found)
    assert all("bytes_per_image" in line for line in found[7:])
    for killed, encoded in (found[5:7], found[12:14]):
        assert killed["killed"] and encoded["shards_there"] == -(-encoded["shards"] // 2) > 0


def test_memory_that_no_file_stands_for_is_seen() -> None:
    size = 2**25
    before = large.anonymous_bytes(os.getpid())
    with mmap.mmap(
        -1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    ) as held:  # new pages: a process that has freed some would hand these out first
        held.write(bytes(size))
        assert 0.9 * size <= large.anonymous_bytes(os.getpid()) - before < 3 * size


def test_a_child_that_fails_or_is_killed_is_a_failure_unless_it_was_to_be_killed() -> None:
    with pytest.raises(RuntimeError, match="a phase ended with 1"):
        large.in_child(lambda: int("x"))
    with pytest.raises(RuntimeError, match="a phase ended with -9"):
        large.in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    found = large.in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), is_to_be_killed=True)
    assert found.signal == signal.SIGKILL


def test_images_are_functions_of_their_numbers() -> None:
    assert large.png(3, 8) == large.png(3, 8) != large.png(4, 8)
