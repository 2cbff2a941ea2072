"""The command as a person uses it: what it prints, where things lie, and how it fails."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from PIL import Image

from pipeline.cli.main import main
from pipeline.data.codes.maps import load_codes
from pipeline.storage import write_json, write_manifest

ONCE = ["--evaluations", "1", "--checkpoints", "1"]
TINY = [*ONCE, "--hidden", "8", "--residual-channels", "4", "--num-codes", "12", "--steps", "3", "--batch-size", "8"]
TINY_PRIOR = [*ONCE, "--hidden", "8", "--layers", "2", "--head", "8", "--steps", "3", "--batch-size", "8"]


def gen(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def succeeds(*arguments: object) -> str:
    result = gen(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def fails(code: int, *arguments: object) -> str:
    """The message of a failing command: short, without a traceback."""
    result = gen(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


def pictures(folder: Path, size: tuple[int, int], mode: str, n: int = 12) -> Path:
    """Images with something in them, in two class folders."""
    rng = np.random.default_rng(0)
    for index in range(n):
        target = folder / ("even" if index % 2 == 0 else "odd") / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(small).convert(mode).resize(size).save(target)
    return folder


def size_of(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture."""
    with Image.open(path) as image:
        return image.size


def test_without_arguments_the_embedded_data_becomes_new_images(tmp_path: Path) -> None:
    output = succeeds("train-vqvae", *TINY)
    assert (
        "digits: 1,527 images to train on" in output
        and "180 images for validation, 90 for testing" in output
        and "10: zero, one, two, three" in output
    )
    assert "memory" in output and "GMAC" in output and "next: gen train-prior runs/digits" in output
    output = succeeds("train-prior", *TINY_PRIOR)
    assert (
        "uniform 2.485" in output
        and "uniform_nats 2.485" in output
        and "bits_per_image" in output
        and "next: gen sample runs/digits --n 64" in output
    )
    output = succeeds("sample", "--n", 5, "--class", "three")
    folder = Path("runs/digits/samples/seed-0-three")
    assert str(folder) in output
    assert sorted(p.name for p in folder.glob("0*.png")) == [f"00000{i}.png" for i in range(5)]
    assert size_of(folder / "000000.png") == (32, 32)
    assert load_codes(folder / "codes/000000-000004.safetensors").labels.tolist() == [3] * 5  # type: ignore[union-attr]
    for name in (
        "vqvae/reconstructions.png",
        "prior/0/samples.png",
        "vqvae/metrics.jsonl",
        "codes/index.json",
    ):
        assert (Path("runs/digits") / name).is_file()
    assert "PixelCNN, 3 steps" in succeeds("info")
    card = Path("runs/digits/README.md").read_text()
    assert "zero, one, two" in card and "gated PixelCNN" in card and "validation, nats" in card


