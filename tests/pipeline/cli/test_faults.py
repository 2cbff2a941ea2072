"""What a person does wrong, and what the machine has too little of: a sentence, an exit code, and nothing lost."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import Model, generate, load
from pipeline.cli.inputs import in_batches
from pipeline.data.codes.maps import load_codes
from pipeline.sampling.samples import bytes_on_disk
from pipeline.storage import verify
from stage1_vqvae.noise import add_own_noise
from tests.pipeline.cli.test_cli import fails, pictures, size_of, succeeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo"], "No such option '--foo'"),
        (["nothing"], "No such command 'nothing'"),
        (["sample", "--n", "x"], "Invalid value for '--n': 'x' is not a valid integer"),
        (["encode"], "Missing argument 'DATA'"),
    ],
)
def test_what_click_finds_wrong_is_said_as_we_say_it(arguments: Sequence[str], message: str) -> None:
    output = fails(2, *arguments)
    assert output.startswith(f"gen: error: {message}; `") and output.endswith("--help` lists what there is\n")
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["info", "a\0b"], ["sample", "--out", "\0"], ["train-vqvae", "--config=\0"], ["\0"]]
)
def test_an_argument_with_nul_is_refused(arguments: Sequence[str]) -> None:
    assert re.search(r"gen: error: the argument '.*\\x00.*' holds a NUL character", fails(2, *arguments))


def test_a_run_whose_name_is_no_utf8_is_refused_before_any_work(trained: Path) -> None:
    """Once, it was trained to its end and could not be loaded, as the safetensors library opens no such file."""
    name = os.fsdecode(b"gr\xfcn")
    for command in (["train-vqvae"], ["train-prior", trained], ["sample", trained], ["encode", "digits"]):
        assert "gen: error: out must be the path of" in fails(2, *command, "--out", name)
        assert not Path(name).exists()
    assert "gen: error: run must be the path of" in fails(2, "info", name)


def test_names_that_are_no_utf8_can_be_printed(trained: Path, tmp_path: Path) -> None:
    picture = next(pictures(tmp_path / "data", (12, 8), "L", 1).rglob("*.png")).rename(os.fsdecode(b"gr\xfcn.png"))
    command = [sys.executable, "-m", "pipeline", "score", str(picture), "--run", str(trained)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 0 and b"gr\\udcfcn.png" in done.stdout, done


@pytest.mark.parametrize("command", ["reconstruct", "score", "encode", "complete"])
@pytest.mark.parametrize("images", [" ", "  "])
def test_images_without_a_name_are_refused(trained: Path, command: str, images: str) -> None:
    keep = ["--keep", "top:0.5"] if command == "complete" else []
    assert "gen: error: --data is empty" in fails(2, command, images, "--run", trained, *keep)


def test_a_card_in_another_encoding_is_left_alone(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "README.md").write_bytes(b"Notes of Andr\xe9\n")
    succeeds("train-prior", run, "--resume", "auto")
    assert (run / "README.md").read_bytes() == b"Notes of Andr\xe9\n"


def test_without_a_command_the_help_is_shown() -> None:
    assert "Commands:" in fails(2) and "Commands:" in succeeds("--help")


@pytest.mark.parametrize("device", ["meta", "privateuseone"])
@pytest.mark.parametrize("command", ["sample", "encode", "complete"])
def test_a_device_that_cannot_compute_is_refused(trained: Path, device: str, command: str, tmp_path: Path) -> None:
    image = pictures(tmp_path / "data", (12, 8), "L", 1) / "even" / "0.png"
    more = [] if command == "sample" else [image]
    keep = ["--keep", "top:0.5"] if command == "complete" else []
    message = fails(2, command, *more, *keep, "--run", trained, "--device", device, "--out", "new.png")
    assert f"gen: error: --device {device} is not to be had here" in message and "--device cpu works" in message
    assert not Path("new.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--n"],
        ["sample", "--seed"],
        ["sample", "--batch-size"],
        ["sample", "--top-k"],
        ["complete", "image.png", "--keep", "top:0.5", "--candidates"],
        ["complete", "image.png", "--keep", "top:0.5", "--n"],
        ["complete", "image.png", "--keep", "top:0.5", "--seed"],
        ["reconstruct", "image.png", "--levels"],
        ["reconstruct", "image.png", "--n"],
        ["reconstruct", "image.png", "--random", "--seed"],
        ["train-prior", "--out", "new", "--level"],
    ],
)
def test_numbers_of_twenty_digits_are_refused(trained: Path, arguments: Sequence[str]) -> None:
    Image.fromarray(np.zeros((8, 12), np.uint8)).save("image.png")
    number = "9" * 20
    message = fails(2, arguments[0], "--run", trained, *arguments[1:], number)
    assert arguments[-1] in message and number in message
    assert sorted(path.name for path in Path().iterdir()) == ["image.png"]


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "1e300"])
@pytest.mark.parametrize("option", ["--temperature", "--guidance", "--top-p"])
def test_numbers_without_meaning_are_refused(trained: Path, option: str, number: str) -> None:
    assert f"{option}: input should be" in fails(2, "sample", trained, option, number, "--out", "new")
    assert not Path("new").exists()


def loads_nothing(*_: object, **__: object) -> None:
    raise AssertionError("work was begun")


@pytest.mark.parametrize(
    ("code", "out", "message"),
    [
        (2, "there.png", "there.png exists already; choose another --out"),
        (2, "folder", "folder exists already; choose another --out"),
        (6, "there.png/new.png", r"there.png/new.png cannot be written \(Not a directory\); choose another --out"),
        (6, f"{'x' * 300}.png", r"x.png cannot be written \(File name too long\); choose another --out"),
    ],
)
@pytest.mark.parametrize("command", ["reconstruct", "score", "encode", "decode", "complete"])
def test_where_nothing_can_be_written_no_work_is_begun(
    monkeypatch: pytest.MonkeyPatch, command: str, code: int, out: str, message: str
) -> None:
    monkeypatch.setattr("pipeline.cli.images.loaded", loads_nothing)
    monkeypatch.setattr("pipeline.cli.codec.loaded", loads_nothing)
    monkeypatch.setattr("pipeline.cli.sample.loaded", loads_nothing)
    Path("there.png").write_bytes(b"a picture of mine")
    Path("folder").mkdir()
    keep = ["--keep", "top:0.5"] if command == "complete" else []
    assert re.search(message, fails(code, command, "there.png", *keep, "--run", "run", "--out", out))
    assert Path("there.png").read_bytes() == b"a picture of mine"
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "there.png"]


def test_samples_need_a_folder_that_can_be_written_to(trained: Path) -> None:
    Path("file").write_text("mine")
    assert "file is a file, and samples need a folder; choose another --out" in fails(
        2, "sample", trained, "--out", "file"
    )
    assert "file/new cannot be written (Not a directory); choose" in fails(6, "sample", trained, "--out", "file/new")
    assert Path("file").read_text() == "mine"


def test_a_picture_or_codes_half_written_do_not_take_the_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(tmp_path / "data", (12, 8), "L")

    def disk_full(path: Path, *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pipeline.cli.codec.save_codes", disk_full)
    assert "No space left on device" in fails(6, "encode", data, "--run", trained, "--out", "codes.safetensors")
    monkeypatch.setattr("PIL.Image.Image.save", lambda self, path, **_: disk_full(path))
    assert "No space left on device" in fails(6, "reconstruct", data, "--run", trained, "--out", "new.png")
    assert [path.name for path in Path().iterdir()] == ["data"]


@pytest.mark.parametrize("image_format", ["png", "zip", "safetensors"])
def test_more_images_than_the_disk_holds_are_refused_before_drawing(
    trained: Path, monkeypatch: pytest.MonkeyPatch, image_format: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.sampling.samplers.CodeSampler.sample", loads_nothing)
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5000))
        message = fails(6, "sample", trained, "--n", 100_000, "--format", image_format, "--out", "new")
    assert re.search(
        rf"drawing 100,000 images as {image_format} takes about [\d.,]+ [MG]iB of disk in new, and 4.9 KiB are free; "
        "draw fewer with --n, or write them elsewhere with --out",
        message,
    )
    assert sorted(path.name for path in Path("new").iterdir() if path.name[0] != ".") == ["codes", "request.json"]
    assert "wrote 2 images into new" in succeeds(
        "sample", trained, "--n", 2, "--format", image_format, "--out", "new", "--batch-size", 1
    )


@pytest.mark.parametrize("image_format", ["png", "zip", "safetensors"])
def test_the_disk_that_images_take_is_no_more_than_estimated(trained: Path, image_format: str) -> None:
    succeeds("sample", trained, "--n", 40, "--format", image_format, "--out", "new")
    content = [
        path for path in Path("new").rglob("*") if path.is_file() and path.name not in ("grid.png", "request.json")
    ]
    # 8 x 12 pixels, 2 x 3 codes of int16, a class of int64
    assert sum(path.stat().st_size for path in content) < 40 * bytes_on_disk(96 + 12 + 8, image_format) + 1000  # type: ignore[arg-type]


@pytest.mark.parametrize("image_format", ["png", "zip", "safetensors"])
def test_equal_requests_write_equal_bytes(trained: Path, tmp_path: Path, image_format: str) -> None:
    data = pictures(tmp_path / "data", (12, 8), "L")
    hashes = []
    for out in ("first", "second"):
        succeeds("sample", trained, "--n", 9, "--batch-size", 4, "--format", image_format, "--out", out)
        succeeds("encode", data, "--run", trained, "--out", f"{out}/encoded.safetensors")
        files = sorted(path for path in Path(out).rglob("*.*") if path.is_file())
        hashes.append([(str(path.relative_to(out)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert hashes[0] == hashes[1] and len(hashes[0]) >= 8


def run_gen(arguments: Sequence[object], closed: str) -> int:
    """The exit code of a command whose streams of these numbers are closed."""
    command = " ".join([sys.executable, "-m", "pipeline", *map(str, arguments), *(f"{number}>&-" for number in closed)])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(["sh", "-c", command], env=environment, capture_output=True).returncode


def test_a_closed_stream_is_no_reason_to_stop(trained: Path) -> None:
    assert run_gen(["sample", trained, "--n", 3, "--seed", 8, "--out", "new"], "2") == 0
    assert len(list(Path("new").glob("00000?.png"))) == 3 and size_of("new/000002.png") == (12, 8)
    codes = load_codes(Path("new/codes/000000-000002.safetensors")).levels[0]
    assert torch.equal(codes, generate(trained, 3, seed=8).codes[0]), "a run loads in another process by its path alone"


def test_training_with_closed_streams_is_finished(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", (16, 16), "L", 12)
    small = ["--hidden", "8", "--residual-channels", "4", "--num-codes", "8", "--steps", "2", "--batch-size", "4"]
    assert run_gen(["train-vqvae", "--data", data, *small, "--out", "run"], "012") == 0
    verify(Path("run/vqvae"))


def psnr(output: str) -> float:
    found = re.search(r"PSNR ([\d.]+) dB", output)
    assert found
    return float(found[1])


def test_reconstruct_measures_all_images_and_shows_those_asked_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(tmp_path / "data", (12, 8), "L", 12)
    whole = succeeds("reconstruct", data, "--run", trained, "--out", "all.png")
    assert "wrote all.png: 12 images, each above its reconstruction" in whole and "over all 12 given" in whole
    monkeypatch.setattr(Model, "images_at_a_time", 5)
    first = succeeds("reconstruct", data, "--run", trained, "--out", "first.png", "--n", 3)
    assert "wrote first.png: the first 3 of 12 images" in first and psnr(first) == psnr(whole)
    assert size_of("first.png") == (3 * 98 + 2, 2 * 66 + 2)
    names = ["a", "b", "c"]
    for name, seed in zip(names, (4, 4, 5), strict=True):
        one = succeeds(
            "reconstruct", data, "--run", trained, "--out", f"{name}.png", "--n", 3, "--random", "--seed", seed
        )
        assert f"wrote {name}.png: 3 of 12 images" in one and psnr(one) == psnr(whole)
    a, b, c = (Path(f"{name}.png").read_bytes() for name in names)
    assert a == b != c and a != Path("first.png").read_bytes()
    message = fails(2, "reconstruct", data, "--run", trained, "--out", "d.png", "--seed", 4)
    assert "--seed 4 says which images --random draws; add --random, or leave it out" in message


def test_psnr_of_all_images_is_that_of_their_pixels(trained: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", (12, 8), "L", 7)
    paths = sorted(data.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path))[None] for path in paths])
    error = np.square(images / 255 - load(trained).reconstruct(images).numpy() / 255).mean()
    output = succeeds("reconstruct", *paths, "--run", trained, "--n", 1, "--out", "one.png")
    assert psnr(output) == pytest.approx(-10 * np.log10(error), abs=0.006)


def test_reconstruct_shows_and_measures_noisy_images(trained: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", (12, 8), "L", 7)
    paths = sorted(data.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path))[None] for path in paths])
    noisy = add_own_noise(torch.from_numpy(images), 0.2).numpy()
    restored = load(trained).reconstruct(noisy).numpy()
    expected = [-10 * np.log10(np.square(images / 255 - other / 255).mean()) for other in (restored, noisy)]
    output = succeeds("reconstruct", *paths, "--run", trained, "--noise", 0.2, "--out", "a.png")
    found = re.search(r"PSNR ([\d.]+) dB, of the noisy images ([\d.]+) dB, over all 7 given", output)
    assert found and [float(number) for number in found.groups()] == pytest.approx(expected, abs=0.006)
    assert size_of("a.png")[1] == 3 * 66 + 2, "three rows"
    assert "0<x<=1" in fails(2, "reconstruct", *paths, "--run", trained, "--noise", 0, "--out", "b.png")


def test_images_of_several_folders_come_in_batches_without_a_copy_of_all() -> None:
    parts = [np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1) for n in (3, 1, 4)]
    batches = list(in_batches(parts, 3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert np.array_equal(np.concatenate(batches), np.concatenate(parts))


def test_each_picture_and_the_folder_are_brought_to_the_disk(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once `sync` of the whole system did it, which waits for what other programs write."""
    synced: list[str] = []
    monkeypatch.setattr("pipeline.sampling.samples.sync", lambda path: synced.append(path.name))
    monkeypatch.setattr("os.sync", loads_nothing)
    succeeds("sample", trained, "--n", 5, "--batch-size", 3, "--out", "new")
    assert sorted(synced) == [f"00000{index}.png" for index in range(5)] + ["new", "new"]


def test_a_run_is_not_left_by_a_refusal(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "--batch-size: input should be less than or equal to 1048576; got 1000000000" in fails(
        2, "sample", run, "--batch-size", 10**9
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["score", "reconstruct", "encode"])
def test_what_was_computed_is_there_though_the_reader_has_gone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    for module in ("images", "codec"):
        monkeypatch.setattr(f"pipeline.cli.{module}.say_result", gone)
    data = pictures(tmp_path / "data", (12, 8), "L", 3)
    assert "the reader of the output has gone" in fails(141, command, data, "--run", trained, "--out", "new.png")
    assert Path("new.png").stat().st_size > 0
