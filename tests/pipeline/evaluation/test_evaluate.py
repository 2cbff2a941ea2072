"""How good a run is: its figures and references, the choice of a setting, and what cannot be measured."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import (
    CheckpointError,
    DataError,
    UsageError,
    evaluate,
    evaluate_folder,
    generate,
    generate_files,
    load,
    score,
    train_prior,
    train_vqvae,
)
from pipeline.cli.main import main
from pipeline.config.arguments import EvaluateArguments
from pipeline.config.data import DataConfig
from pipeline.data.image_set import from_array
from pipeline.data.splits import load_split
from pipeline.errors import GenError, ResourceError
from pipeline.evaluation.judge import training
from pipeline.evaluation.judge.judge import judge_of
from pipeline.evaluation.parts import Labelled
from pipeline.reporting import Silent
from pipeline.runs.evaluation import Evaluation, Figure, read_evaluation
from pipeline.runs.layout import RunFolder
from pipeline.storage import load_tensors
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae
from tests.weights import alexnet_weights, inception_weights, publish

IMAGES, TARGETS = shapes(120)
PARTS: dict[str, Any] = {"validation": 0.25, "test": 0.25}  # 30 images each


def save(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    """Pictures in a folder for each class."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / str(label) / f"{index:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("data") / "pictures", IMAGES, TARGETS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: str) -> Path:
    """Both stages, that can be guided. Tests write evaluations into it and change nothing else."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_vqvae(out=folder, data=pictures, **TINY_VQVAE, **PARTS)
    train_prior(folder, label_dropout=0.2, **TINY_PRIOR)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_judge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All tests here have one cache, as users do."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEN_CACHE", str(cache))
        patch.setattr(training, "_FEWEST_STEPS", 24)
        yield cache


@pytest.fixture(autouse=True)
def _with_the_judge(_one_judge: Path, _fixed_surroundings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEN_CACHE", str(_one_judge))


@pytest.fixture(scope="module")
def found(run: Path, _one_judge: Path) -> Evaluation:
    return evaluate(run)[0]


@pytest.fixture(scope="module")
def original(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and classes, in the order in which their files are read."""
    order = np.argsort([f"{label}/{index:03d}" for index, label in enumerate(TARGETS)])
    return IMAGES[order], TARGETS[order]


def test_every_figure_stands_beside_its_references(run: Path, found: Evaluation) -> None:
    assert found == read_evaluation(RunFolder(run)) and found.images == 30 and found.samples is not None
    assert found.judge.learned == "classes" and found.judge.accuracy.value > 0.9
    assert found.samples.figures.keys() == found.reconstructed.keys() == found.floor.keys() | {"repeated_codes"}
    assert found.test_images == 30 and found.test_data is None and found.settings == () and found.best is None
    assert found.floor.keys() == {
        "kernel_distance",
        "class_shown",
        "classification_accuracy_score",
        "nearest_distance",
        "near_copies",
    }
    assert found.stage1.keys() == {
        "nmse",
        "psnr",
        "high_frequency_power",
        "class_shown",
        "codebook_usage",
        "perplexity",
        "code_bits_per_image",
        "code_bits_per_pixel",
    }
    assert found.stage2.keys() == {"nats_per_code", "bits_per_image"} and found.classes.keys() == {"0", "1"}
    assert found.floor["kernel_distance"].value < found.reconstructed["kernel_distance"].value
    assert [note for note in found.notes if "30 images of each set are too few" in note]
    text = (run / "README.md").read_text()
    assert "## Evaluation" in text and str(found.samples.figures["kernel_distance"]) in text
    for name, width in (("nearest.png", 8 * 64), ("nats.png", 256)):
        with Image.open(run / "evaluation" / name) as picture:
            assert picture.size[0] > width


