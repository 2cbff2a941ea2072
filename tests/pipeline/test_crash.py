"""Commands that are killed, at some of the changes that they make of the disk, and resumed.

`python -m benchmarks.crash` kills at all of them, and at random moments.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_killed_and_resumed_is_as_if_it_had_not_been() -> None:
    # In a process of its own, which can be forked: it has used no GPU and has no other threads.
    command = [sys.executable, "-m", "benchmarks.crash", "--kills", "8", "--every", "61"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    *lines, total = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0, (done.stderr, *(line for line in lines if line["differences"]))
    assert len({line["command"] for line in lines}) == 8 and len(lines) == 16
    assert total["kills"] == total["resumes"] >= 8 + 16 and total["differences"] == 0
    assert total["done_again"] > 0 and total["greatest"] <= 7
