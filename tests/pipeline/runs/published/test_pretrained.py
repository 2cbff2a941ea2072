"""The run that comes with gen: it answers wherever a run is named, and gives what it gave when it was made.

    python -m tests.pipeline.runs.published.test_pretrained FILE

writes down what a run that `.ci/pretrained` has made anew gives; digits.safetensors holds it of the one that is there.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import CheckpointError, UsageError, generate, load, pull, train_prior
from pipeline.data.datasets import EMBEDDED_NAMES, embedded_digits
from pipeline.runs.opening import open_run
from pipeline.runs.published import names
from pipeline.runs.published.files import files_of
from pipeline.storage import load_tensors, save_tensors, verify
from tests.pipeline.cli.test_cli import fails, succeeds
from tests.pipeline.runs.published.server import files_below
from tests.tiny import TINY_PRIOR

NAME = "pretrained:digits"
FOLDER = Path(names.__file__).parent / "pretrained" / "digits"
EXPECTED = Path(__file__).parent / "digits.safetensors"


def given() -> dict[str, torch.Tensor]:
    """Samples, their codes and reconstructions, in float64, in which every machine draws the same codes."""
    model, (images, _) = load(NAME, precision="float64"), embedded_digits()
    samples = generate(model, 8, seed=3)
    codes, restored = model.encode(images[:4]), model.reconstruct(images[:4])
    return {"samples": samples.images, "drawn": samples.codes[0], "codes": codes[0], "restored": restored}


@pytest.fixture
def digit() -> Path:
    """A picture of a digit."""
    Image.fromarray(embedded_digits()[0][7, 0]).save("digit.png")
    return Path("digit.png")


def test_it_gives_what_it_gave_when_it_was_made() -> None:
    expected, now = load_tensors(EXPECTED), given()
    assert torch.equal(now["drawn"], expected["drawn"]) and torch.equal(now["codes"], expected["codes"])
    for name in ("samples", "restored"):
        assert (now[name].int() - expected[name].int()).abs().max() <= 1


def test_it_is_a_run_as_any_other_and_small() -> None:
    for stage in ("vqvae", "prior/0"):
        verify(FOLDER / stage)
    content = files_below(FOLDER)
    assert content.keys() == set(files_of(open_run(FOLDER, "samples")))
    assert sum(map(len, content.values())) < 4_000_000
    assert all(name.endswith((".json", ".safetensors", ".md")) for name in content)
    assert load(NAME).vqvae.config.class_names == EMBEDDED_NAMES
    assert 'model = load("pretrained:digits")' in content["README.md"].decode()


def test_its_samples_show_the_classes_asked_for() -> None:
    """By the nearest of all digits, which of real ones left out is right for 99 %."""
    images, targets = embedded_digits()
    samples = generate(NAME, 50, label="balanced", guidance="best")
    real, drawn = images.reshape(len(images), -1).astype(np.float32), samples.images.flatten(1).numpy()
    nearest = targets[((drawn[:, None] - real) ** 2).sum(2).argmin(1)]
    assert samples.labels is not None and (nearest == samples.labels.numpy()).mean() > 0.9


def test_samples_go_beside_the_runs_here_and_go_on(tmp_path: Path) -> None:
    before = files_below(FOLDER)
    assert "gen: error: no finished prior under" in fails(2, "sample")
    folder = Path("runs/pretrained-digits/samples/seed-0")
    assert f"wrote 3 images into {folder};" in succeeds("sample", "--run", NAME, "--n", 3)
    assert f"wrote 1 images into {folder}, where 3 were already" in succeeds("sample", NAME, "--n", 4)
    assert [path.name for path in Path().iterdir()] == ["runs"] and files_below(FOLDER) == before
    assert "gen: error: no finished prior under" in fails(2, "sample"), "it is no run of the folder runs/"


def test_every_command_takes_its_name(digit: Path) -> None:
    before = files_below(FOLDER)
    assert re.search(r"run +pretrained:digits\n", succeeds("info", NAME))
    for command in ("score", "reconstruct"):
        succeeds(command, digit, "--run", NAME, "--out", f"{command}.png")
    succeeds("complete", digit, "--run", NAME, "--keep", "top:0.5", "--n", 2)
    succeeds("interpolate", digit, digit, "--run", NAME)
    assert "gen decode codes.safetensors --run pretrained:digits --out DIR" in succeeds("encode", digit, "--run", NAME)
    succeeds("decode", "codes.safetensors", "--run", NAME, "--out", "decoded")
    assert "--run pretrained:digits --out DIR" in succeeds("compress", digit, "--run", NAME, "--out", "a.genz")
    succeeds("decompress", "a.genz", "--run", NAME, "--out", "back")
    assert {"decoded", "back", "completions.png", "score.png"} <= {path.name for path in Path().iterdir()}
    assert files_below(FOLDER) == before and not list(FOLDER.rglob(".lock"))


def test_what_would_write_into_it_says_what_to_do() -> None:
    for command in (["train-prior"], ["sharpen"], ["evaluate"]):
        message = fails(2, *command, NAME)
        assert message.startswith(
            "gen: error: pretrained:digits is a published run, which is not written into; copy it"
        )
        assert "gen pull pretrained:digits" in message
    assert "name a file with --out" in fails(2, "report", NAME)
    assert not Path("runs").exists()


def test_it_is_begun_from_or_copied() -> None:
    train_prior(NAME, out="mine", **{**TINY_PRIOR, "steps": 1})
    assert load("mine").vqvae.codes_sha256 == load(NAME).vqvae.codes_sha256
    assert pull(NAME) == Path("runs/digits")
    assert files_below(Path("runs/digits")).keys() == files_below(FOLDER).keys()
    assert len(generate("runs/digits", 2)) == 2


@pytest.mark.parametrize("name", ["", "digit", "../digits", "digits/vqvae", "/"])
def test_a_name_that_is_none_says_which_there_are(name: str) -> None:
    with pytest.raises(UsageError, match=f"no run pretrained:{name} comes with gen; there is pretrained:digits"):
        load(f"pretrained:{name}")


def test_a_folder_of_another_name_is_a_folder() -> None:
    with pytest.raises(CheckpointError, match="there is no run folder runs/pretrained:digits"):
        load("runs/pretrained:digits")


if __name__ == "__main__":
    save_tensors(Path(sys.argv[1]), given())
