"""Format 4, which lasts: a stored run of it is read by every later version.

    python -m tests.pipeline.runs.test_format FOLDER

makes such a run anew, with what it is expected to give. The one beside this file is never replaced: a version that
cannot read it needs a migration.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import CheckpointError, UsageError, generate, generate_files, load, train_prior, train_vqvae
from pipeline.data.codes.shards import read_index, read_parts
from pipeline.runs.saved import DecoderRun, PriorRun, VQVAERun, read_config
from pipeline.storage import (
    load_tensors,
    read_json,
    save_tensors,
    tensors_sha256,
    verify,
    write_json,
    write_manifest,
)
from stage1_vqvae import VQVAE
from stage2_prior import make_prior
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

PRIOR = {**TINY_PRIOR, "layers": 2, "head": 4}
STORED = Path(__file__).parent / "format-4"


def make(folder: Path) -> None:
    """Train a tiny run, draw from it, and write down what it gave."""
    images, targets = shapes()
    run = folder / "run"
    once: dict[str, Any] = {"checkpoints": 1}
    train_vqvae(out=run, images=images, targets=targets, **TINY_VQVAE, **once, likelihood="discretized-logistic")
    train_prior(run, images=images, targets=targets, **PRIOR, **once, label_dropout=0.1)
    generate_files(run, n=2, seed=5, format="safetensors")
    samples, model = generate(run, 4, seed=3, precision="float64"), load(run)
    restored = model.reconstruct(images[:4])
    expected = {"samples": samples.images, "codes": samples.codes[0], "originals": torch.from_numpy(images[:4])}
    save_tensors(folder / "expected.safetensors", {**expected, "restored": restored})
    for path in [*run.rglob("*.png"), *run.rglob(".lock")]:
        path.unlink()


def copy(tmp_path: Path) -> Path:
    """The stored run, where it may be changed."""
    return Path(shutil.copytree(STORED / "run", tmp_path / "run"))


def alter(run: Path, name: str) -> None:
    """Change a tensor of stage 1, and let the manifest agree."""
    weights = run / "vqvae" / "model.safetensors"
    tensors = load_tensors(weights)
    save_tensors(weights, {**tensors, name: tensors[name] * 1.5 + 0.1})
    write_manifest(run / "vqvae", list(read_json(run / "vqvae" / "manifest.json")))


def test_the_stored_run_loads_samples_and_reconstructs() -> None:
    assert sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file()) < 200_000
    expected, model = load_tensors(STORED / "expected.safetensors"), load(STORED / "run")
    samples = generate(STORED / "run", 4, seed=3, precision="float64")
    assert torch.equal(samples.codes[0], expected["codes"])
    assert (samples.images.int() - expected["samples"].int()).abs().max() <= 1  # float32 rounds as the machine does
    restored = model.reconstruct(expected["originals"])
    assert (restored.int() - expected["restored"].int()).abs().max() <= 1
    assert len(generate(STORED / "run", 2, guidance=2.0)) == 2


def test_a_prior_from_before_there_was_a_default_guidance_keeps_guidance_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.levels.DEFAULT_GUIDANCE", 30.0)
    run, expected = copy(tmp_path), load_tensors(STORED / "expected.safetensors")
    assert "guidance" not in read_json(run / "prior" / "0" / "config.json")
    for guidance in (None, 1.0):
        samples = generate(run, 4, seed=3, precision="float64", guidance=guidance)
        assert torch.equal(samples.codes[0], expected["codes"])
    train_prior(run, resume="auto", steps=14)
    assert read_json(run / "prior" / "0" / "config.json")["guidance"] == 1
    assert load(run).sampler().options.guidance == 1


@pytest.mark.parametrize(("adversarial", "objective"), [(True, "sharp"), (False, "nmse")])
def test_an_adversarial_model_of_format_4_has_an_objective_and_jpegs_decoded_whole(
    tmp_path: Path, adversarial: bool, objective: str
) -> None:
    path = copy(tmp_path) / "vqvae" / "config.json"
    old = read_json(path)
    assert isinstance(old["model"], dict) and old["format_version"] == 4
    write_json(path, old | {"model": old["model"] | {"adversarial": adversarial, "adversarial_weight": 0.5}})
    saved = read_config(path.parent, VQVAERun)
    assert (saved.model.objective, saved.model.adversarial_weight, saved.data.draft) == (objective, 0.5, False)
    assert saved.format_version == 8 and saved.model.hidden == old["model"]["hidden"]
    trained = saved.model.discriminator_rate, saved.model.adversarial_start
    assert trained == ((1.0, 0.3) if adversarial else (0.25, 0.0)), "as it was trained"


def test_a_discriminator_of_format_5_goes_on_at_the_learning_rate_of_all_else(tmp_path: Path) -> None:
    run = copy(tmp_path)
    old = read_json(run / "vqvae" / "config.json")
    assert isinstance(old["model"], dict) and isinstance(old["data"], dict)
    model = {name: value for name, value in old["model"].items() if name != "adversarial"} | {"objective": "sharp"}
    write_json(run / "vqvae" / "config.json", old | {"format_version": 5, "model": model})
    assert read_config(run / "vqvae", VQVAERun).model.discriminator_rate == 1
    decoder = {"objective": {"adversarial_weight": 0.02}, "training": old["training"], "codes_sha256": "0"}
    write_json(tmp_path / "config.json", {"format_version": 5, "kind": "decoder", **decoder})
    assert read_config(tmp_path, DecoderRun).objective.discriminator_rate == 1


def test_a_transformer_of_format_6_is_normalised_as_it_was_and_a_later_one_as_they_are(tmp_path: Path) -> None:
    path = copy(tmp_path) / "prior" / "0" / "config.json"
    old = read_json(path)
    assert isinstance(old["model"], dict)
    for version, normalisation in ((6, "rms"), (7, "layer")):
        write_json(path, old | {"format_version": version, "model": old["model"] | {"prior": "transformer"}})
        config = read_config(path.parent, PriorRun).model
        assert config.normalisation == normalisation
        [*_, norm] = [module for module in make_prior(config).modules() if "Norm" in type(module).__name__]
        assert isinstance(norm, nn.RMSNorm if version == 6 else nn.LayerNorm)


def test_the_stored_codes_and_samples_go_on(tmp_path: Path) -> None:
    run = copy(tmp_path)
    index = read_index(run / "codes")
    vqvae = read_config(run / "vqvae", VQVAERun)
    maps = read_parts(run / "codes", index.identity, vqvae.model, len(vqvae.class_names))
    assert maps is not None and (len(maps["train"]), len(maps["validation"])) == (34, 4)
    assert generate_files(run, n=2, seed=5, format="safetensors").new == 0
    assert generate_files(run, n=3, seed=5, format="safetensors").new == 1
    shutil.rmtree(run / "prior")
    train_prior(run, **{**PRIOR, "steps": 1})  # no images are given: the stored codes serve


def test_the_stored_trainings_go_on(tmp_path: Path) -> None:
    run, (images, targets) = copy(tmp_path), shapes()
    assert train_prior(run, resume="auto", steps=14).steps == 14
    shutil.rmtree(run / "prior")
    done = train_vqvae(out=run, images=images, targets=targets, resume="auto", steps=14)
    assert done.steps == 14 and len(list((run / "vqvae" / "checkpoints").glob("step-*"))) == 2


def test_each_hash_changes_when_its_part_does_and_only_then(tmp_path: Path) -> None:
    config = read_config(STORED / "run" / "vqvae", VQVAERun).model
    network = VQVAE(config)
    whole = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def hashes() -> tuple[str, str]:
        return tensors_sha256(network.code_tensors()), tensors_sha256(network.decoder_tensors())

    codes, decoder = hashes()
    changed: dict[str, tuple[bool, bool]] = {}
    for name, tensor in whole.items():
        network.load_state_dict({**whole, name: tensor * 1.5 + 0.1})
        other_codes, other_decoder = hashes()
        changed[name] = (other_codes != codes, other_decoder != decoder)
    network.load_state_dict(whole)
    assert hashes() == (codes, decoder)
    for name, found in changed.items():
        part = name.partition(".")[0]
        assert found == (part in ("encoder", "levels"), part in ("decoder", "likelihood")), name
    assert {name.partition(".")[0] for name in whole} == {"encoder", "levels", "decoder", "likelihood", "data_variance"}


def test_the_hash_is_of_names_types_shapes_and_values_and_not_of_their_order_or_layout() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.tensor(1)}
    first = tensors_sha256(tensors)
    assert tensors_sha256(dict(reversed(tensors.items()))) == first
    assert tensors_sha256({**tensors, "a": tensors["a"].T.contiguous().T}) == first
    others = [
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "a": tensors["a"].double()},
        {**tensors, "a": tensors["a"] + 1e-6},
        {**tensors, "b": torch.zeros(0, 1)},
        {"a": tensors["a"], "b": tensors["b"], "d": tensors["c"]},
        {"a": tensors["a"], "c": tensors["c"]},
    ]
    assert len({first, *map(tensors_sha256, others)}) == 1 + len(others)


def test_a_decoder_may_change_without_touching_codes_or_priors(tmp_path: Path) -> None:
    run, expected = copy(tmp_path), load_tensors(STORED / "expected.safetensors")
    alter(run, "decoder.0.bias")
    samples = generate(run, 4, seed=3, precision="float64")
    assert torch.equal(samples.codes[0], expected["codes"]) and not torch.equal(samples.images, expected["samples"])
    with pytest.raises(UsageError, match=r"holds samples of decoder_sha256 \w+, not \w+; choose another --out"):
        generate_files(run, n=3, seed=5, format="safetensors")


def test_an_encoder_may_not(tmp_path: Path) -> None:
    run = copy(tmp_path)
    alter(run, "encoder.0.bias")
    with pytest.raises(CheckpointError, match="trained on the codes of another vqvae: codes_sha256"):
        load(run)


def test_a_folder_of_format_3_is_refused_by_name(tmp_path: Path) -> None:
    run = copy(tmp_path)
    for stage in (run / "prior" / "0", run / "vqvae"):
        write_json(stage / "config.json", {**read_json(stage / "config.json"), "format_version": 3})
        with pytest.raises(CheckpointError, match=r"config.json has format_version 3; this version reads 4 to 8"):
            load(run)


def test_what_format_4_holds(tmp_path: Path) -> None:
    run = STORED / "run"
    verify(run / "vqvae")
    verify(run / "prior" / "0")
    split = load_tensors(run / "vqvae" / "split.safetensors")
    assert {name: len(part) for name, part in split.items()} == {"train": 34, "validation": 4, "test": 2}
    validation = json.loads((run / "vqvae" / "validation.json").read_text())
    assert validation.keys() == {"step", "steps_done", "metrics"}
    assert {"nmse", "psnr", "bits_per_dim"} == validation["metrics"]["values"].keys()
    assert {"codebook_usage", "perplexity", "bits_per_image"} < validation["metrics"]["levels"][0].keys()
    codes_sha256 = load(run).vqvae.codes_sha256
    assert json.loads((run / "prior" / "0" / "config.json").read_text())["codes_sha256"] == codes_sha256
    assert read_index(run / "codes").identity["codes_sha256"] == codes_sha256
    request = json.loads((run / "samples" / "seed-5" / "request.json").read_text())
    assert request["codes_sha256"] == codes_sha256 and len(request["decoder_sha256"]) == 64


if __name__ == "__main__":
    make(Path(sys.argv[1]))
