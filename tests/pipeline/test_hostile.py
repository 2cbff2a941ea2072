"""Some of the values, pictures and files that `python -m benchmarks.hostile` tries: used, or refused in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tried() -> dict[str, dict[str, Any]]:
    """What was counted of each kind."""
    # In a process of its own, which can be forked: it has used no GPU and has no other threads.
    command = [sys.executable, "-m", "benchmarks.hostile", "--options", "--every", "149", "--images", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--files", "30"], cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.stderr, *(line for line in lines if "faults" in line))
    return {line["on"]: line for line in lines}


def test_every_command_and_function_uses_or_refuses_what_it_is_given(tried: dict[str, dict[str, Any]]) -> None:
    assert {f"gen {name}" for name in main.commands} <= tried.keys()
    assert {"train_vqvae()", "generate_files()", "complete()", "evaluate_folder()", "Model.sample()"} <= tried.keys()
    assert tried["gen train-vqvae"]["refused"] > 5 and tried["train_prior()"]["refused"] > 3


def test_damaged_pictures_are_images_or_named(tried: dict[str, dict[str, Any]]) -> None:
    assert tried["images"]["tried"] == 60 and min(tried["images"]["accepted"], tried["images"]["refused"]) > 5


def test_damaged_files_are_refused_and_no_finished_model_is_lost(tried: dict[str, dict[str, Any]]) -> None:
    files = [line for kind, line in tried.items() if kind.endswith((".json", ".jsonl", ".safetensors", "/*"))]
    assert sum(line["tried"] for line in files) == 30 and sum(line["refused"] for line in files) > 5
    assert tried["all"]["growth_mib"] < 1024 and not any(line["changed"] for line in files)