@pytest.mark.parametrize(
    ("size", "mode", "asked", "shown"),
    [((128, 128), "RGB", "128", "3 x 128 x 128"), ((40, 60), "L", "48x32", "1 x 48 x 32")],
)
def test_other_shapes_train_sample_and_reconstruct(
    tmp_path: Path, size: tuple[int, int], mode: str, asked: str, shown: str
) -> None:
    data = pictures(tmp_path / "my images", size, mode)
    output = succeeds("train-vqvae", "--data", data, "--image-size", asked, "--downsampling", 8, "--flip", *TINY)
    assert shown in output and re.search(r"classes +2: even, odd\n", output)
    run = Path("runs/my images")
    succeeds("train-prior", run, *TINY_PRIOR)
    succeeds("sample", run, "--n", 2, "--class", "odd", "--temperature", 0.9, "--top-k", 5, "--top-p", 0.9)
    height, width = [int(side) for side in shown.split(" x ")][1:]
    assert size_of(run / "samples/seed-0-odd/000001.png") == (width, height)
    output = succeeds("reconstruct", data / "odd", data / "even" / "0.png", "--run", run)
    assert "7 images, each above its reconstruction; PSNR" in output
    many = pictures(tmp_path / "many", (16, 16), "L", n=66)
    assert "the first 64 of 66 images" in succeeds("reconstruct", many, "--run", run, "--out", "many.png")
    assert "--levels 2: the codes of" in fails(
        2, "reconstruct", many, "--run", run, "--levels", 2, "--out", "levels.png"
    )
    factor = -(-96 // width)  # small images are shown enlarged
    assert size_of("reconstructions.png") == (7 * (factor * width + 2) + 2, 2 * (factor * height + 2) + 2)


def test_codes_go_to_a_file_and_back(tmp_path: Path, trained: Path) -> None:
    data = pictures(tmp_path / "data", (12, 8), "L")
    assert "12 code maps, 2 x 3" in succeeds("encode", data, "--run", trained, "--out", "c.safetensors")
    maps = load_codes(Path("c.safetensors"))
    assert maps.levels[0].shape == (12, 2, 3) and maps.labels is not None
    assert "12 images" in succeeds("decode", "c.safetensors", "--run", trained, "--out", "decoded")
    assert size_of("decoded/000011.png") == (12, 8)
    assert "exists already" in fails(2, "encode", data, "--run", trained, "--out", "c.safetensors")
    assert "exists already" in fails(2, "decode", "c.safetensors", "--run", trained, "--out", "decoded")


def test_codes_of_another_model_are_refused(tmp_path: Path, trained: Path) -> None:
    data = pictures(tmp_path / "data", (32, 32), "L")
    succeeds("train-vqvae", "--data", data, "--out", "other", *TINY)
    succeeds("encode", data, "--run", "other", "--out", "c.safetensors")
    message = fails(4, "decode", "c.safetensors", "--run", trained, "--out", "decoded")
    assert "written by another vqvae: codes_sha256" in message


def test_a_collapsed_codebook_stops_stage_two_unless_forced(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", (32, 32), "L")
    succeeds("train-vqvae", "--data", data, "--out", "run", *TINY)
    stage = Path("run/vqvae")
    measured = json.loads((stage / "validation.json").read_text())
    measured["metrics"]["levels"][0] |= {"perplexity": 1.4, "codebook_usage": 0.25}
    write_json(stage / "validation.json", measured)
    write_manifest(stage, ["config.json", "model.safetensors", "validation.json", "split.safetensors"])
    message = fails(2, "train-prior", "run", *TINY_PRIOR)
    assert "has collapsed: 3 of 12 codes are used, with a perplexity of 1.4" in message and "--force" in message
    assert not Path("run/codes").exists() and not Path("run/prior").exists()
    succeeds("train-prior", "run", "--force", *TINY_PRIOR)


def test_a_prior_refuses_a_vqvae_that_it_was_not_trained_on(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    data = pictures(tmp_path / "data", (12, 8), "L")
    succeeds("train-vqvae", "--data", data, "--out", tmp_path / "other", "--code-dim", 4, *TINY)
    shutil.rmtree(tmp_path / "run" / "vqvae")
    shutil.copytree(tmp_path / "other" / "vqvae", tmp_path / "run" / "vqvae")
    message = fails(4, "sample", tmp_path / "run")
    assert "trained on the codes of another vqvae: codes_sha256" in message and "gen train-prior" in message


@pytest.mark.parametrize(
    ("code", "arguments", "expected"),
    [
        (3, ["train-vqvae", "--data", "empty"], "no images under empty"),
        (3, ["train-vqvae", "--data", "nowhere"], "no such file or folder: nowhere"),
        (3, ["train-vqvae", "--data", "broken"], "1 of 5 images in broken cannot be read"),
        (
            2,
            ["train-vqvae", "--data", "images", "--image-size", "30"],
            "30x30 pixels is not divisible by --downsampling = 4",
        ),
        (2, ["train-vqvae", "--hidden", "0", "--clip", "0"], "--clip"),
        (2, ["train-vqvae", "--hidden", "many"], "many"),
        (2, ["train-vqvae", "--out", "run"], "already holds a finished model"),
        (4, ["train-vqvae", "--resume", "run/vqvae/checkpoints/step-7"], "is no checkpoint"),
        (2, ["train-prior"], "no finished vqvae"),
        (4, ["train-prior", "nowhere"], "no run folder nowhere"),
        (2, ["train-prior", "run"], "already holds a finished model"),
        (2, ["sample", "run", "--n", "0"], "--n: input should be greater than or equal to 1; got 0"),
        (2, ["sample", "run", "--temperature", "0", "--top-p", "2"], "--temperature"),
        (2, ["sample", "run", "--class", "cat"], "there is no class 'cat'; the classes are 0, 1"),
        (2, ["sample", "run", "--class", "2"], "there is no class '2'"),
        (4, ["sample", "nowhere"], "no run folder nowhere"),
        (2, ["sample"], "no finished prior"),
        (2, ["sample", "run", "--out", "images"], "images exists already"),
        (2, ["sample", "run", "--device", "cuda:99"], "--device cuda:99 is not to be had here"),
        (2, ["sample", "run", "--device", "toaster"], "--device toaster is not to be had here"),
        (4, ["sample", "half"], "half has no finished prior; train one"),
        (3, ["reconstruct", "nowhere", "--run", "run"], "no such file or folder"),
        (3, ["encode", "broken", "--run", "run"], "cannot be read"),
        (4, ["decode", "nowhere", "--run", "run", "--out", "x"], "nowhere is missing"),
        (4, ["info", "nowhere"], "no run folder nowhere"),
        (4, ["info", "images"], "images is no run folder: no training has begun in it"),
    ],
)
def test_faults_are_named_in_a_line_or_two_with_an_exit_code(
    tmp_path: Path, trained: Path, code: int, arguments: Sequence[str], expected: str
) -> None:
    shutil.copytree(trained, "run")
    shutil.copytree(trained / "vqvae", "half/vqvae")
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "images", (32, 32), "RGB", n=4)
    broken = pictures(tmp_path / "broken", (32, 32), "RGB", n=4)
    whole = (broken / "odd" / "1.png").read_bytes()
    (broken / "b.png").write_bytes(whole[: len(whole) // 2])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "status.json"}
    message = fails(code, *arguments)
    assert expected in message
    assert len([line for line in message.splitlines() if line.startswith("gen: error") or "Error" in line]) <= 1
    assert {path: path.read_bytes() for path in before} == before, "nothing is overwritten"


def test_tensorboard_is_written_or_missed_by_name(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.processes.get_available_trackers", list)
    assert "--log tensorboard needs a package that is not installed: pip install tensorboard" in fails(
        2, "train-vqvae", "--log", "tensorboard", *TINY
    )


def test_score_sorts_images_and_shows_where_they_surprise(trained: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "some", (12, 8), "L", 5)
    output = succeeds("score", folder, folder / "odd" / "1.png", "--run", trained, "--out", "there/surprise.png")
    lines = re.findall(r"[\d.,]+ bits  .*", output)
    bits = [float(line.split()[0]) for line in lines]
    assert len(lines) == 6 and bits == sorted(bits, reverse=True)
    assert sum(line.endswith("odd/1.png") for line in lines) == 2, "by its folder's listing and by its own name"
    assert size_of("there/surprise.png") == (6 * 98 + 2, 2 * 66 + 2)
    printed = succeeds("score", folder, "--run", trained, "--out", "again.png", "--json", "--class", "1")
    rows = re.findall(r"{.*}", printed)
    assert {"bits", "image"} == json.loads(rows[0]).keys() and len(rows) == 5
    assert "surprise.png exists already" in fails(2, "score", folder, "--run", trained, "--out", "there/surprise.png")
    assert "no class 'seven'" in fails(2, "score", folder, "--run", trained, "--class", "seven", "--out", "c.png")


def test_complete_keeps_a_side_or_what_a_mask_shows(trained: Path, tmp_path: Path) -> None:
    image = pictures(tmp_path / "some", (12, 8), "L", 1) / "even" / "0.png"
    output = succeeds("complete", image, "--run", trained, "--keep", "left:0.67", "--n", 3)
    assert "wrote completions.png: the image, what is kept, and 3 completions" in output
    assert size_of("completions.png") == (5 * 98 + 2, 68)
    mask = np.zeros((8, 12), np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save("mask.png")
    succeeds("complete", image, "--run", trained, "--mask", "mask.png", "--n", 3, "--out", "masked.png")
    assert Path("masked.png").read_bytes() == Path("completions.png").read_bytes()
    assert "either --keep top:0.5, or --mask" in fails(2, "complete", image, "--run", trained, "--out", "c.png")
    assert "write SIDE:FRACTION" in fails(2, "complete", image, "--run", trained, "--keep", "middle", "--out", "c.png")
    Image.fromarray(mask).resize((24, 24)).save("square.png")
    output = fails(2, "complete", image, "--run", trained, "--mask", "square.png", "--out", "c.png")
    assert "square.png has 24x24 pixels" in output and "12x8; a mask lies over its image" in output
    several = pictures(tmp_path / "several", (12, 8), "L", 2)
    assert "holds 2 images; name one" in fails(
        2, "complete", several, "--run", trained, "--keep", "top:0.5", "--out", "c.png"
    )


def test_a_second_interruption_or_an_early_one_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.cli.machine.report", interrupted)
    assert fails(130, "doctor") == "gen: stopped\n"


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_named_with_what_needs_less(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def exhausted() -> None:
        raise fault

    monkeypatch.setattr("pipeline.cli.machine.report", exhausted)
    assert "out of memory; fewer images at a time need less" in fails(6, "doctor")


def test_debug_shows_the_traceback() -> None:
    result = gen("--debug", "sample", "nowhere")
    assert (
        result.exit_code == 4 and "Traceback" in result.output and "gen: error: there is no run folder" in result.output
    )


def test_doctor_reports_versions() -> None:
    output = succeeds("doctor")
    assert "torch" in output and "torchvision fits torch" in output and "yes" in output


def test_a_saved_configuration_is_read_and_a_run_extended(tmp_path: Path) -> None:
    succeeds("train-vqvae", *TINY, "--out", "first")
    succeeds("train-vqvae", "--config", "first/vqvae/config.json", "--out", "second", "--steps", 2)
    first, second = (json.loads(Path(f"{n}/vqvae/config.json").read_text()) for n in ("first", "second"))
    assert first["model"] == second["model"] and second["training"]["steps"] == 2
    assert "2 done" in succeeds("train-vqvae", "--out", "second", "--resume", "auto", "--steps", 4)
    assert json.loads(Path("second/vqvae/config.json").read_text())["training"]["steps"] == 4


def test_resuming_what_is_done_is_no_fault(tmp_path: Path) -> None:
    """Once it exited with 2, so that a loop around it never ended."""
    succeeds("train-vqvae", *TINY, "--out", "run")
    assert "run/vqvae has done its 3 steps" in succeeds("train-vqvae", "--out", "run", "--resume", "auto")
    assert "--steps 2 is less than the 3" in fails(2, "train-vqvae", "--out", "run", "--resume", "auto", "--steps", 2)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["sample", "run", "--guidance", "inf"], "--guidance"),
        (["sample", "run", "--temperature", "nan"], "--temperature"),
        (["train-vqvae", "--learning-rate", "inf"], "--learning-rate"),
        (["train-vqvae", "--max-minutes", "nan"], "--max-minutes"),
        (["train-vqvae", "--commitment", "inf"], "--commitment"),
    ],
)
def test_numbers_are_finite(arguments: Sequence[str], flag: str) -> None:
    assert f"{flag}: input should be a finite number" in fails(2, *arguments)


def test_no_data_is_not_the_current_folder() -> None:
    assert "--data is empty; name a folder" in fails(2, "train-vqvae", "--data", "")


def test_a_folder_in_use_has_an_exit_code_of_its_own(trained: Path) -> None:
    Path("new").mkdir()
    with FileLock("new/.lock"):
        assert "another command is writing into new" in fails(7, "sample", trained, "--n", 1, "--out", "new")


def test_a_reader_that_has_seen_enough_is_no_fault_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise BrokenPipeError

    monkeypatch.setattr("pipeline.cli.machine.report", gone)
    assert "the reader of the output has gone" in fails(141, "doctor")


@pytest.mark.parametrize("command", ["sample", "info"])
def test_a_run_is_named_by_itself_or_with_its_flag(trained: Path, command: str) -> None:
    more = ["--n", 1, "--out"] if command == "sample" else []
    by_itself = succeeds(command, trained, *more, *(["one"] if more else []))
    with_flag = succeeds(command, "--run", trained, *more, *(["two"] if more else []))
    assert by_itself == with_flag.replace("two", "one")
    both = fails(2, command, trained, "--run", "elsewhere", *more, *(["three"] if more else []))
    assert "two runs are named" in both and "--run elsewhere; name one" in both


@pytest.mark.parametrize("command", ["reconstruct", "score", "encode", "complete"])
def test_a_run_folder_is_not_taken_for_images(trained: Path, command: str) -> None:
    """Once, `gen reconstruct runs/photos image.png` reconstructed the run's own pictures."""
    keep = ["--keep", "top:0.5"] if command == "complete" else []
    message = fails(2, command, trained, "--run", trained, *keep)
    assert f"{trained} is a run folder, not images: name it with --run" in message


def test_every_command_about_a_run_takes_the_flag() -> None:
    about_a_run = {name for name, command in main.commands.items() if "run" in {p.name for p in command.params}}
    assert about_a_run == set(main.commands) - {
        "train-vqvae",
        "compare",
        "evaluate",
        "report",
        "doctor",
        "status",
        "cache",
        "pull",
    }
    for name in about_a_run:
        assert "--run" in succeeds(name, "--help")


def test_a_run_that_is_unfinished_is_described_as_far_as_it_is(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, "run")
    Path("run/vqvae/manifest.json").unlink()
    advice = "go on with `gen train-vqvae --out run --resume auto`"
    assert re.search(rf"vqvae +unfinished, saved after step 12; {advice}", succeeds("info", "run"))
    assert f"stage 1 of run is unfinished; {advice}" in fails(4, "sample", "run")
    shutil.rmtree("run")
    shutil.copytree(trained, "run")
    Path("run/prior/0/manifest.json").unlink()
    assert "prior of run is unfinished; go on with `gen train-prior run --resume auto`" in fails(4, "sample", "run")
    assert "saved after step 12; go on with `gen train-prior run --resume auto`" in succeeds("info", "run")


def test_a_test_part_that_does_not_exist_is_named_before_any_training(tmp_path: Path) -> None:
    message = fails(3, "train-vqvae", *TINY, "--test-data", "nowhere", "--out", "run")
    assert f"no such file or folder: {tmp_path / 'nowhere'}; name a folder of images" in message
    assert "reading" not in message and not Path("run").exists()
    message = fails(2, "train-vqvae", *TINY, "--test-data", tmp_path, "--test", "0.1", "--out", "run")
    assert f"--test belongs to runs without --test-data {tmp_path}; leave it out" in message