def test_likelihoods_are_those_of_the_codes_given_their_classes(
    run: Path, found: Evaluation, original: tuple[np.ndarray, np.ndarray]
) -> None:
    test = load_split(run / "vqvae" / "split.safetensors").test
    images, labels = original[0][test], original[1][test]
    bits = np.array([float(score(run, images[i : i + 1], label=int(labels[i])).bits[0]) for i in range(len(test))])
    assert found.stage2["bits_per_image"].value == pytest.approx(bits.mean(), rel=1e-5)
    assert found.stage2["bits_per_image"].error == pytest.approx(bits.std(ddof=1) / len(test) ** 0.5, rel=1e-4)
    nats = bits * np.log(2) / 6
    assert found.stage2["nats_per_code"].value == pytest.approx(nats.mean(), rel=1e-5)
    assert found.classes["1"].value == pytest.approx(nats[labels == 1].mean(), rel=1e-5)


def test_stage_1_is_measured_on_the_test_part(
    run: Path, found: Evaluation, original: tuple[np.ndarray, np.ndarray]
) -> None:
    model, test = load(run), load_split(run / "vqvae" / "split.safetensors").test
    images = original[0][test]
    error = ((images / 255 - model.reconstruct(images).numpy() / 255) ** 2).mean()
    assert found.stage1["nmse"].value == pytest.approx(error / float(model.vqvae.network.data_variance), rel=1e-6)
    assert found.stage1["psnr"].value == pytest.approx(-10 * np.log10(error), rel=1e-6)
    codes = model.encode(images)[0]
    assert found.stage1["codebook_usage"].value == pytest.approx(len(set(codes.flatten().tolist())) / 12)
    assert found.stage1["code_bits_per_image"].value == pytest.approx(6 * np.log2(12))


def test_a_setting_is_chosen_on_validation_and_measured_once_on_test(run: Path) -> None:
    (found,) = evaluate(run, guidance=(1, 3), temperature=(0.5, 1))
    assert [str(one.setting) for one in found.settings] == [
        f"guidance {g}, temperature {t}" for g in (1, 3) for t in (0.5, 1)
    ]
    distances = [one.figures["kernel_distance"].value for one in found.settings]
    assert found.samples is not None and found.best == found.settings[int(np.argmin(distances))].setting
    chosen = found.samples.setting
    assert chosen == found.best
    best = generate(run, 5, guidance="best")
    given = generate(run, 5, guidance=chosen.guidance, temperature=chosen.temperature)
    assert torch.equal(best.codes[0], given.codes[0])
    (alone,) = evaluate(run, guidance=(chosen.guidance,), temperature=(chosen.temperature,))  # keeps what was compared
    assert alone.samples == found.samples and alone.settings == found.settings
    assert found.samples.figures["kernel_distance"].value not in distances  # of other images


def test_schedules_are_compared_and_are_one_at_scale_one(run: Path) -> None:
    (found,) = evaluate(run, guidance=(1, 30), guidance_schedule=("constant", "linear"))
    assert [str(one.setting) for one in found.settings] == [
        f"guidance {words}, temperature 1" for words in ("1", "30", "30 linear")
    ]
    samples = [one.figures["kernel_distance"].value for one in found.settings]
    assert samples[1] != samples[2]
    with pytest.raises(UsageError, match=r"--guidance-schedule takes constant, linear, cosine, or several; got 'fast'"):
        evaluate(run, **cast(EvaluateArguments, {"guidance_schedule": "fast"}))


@pytest.mark.usefixtures("found")
def test_a_second_judge_is_kept_beside_the_first(run: Path) -> None:
    first, (second,) = read_evaluation(RunFolder(run)), evaluate(run, judge=2)
    assert first is not None and first.judge.sha256 != second.judge.sha256 and second.judge.number == 2
    assert read_evaluation(RunFolder(run)) == first and read_evaluation(RunFolder(run), 2) == second
    assert first.stage2 == second.stage2 and first.floor != second.floor


def test_images_of_another_program_are_measured_as_samples_are(
    run: Path, found: Evaluation, original: tuple[np.ndarray, np.ndarray], pictures: str, tmp_path: Path
) -> None:
    validation = load_split(run / "vqvae" / "split.safetensors").validation
    real = save(tmp_path / "real", original[0][validation], original[1][validation])
    judged = evaluate_folder(real, run=run)
    assert judged.judge == found.judge and judged.images == 30 and judged.floor == found.floor
    for name in ("class_shown", "near_copies", "kernel_distance", "nearest_distance"):
        assert judged.samples[name].value == pytest.approx(found.floor[name].value, abs=1e-9), name
    assert judged.samples["classification_accuracy_score"].value > 0.9
    without = evaluate_folder(real, reference=pictures, n=20)
    assert without.images == 20 and without.samples["class_shown"].value > 0.9


