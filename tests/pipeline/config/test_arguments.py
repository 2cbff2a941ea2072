"""The public functions' keyword arguments are the options, for type checkers too."""

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from pipeline.config import arguments
from pipeline.config.app import AppConfig
from pipeline.config.codec import CompressConfig
from pipeline.config.data import DataConfig
from pipeline.config.evaluation import EvaluateConfig, NearestConfig
from pipeline.config.options import option_fields
from pipeline.config.sampling import CompleteConfig, FileConfig, InterpolateConfig, SampleConfig
from pipeline.config.training import AugmentConfig, TrainingConfig
from stage1_vqvae import VQVAEConfig
from stage2_prior import PriorConfig, SamplingOptions

ROOT = Path(__file__).parents[3]


def option_types(*configs: type) -> dict[str, object]:
    """The types of all options of some configurations, by name."""
    return {name: get_type_hints(config)[name] for config in configs for name in option_fields(config)}


@pytest.mark.parametrize(
    ("typed", "configs", "without"),
    [
        (arguments.VQVAEArguments, (DataConfig, VQVAEConfig, TrainingConfig), ()),
        (arguments.CompareArguments, (DataConfig, VQVAEConfig, TrainingConfig), ("bottleneck",)),
        (arguments.PriorArguments, (PriorConfig, TrainingConfig, AugmentConfig), ()),
        (arguments.GenerateArguments, (SampleConfig, SamplingOptions), ("n",)),
        (arguments.GenerateFilesArguments, (SampleConfig, SamplingOptions, FileConfig), ()),
        (arguments.CompleteArguments, (CompleteConfig, SamplingOptions), ()),
        (arguments.InterpolateArguments, (InterpolateConfig,), ()),
        (arguments.CompressArguments, (CompressConfig,), ()),
        (arguments.EvaluateArguments, (EvaluateConfig,), ()),
        (arguments.NearestArguments, (NearestConfig,), ()),
        (arguments.AppArguments, (AppConfig,), ()),
    ],
)
def test_arguments_are_the_options_by_name_and_type(
    typed: type, configs: tuple[type, ...], without: tuple[str, ...]
) -> None:
    expected = {name: kind for name, kind in option_types(*configs).items() if name not in without}
    assert get_type_hints(typed) == expected


RIGHT = """
from pathlib import Path
import numpy as np
from pipeline import Silent, compare, complete, evaluate, evaluate_folder, generate, generate_files, load, score
from pipeline import train_prior, train_vqvae

images = np.zeros((4, 1, 8, 8), np.uint8)
done = train_vqvae(data="photos", out=Path("runs/photos"), image_size="64", max_minutes=30, reporter=Silent())
done.validation.levels[0]["perplexity"] + 1
train_vqvae(images=images, preset="tiny", bottleneck="fsq", likelihood="mse", test=0.0)
train_prior("runs/photos", steps=5, prior="pixelsnail", encodings=2, shift=1)
generate("runs/photos", 16, seed=3, label=["cat", 1], guidance=1.5, temperature=0.9).images
generate_files("runs/photos", n=1_000, format="zip", batch_size=None)
model = load("runs/photos", device="cpu", precision="float64")
score(model, images).bits
complete(model, images[0], "top:0.5", n=8, candidates=2).images
generate("runs/photos", 16, guidance="best", top_k=50).images
compare(out="compared", bottlenecks=["vq", "fsq"], steps=3)
evaluate("runs/photos", model, guidance=(1.0, 1.5), judge=2)[0].floor["precision"].value
evaluate_folder("samples", reference=Path("photos")).samples
"""

WRONG = {
    'train_vqvae(data="photos", image_sise="64")': 'Unexpected keyword argument "image_sise"',
    'train_vqvae(bottleneck="vqq")': "incompatible type",
    'train_prior("run", halvings=2)': 'Unexpected keyword argument "halvings"',
    'train_prior("run", hidden="wide")': "incompatible type",
    'generate("run", 3, guidance="bets")': "incompatible type",
    'generate("run", 3, temprature=2)': 'Unexpected keyword argument "temprature"',
    'generate_files("run", format="jpg")': "incompatible type",
    'complete("run", images[0], "top:0.5", candidate=2)': 'Unexpected keyword argument "candidate"',
    'compare(out="compared", bottleneck="vq")': 'Unexpected keyword argument "bottleneck"',
    'load("run", precision="float16")': "incompatible type",
    "done.validation.perplexity": 'has no attribute "perplexity"',
}


def type_check(*paths: Path) -> list[str]:
    """What mypy complains of in files, a line each."""
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary"]
    command += ["--follow-imports", "silent", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def test_a_type_checker_accepts_right_calls_and_rejects_misspelt_ones(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    wrong.write_text(RIGHT + "\n".join(WRONG))
    complaints = type_check(right, wrong)
    first = len(RIGHT.splitlines()) + 1
    assert len(complaints) == len(WRONG), "and none of what is right"
    for line, (complaint, expected) in enumerate(zip(complaints, WRONG.values(), strict=True), first):
        assert f"wrong.py:{line}: " in complaint and expected in complaint
