"""A decoder trained further: sharper pictures of the same codes, beside the decoder of stage 1."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import (
    CheckpointError,
    DataError,
    UsageError,
    generate,
    generate_files,
    load,
    sharpen,
    train_prior,
    train_vqvae,
)
from pipeline.cli.main import main
from pipeline.config.sampling import DecoderName
from pipeline.data.splits import load_split
from pipeline.processes import resolve_precision
from pipeline.runs.layout import SPLIT, RunFolder
from pipeline.storage import load_tensors
from pipeline.training.inputs.batches import ImageBatches
from pipeline.training.loop.trainer import Trainer
from pipeline.training.sharpen import run_of
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of both stages, to be sharpened."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def sharpened(run: Path, **options: Any) -> Path:
    images, targets = shapes()
    sharpen(run, images=images, targets=targets, **{"steps": 6, "evaluations": 2, "checkpoints": 2, **options})
    return run


def decoder_of(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(RunFolder(run).decoder("sharp") / "model.safetensors")


def test_codes_and_what_is_drawn_stay_and_pictures_change(run: Path) -> None:
    images, _ = shapes()
    before, drawn = load(run), generate(run, 5, seed=3)
    codes, pictures = before.encode(images), before.reconstruct(images)
    sharpened(run)
    after, plain = load(run), load(run, decoder="plain")
    assert (after.run.decoder, plain.run.decoder) == ("sharp", "plain")
    assert all(torch.equal(one, other) for one, other in zip(codes, after.encode(images), strict=True))
    assert before.vqvae.codes_sha256 == after.vqvae.codes_sha256 == plain.vqvae.codes_sha256
    assert before.vqvae.decoder_sha256 == plain.vqvae.decoder_sha256 != after.vqvae.decoder_sha256
    assert torch.equal(plain.reconstruct(images), pictures) and not torch.equal(after.reconstruct(images), pictures)
    again, as_before = generate(run, 5, seed=3), generate(run, 5, seed=3, decoder="plain")
    assert torch.equal(again.codes[0], drawn.codes[0]) and torch.equal(as_before.codes[0], drawn.codes[0])
    assert torch.equal(as_before.images, drawn.images) and not torch.equal(again.images, drawn.images)


def test_the_folder_holds_the_decoder_alone_and_what_is_known_of_it(run: Path) -> None:
    stage = RunFolder(sharpened(run)).decoder("sharp")
    assert {name.partition(".")[0] for name in decoder_of(run)} == {"decoder"}
    config = json.loads((stage / "config.json").read_text())
    assert config["kind"] == "decoder" and config["codes_sha256"] == load(run).vqvae.codes_sha256
    assert json.loads((stage / "validation.json").read_text())["metrics"]["values"].keys() == {"nmse", "psnr"}
    assert (stage / "reconstructions.png").is_file() and (stage / "metrics.jsonl").is_file()
    for checkpoint in (stage / "checkpoints").glob("step-*"):
        parts = {name.partition(".")[0] for name in load_tensors(checkpoint / "model.safetensors")}
        assert parts == {"network", "sharp"}, "the frozen part is in no checkpoint"


def test_what_is_frozen_is_not_changed_while_the_average_and_the_decoder_move(run: Path) -> None:
    before = load(run).vqvae.network.state_dict()
    kept: dict[str, Any] = {}

    class Watched(Trainer[Any, Any]):
        def run(self) -> Any:
            ended = super().run()
            kept.update(self.task.vqvae.state_dict())  # type: ignore[attr-defined]  # of a DecoderTask
            assert self.state.average is not None
            kept["average"] = self.state.average.module.get_submodule("network.decoder").state_dict()
            return ended

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.sharpen.Trainer", Watched)
        sharpened(run, average_decay=0.9)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, kept[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    published = decoder_of(run)
    assert all(torch.equal(tensor, published[f"decoder.{name}"]) for name, tensor in kept["average"].items())


def test_interrupted_and_resumed_is_the_same_bit_for_bit(run: Path, tmp_path: Path) -> None:
    options = {"frequency_weight": 0.1, "average_decay": 0.9, "checkpoints": 6, "keep": 6}
    other = Path(shutil.copytree(run, tmp_path / "other"))
    sharpened(run, **options)
    sharpened(other, **options)
    stage = RunFolder(other).decoder("sharp")
    for name in ("config.json", "model.safetensors", "manifest.json", "validation.json"):
        (stage / name).unlink()
    for step in (4, 5, 6):
        shutil.rmtree(stage / "checkpoints" / f"step-{step:09d}")
    sharpen(other, resume="auto", images=shapes()[0], targets=shapes()[1])
    assert all(torch.equal(tensor, decoder_of(other)[name]) for name, tensor in decoder_of(run).items())
    with pytest.raises(UsageError, match="has done its 6 steps"):
        sharpen(other, resume="auto", images=shapes()[0], targets=shapes()[1])


def test_what_is_trained_on_is_the_training_part_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    original = ImageBatches.training_batch

    def watched(self: ImageBatches, batch: Any, device: torch.device) -> torch.Tensor:
        pixels = original(self, batch, device)
        seen.append(pixels.numpy())
        return pixels

    monkeypatch.setattr(ImageBatches, "training_batch", watched)
    sharpened(run, seed=5)  # another seed than that which divided the images
    images, train = shapes()[0], load_split(run / "vqvae" / SPLIT).train
    there = {images[index].tobytes() for index in train}
    assert len(train) < len(images) and {image.tobytes() for batch in seen for image in batch} == there


def test_other_images_than_those_of_the_run_are_refused(run: Path) -> None:
    images, targets = shapes()
    with pytest.raises(DataError, match="the images are not those that"):
        sharpen(run, images=255 - images, targets=targets, steps=2)
    assert not RunFolder(run).decoders.exists()


def test_a_sharp_decoder_that_is_not_there_is_refused_with_the_command(run: Path) -> None:
    with pytest.raises(UsageError, match=r"train it with `gen sharpen \S*run`"):
        load(run, decoder="sharp")
    with pytest.raises(UsageError, match="decoder 'blurred' is neither of plain and sharp"):
        load(run, decoder="blurred")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the model given has the plain decoder"):
        generate(load(run), 1, decoder="sharp")


def test_a_damaged_decoder_is_refused_by_name_and_the_plain_one_still_loads(run: Path) -> None:
    weights = RunFolder(sharpened(run)).decoder("sharp") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vqvae/decoders/sharp"):
        load(run)
    assert load(run, decoder="plain").run.decoder == "plain"


def test_a_decoder_of_other_codes_is_neither_used_nor_gone_on_with(run: Path, tmp_path: Path) -> None:
    images, targets = shapes()
    sharpened(run)
    other = train_vqvae(out=tmp_path / "other", images=images, targets=targets, **{**TINY_VQVAE, "seed": 1}).run
    shutil.copytree(RunFolder(run).decoders, RunFolder(other).decoders)
    with pytest.raises(CheckpointError, match="was trained on the codes of another vqvae"):
        load(other)
    with pytest.raises(CheckpointError, match="was trained on the codes of another vqvae"):
        sharpen(other, images=images, targets=targets, resume="auto", steps=9)


def test_stage_1_is_not_trained_further_under_a_decoder(run: Path) -> None:
    images, targets = shapes()
    sharpened(run)
    shutil.rmtree(run / "prior")
    with pytest.raises(UsageError, match=r"the decoders in \S+ belong to these weights"):
        train_vqvae(out=run, resume="auto", steps=20, images=images, targets=targets)


def test_the_length_is_a_quarter_of_that_of_stage_1_unless_given(run: Path) -> None:
    images, targets = shapes()
    assert sharpen(run, images=images, targets=targets).steps == TINY_VQVAE["steps"] // 4
    config = json.loads((RunFolder(run).decoder("sharp") / "config.json").read_text())
    assert config["training"]["batch_size"] == TINY_VQVAE["batch_size"], "as stage 1"


def test_a_damaged_decoder_stops_nothing_that_does_not_decode(run: Path) -> None:
    (RunFolder(sharpened(run)).decoder("sharp") / "model.safetensors").write_bytes(b"")
    images, targets = shapes()
    train_prior(run, out=run.parent / "again", images=images, targets=targets, force=True, **TINY_PRIOR)
    assert (run.parent / "again" / "prior" / "0" / "model.safetensors").is_file()


def test_what_the_machine_of_stage_1_decided_is_decided_anew(run: Path) -> None:
    images, targets = shapes()
    sharpen(run, images=images, targets=targets, steps=1)
    saved = json.loads((run / "vqvae" / "config.json").read_text())["training"]
    config = json.loads((RunFolder(run).decoder("sharp") / "config.json").read_text())["training"]
    assert saved["precision"] == "float32" and config["precision"] == resolve_precision("auto", torch.device("cpu"))
    assert config["micro_batches"] == 1


def test_a_checkpoint_of_another_stage_is_refused_by_name(run: Path) -> None:
    [named] = (run / "vqvae" / "checkpoints").glob("step-*12")
    with pytest.raises(
        UsageError, match=r"vqvae holds no sharp decoder: `gen sharpen` goes on with checkpoints in RUN"
    ):
        sharpen(resume=named)
    with pytest.raises(UsageError, match=r"/vqvae holds no sharp decoder"):
        run_of(Path("/vqvae"))


def test_options_without_effect_are_refused(run: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)--feature-matching belongs to .*--patience 2"):
        sharpened(run, adversarial_weight=0.0, feature_matching=1.0, patience=2)
    for resume in (None, "auto"):
        with pytest.raises(UsageError, match=r"--patience 2 belongs to trainings whose best weights are kept"):
            sharpened(run, steps=4, patience=2, resume=resume)
        shutil.rmtree(RunFolder(run).decoders, ignore_errors=True)
        sharpened(run, steps=2)


def test_features_of_classes_are_learned_before_and_refused_without_classes(run: Path, tmp_path: Path) -> None:
    images, _ = shapes()
    plain = Path(shutil.copytree(run, tmp_path / "plain"))
    sharpened(run, steps=2, adversarial_weight=0.0, features="classes")
    sharpened(plain, steps=2, adversarial_weight=0.0)
    assert not torch.equal(decoder_of(run)["decoder.4.weight"], decoder_of(plain)["decoder.4.weight"])
    without = train_vqvae(out=tmp_path / "without", images=images, **{**TINY_VQVAE, "steps": 2}).run
    with pytest.raises(UsageError, match="--features classes learns from the folders' classes, 2 at least"):
        sharpen(without, images=images, features="classes", steps=2)


@pytest.mark.parametrize("bottleneck", ["gumbel", "fsq", "gaussian", "mmd", "none"])
def test_every_bottleneck_can_be_sharpened(bottleneck: str, tmp_path: Path) -> None:
    images, targets = shapes()
    train_vqvae(out=tmp_path / "run", images=images, targets=targets, **tiny_vqvae(bottleneck, steps=2))
    codes = load(tmp_path / "run").encode(images)
    sharpened(tmp_path / "run", steps=2, features="kmeans")
    assert torch.equal(load(tmp_path / "run", decoder="sharp").encode(images)[0], codes[0])


def test_the_scale_of_a_likelihood_follows_the_decoder(tmp_path: Path) -> None:
    images, targets = shapes()
    options = {**TINY_VQVAE, "likelihood": "gaussian", "levels": 2, "downsampling": 2}
    train_vqvae(out=tmp_path / "run", images=images, targets=targets, **options)
    published = decoder_of(sharpened(tmp_path / "run", adversarial_weight=0.0))
    before = load(tmp_path / "run", decoder="plain").vqvae.network.decoder_tensors()
    assert published.keys() == before.keys()
    assert not torch.equal(published["likelihood.slow_log_scale"], before["likelihood.slow_log_scale"])


def test_commands_take_either_decoder_and_refuse_one_that_is_not_there(tmp_path: Path) -> None:
    images, _ = shapes(size=(8, 8))
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / "photos" / f"{index}.png")
    train_vqvae(out="run", data=str(tmp_path / "photos"), **tiny_vqvae("gaussian"))
    gen = CliRunner().invoke
    refused = gen(main, ["reconstruct", "photos", "--run", "run", "--out", "none.png", "--decoder", "sharp"])
    assert refused.exit_code == 2 and "train it with `gen sharpen run`" in refused.stderr
    assert not Path("none.png").exists()
    done = gen(main, ["sharpen", "run", "--steps", "3", "--frequency-weight", "0.1", "--quiet"])
    assert done.exit_code == 0 and "wrote run/vqvae/decoders/sharp (validation: nmse" in done.output
    for decoder in ("plain", "sharp"):
        named = ["--run", "run", "--out", f"{decoder}.png", "--decoder", decoder]
        assert gen(main, ["reconstruct", "photos", *named]).exit_code == 0
        drawn = gen(main, ["sample", "run", "--n", "2", "--out", f"drawn-{decoder}", "--decoder", decoder])
        assert (
            drawn.exit_code == 0 and json.loads(Path(f"drawn-{decoder}/request.json").read_text())["decoder"] == decoder
        )
    assert Path("plain.png").read_bytes() != Path("sharp.png").read_bytes()
    assert "sharp, decoder_sha256" in gen(main, ["info", "run"]).output
    assert "The sharp decoder" in Path("run/README.md").read_text()


@pytest.mark.parametrize("command", ["complete", "sample", "reconstruct", "decode", "score", "evaluate"])
def test_every_command_that_decodes_has_the_option(command: str) -> None:
    assert "--decoder [plain|sharp]" in CliRunner().invoke(main, [command, "--help"]).output


def test_samples_say_which_decoder_made_them(run: Path) -> None:
    sharpened(run)
    choices: tuple[DecoderName | None, ...] = (None, "plain")
    for decoder in choices:
        folder = generate_files(run, n=2, out=f"samples-{decoder}", decoder=decoder).folder
        request = json.loads((folder / "request.json").read_text())
        assert request["decoder"] == (decoder or "sharp")
        assert request["decoder_sha256"] == load(run, decoder=decoder).vqvae.decoder_sha256
    with pytest.raises(UsageError, match=r"(?s)holds samples of decoder sharp, not plain.*go on with --decoder sharp"):
        generate_files(run, n=2, out="samples-None", decoder="plain")