def test_training_and_the_judge_read_nothing_of_the_test_part(tmp_path: Path) -> None:
    def weights(images: np.ndarray, folder: Path) -> list[dict[str, torch.Tensor]]:
        train_vqvae(out=folder, images=images, targets=TARGETS, **TINY_VQVAE, **PARTS)
        train_prior(folder, images=images, targets=TARGETS, **TINY_PRIOR)
        image_set = from_array(images, TARGETS, (), DataConfig())
        train = load_split(folder / "vqvae" / "split.safetensors").train
        judge = judge_of(image_set, train, reporter=Silent(), device=torch.device("cpu"))
        stages = [load_tensors(folder / stage / "model.safetensors") for stage in ("vqvae", "prior/0")]
        return [*stages, judge.network.state_dict()]

    before = weights(IMAGES, tmp_path / "before")
    parts = load_split(tmp_path / "before" / "vqvae" / "split.safetensors")
    for changed, alike in ((parts.test, True), (parts.train[:1], False)):
        other = IMAGES.copy()
        other[changed] = 255 - other[changed]
        after = weights(other, tmp_path / f"after-{alike}")
        for ours, theirs in zip(before, after, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in ours) == alike


def test_runs_are_measured_side_by_side(
    run: Path, tmp_path: Path, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train_vqvae(out=other, data=pictures, **TINY_VQVAE | {"num_codes": 7}, **PARTS)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(run), str(other), "--quiet"])
    assert not stopped.value.code
    printed = capsys.readouterr().out
    titles = [line for line in printed.splitlines() if line.startswith(("stages 1 and 2", "samples against"))]
    assert len(titles) == 2 and all(str(run) in line and str(other) in line for line in titles)
    assert f"no samples: {other} has no finished prior; train one with `gen train-prior {other}`" in printed
    assert read_evaluation(RunFolder(other)) is not None


def test_runs_of_other_parts_are_refused_side_by_side(run: Path, tmp_path: Path, pictures: str) -> None:
    train_vqvae(out=tmp_path / "other", data=pictures, **TINY_VQVAE, **PARTS, seed=1)
    with pytest.raises(UsageError, match=r"different parts \(by --seed, --validation, --test\)"):
        evaluate(run, tmp_path / "other")


def test_codes_that_are_numbers_have_samples_and_no_stage_2(tmp_path: Path) -> None:
    for bottleneck in ("gaussian", "none"):
        train_vqvae(out=tmp_path / bottleneck, images=IMAGES, targets=TARGETS, **tiny_vqvae(bottleneck), **PARTS)
        (found,) = evaluate(tmp_path / bottleneck, images=IMAGES, targets=TARGETS)
        assert found.stage2 == {} and "nmse" in found.stage1 and "perplexity" not in found.stage1
        assert any(f"the codes of a {bottleneck} bottleneck are numbers" in note for note in found.notes)
        assert (found.samples is None) == (bottleneck == "none")
    assert any("there is nothing to draw from" in note for note in found.notes)


@pytest.mark.parametrize("targets", [None, np.zeros(120, np.int64)], ids=["none", "one"])
def test_without_classes_the_judge_learns_which_way_images_are_turned(tmp_path: Path, targets: Any) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=targets, **TINY_VQVAE, **PARTS)
    train_prior(tmp_path / "run", images=IMAGES, targets=targets, **TINY_PRIOR)
    (found,) = evaluate(tmp_path / "run", images=IMAGES, targets=targets)
    assert found.judge.learned == "rotations" and found.judge.accuracy.value > 0.35
    assert found.floor.keys() == {"kernel_distance", "nearest_distance", "near_copies"}
    assert any("no class shown" in note for note in found.notes)


def test_a_run_without_a_test_part_needs_other_images(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **TINY_VQVAE, test=0)
    with pytest.raises(DataError, match="trained with --test 0, which leaves none of 120 images for testing"):
        evaluate(tmp_path / "run", images=IMAGES, targets=TARGETS)
    rng = np.random.default_rng(5)
    others = save(tmp_path / "others", shapes(25)[0] // 2 + rng.integers(0, 9, (25, 1, 8, 12), np.uint8), TARGETS[:25])
    (found,) = evaluate(tmp_path / "run", images=IMAGES, targets=TARGETS, test_data=others)
    assert found.images == 12  # as many as the validation part has
    shutil.move(f"{others}/1", f"{others}/2")
    with pytest.raises(DataError, match="has classes that the run does not: 2 "):
        evaluate(tmp_path / "run", images=IMAGES, targets=TARGETS, test_data=others)


def test_of_two_test_images_there_are_errors_and_no_sets(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **TINY_VQVAE, test=2 / 120)
    train_prior(tmp_path / "run", images=IMAGES, targets=TARGETS, label_dropout=0.2, **TINY_PRIOR)
    (found,) = evaluate(tmp_path / "run", images=IMAGES, targets=TARGETS)
    assert found.images == 2 and found.stage1["nmse"].error is not None and found.samples is not None
    assert "kernel_distance" not in found.samples.figures
    assert "2 images of each set are too few to compare sets, which takes 20" in found.notes
    with pytest.raises(UsageError, match="choosing among 2 settings takes 20 validation and test images at least"):
        evaluate(tmp_path / "run", images=IMAGES, targets=TARGETS, guidance=(1, 2))


def test_what_is_missing_or_mistaken_gets_a_sentence(run: Path, tmp_path: Path, pictures: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[type[GenError], str, Any]] = [
        (CheckpointError, "there is no run folder", lambda: evaluate(tmp_path / "nowhere")),
        (DataError, "no image", lambda: evaluate_folder(empty, run=run)),
        (DataError, "no image", lambda: evaluate(run, test_data=str(empty))),
        (UsageError, "name one of them", lambda: evaluate_folder(pictures)),
        (UsageError, "name one of them", lambda: evaluate_folder(pictures, run=run, reference=pictures)),
        (UsageError, "--seed is about drawing samples", lambda: evaluate_folder(pictures, run=run, seed=1)),
        (UsageError, "--image-size is about a --ref", lambda: evaluate_folder(pictures, run=run, image_size="8")),
        (UsageError, "--data is about", lambda: evaluate_folder(pictures, reference=pictures, data="x")),
        (UsageError, "--test-data is empty; name a folder", lambda: evaluate(run, test_data=" ")),
        (UsageError, "--test-data is empty; name a folder", lambda: evaluate(run, test_data="")),
        (UsageError, "--test-data is empty; name a folder", lambda: evaluate_folder(pictures, run=run, test_data=" ")),
        (UsageError, "--seed is about drawing samples", lambda: evaluate_folder(pictures, run=run, seed=0)),
        (UsageError, "--image-size is about", lambda: evaluate_folder(pictures, run=run, image_size=np.zeros(2))),  # type: ignore[arg-type]  # the mistake
        (UsageError, "--image-size: ", lambda: evaluate_folder(pictures, reference=pictures, image_size=np.zeros(2))),  # type: ignore[arg-type]  # the mistake
        (UsageError, "--guidance", lambda: evaluate_folder(pictures, run=run, guidance=torch.zeros(3))),  # type: ignore[arg-type]  # the mistake
        (DataError, "90 of 120 test images are among those", lambda: evaluate(run, test_data=pictures)),
        (UsageError, "--n 999: .* holds 120 images", lambda: evaluate_folder(pictures, run=run, n=999)),
        (UsageError, "--n 31: there are 30 test and 30 validation images", lambda: evaluate(run, n=31)),
        (UsageError, "--guidance takes numbers from 0 to 1e\\+06", lambda: evaluate(run, guidance=(-1,))),
        (UsageError, "unknown option 'guidence'; did you mean 'guidance'", lambda: evaluate(run, guidence=1)),  # type: ignore[call-arg]  # the mistake
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_what_gen_sample_wrote_is_measured_without_its_grid_and_with_its_classes(run: Path, tmp_path: Path) -> None:
    generate_files(run, n=30, seed=0, label="balanced", out=tmp_path / "drawn")
    judged = evaluate_folder(tmp_path / "drawn", run=run)
    assert judged.images == 30 and "class_shown" in judged.samples


def test_sets_do_not_depend_on_the_order_of_files(run: Path, original: tuple[np.ndarray, np.ndarray]) -> None:
    labels = np.arange(1000) % 10
    given = Labelled(np.arange(1000, dtype=np.uint16).reshape(-1, 1, 1, 1).astype(np.uint8), labels)
    for most in (100, 500, 1000):
        drawn = given.drawn(most)
        assert drawn.labels is not None and len(drawn.labels) == most
        counts = np.bincount(drawn.labels, minlength=10)
        assert counts.min() > 0 and all(len(set(drawn.labels[group::10])) > 3 for group in range(10))


def test_a_run_that_cannot_be_written_to_is_refused_before_any_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:  # root may write everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.evaluation.evaluate.read_parts", None)
    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(ResourceError, match=r"evaluation\.json cannot be written \(Permission denied\)"):
        evaluate(run)


def test_an_option_that_a_run_does_not_support_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **TINY_VQVAE, **PARTS)
    train_prior(tmp_path / "run", images=IMAGES, targets=TARGETS, **TINY_PRIOR, label_dropout=0.0)
    monkeypatch.setattr("pipeline.evaluation.evaluate.read_parts", None)
    with pytest.raises(UsageError, match="label_dropout"):
        evaluate(tmp_path / "run", guidance=(1, 2))


def test_images_that_have_gone_are_named(tmp_path: Path) -> None:
    data = save(tmp_path / "pictures", IMAGES, TARGETS)
    train_vqvae(out=tmp_path / "run", data=data, **TINY_VQVAE, **PARTS)
    shutil.move(data, tmp_path / "elsewhere")
    with pytest.raises(DataError, match="pictures"):
        evaluate(tmp_path / "run")
    (found,) = evaluate(tmp_path / "run", data=str(tmp_path / "elsewhere"))
    assert found.images == 30
    next((tmp_path / "elsewhere" / "0").iterdir()).unlink()
    with pytest.raises(DataError, match="the images are not those that"):
        evaluate(tmp_path / "run", data=str(tmp_path / "elsewhere"))


def test_fid_is_left_out_where_its_network_is_not_to_be_had(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with monkeypatch.context() as patch:
        publish(patch, inception_weights(tmp_path))
        (few,) = evaluate(run, inception=True, n=2)
    assert any("it takes 20,480 images of each set, and there are 2" in note for note in few.notes)
    (without,) = evaluate(run, inception=True, n=2)
    assert any("cannot be downloaded" in note for note in without.notes)
    assert without.floor == few.floor


def test_lpips_is_measured_where_images_are_large_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    images, targets = shapes(20, (32, 32))
    train_vqvae(out=tmp_path / "run", images=images, targets=targets, **TINY_VQVAE | {"steps": 2}, test=0.1)
    with monkeypatch.context() as patch:
        publish(patch, alexnet_weights(tmp_path))
        unreachable = "http://127.0.0.1:9/inception-00000000.pth"
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", unreachable)
        (found,) = evaluate(tmp_path / "run", images=images, targets=targets, inception=True)
    assert found.stage1["lpips"].value > 0 and found.stage1["lpips"].error is not None
    assert any(note.startswith("no FID: the weights") for note in found.notes)


def test_an_evaluation_by_no_judge_there_is_is_not_read(run: Path, found: Evaluation, tmp_path: Path) -> None:
    assert isinstance(found, Evaluation) and isinstance(found.stage1["nmse"], Figure)
    path = Path(shutil.copytree(run, tmp_path / "run")) / "evaluation.json"
    content = json.loads(path.read_text())
    content["judge"]["number"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"evaluation\.json"):
        read_evaluation(RunFolder(path.parent))
