"""README.md of a run folder: what this model is, its data, its numbers, how to load it."""

import re
from pathlib import Path

from pipeline.runs.evaluation import Evaluation
from pipeline.runs.layout import CARD, SHARP, RunFolder
from pipeline.runs.opening import parse_run
from pipeline.runs.saved import DecoderRun, PriorRun, VQVAERun, codes_in_words, images_in_words, network_in_words
from pipeline.runs.validation import read_validation
from pipeline.storage import atomic_file

_OURS = "Made by gen (gen-images)"


def write_card(folder: RunFolder, evaluation: Evaluation | None = None) -> None:
    """Describe the finished stages of a run, replacing what we said of them before, and nobody else's words.

    `evaluation`: of these very weights; what one of others said goes.
    """
    path = folder.path / CARD
    before = path.read_text("utf-8", "replace") if path.exists() else None
    if before is not None and _OURS not in before:
        return
    run = parse_run(folder)
    lines = [f"# {folder.path.name}", "", f"{_OURS}: a VQ-VAE, and a prior over its codes.", ""]
    lines += ["## Stage 1", "", *_rows(_vqvae(run.vqvae) | _validation(folder.vqvae))]
    if run.sharp is not None:
        lines += ["", "## The sharp decoder", "", *_rows(_sharp(run.sharp) | _validation(folder.decoder(SHARP)))]
    for level, prior in enumerate(run.priors):
        if prior is not None:
            title = f"## Stage 2, level {level}" if len(run.priors) > 1 else "## Stage 2"
            lines += ["", title, "", *_rows(_prior(prior) | _validation(folder.prior(level)))]
    if evaluation is not None:
        lines += ["", "## Evaluation", "", *_rows(_evaluation(evaluation))]
    lines += ["", "## Use", "", "```python", "from pipeline import generate, load", ""]
    lines += [f'model = load("{folder.path.as_posix()}")  # encode, decode, reconstruct, sample']
    lines += ["generate(model, 16, seed=0)"] if run.can_be_sampled else []
    text = "\n".join([*lines, "```", ""])
    if text != before:
        with atomic_file(path) as unfinished:
            unfinished.write_text(text, "utf-8", "backslashreplace")


def name_in_card(path: Path, name: str) -> None:
    """Let a card of ours say that the run is loaded by this name; anybody else's is left as it is."""
    text = path.read_text("utf-8", "replace")
    if _OURS in text:
        path.write_text(re.sub(r'(?m)^model = load\(".*"\)', f'model = load("{name}")', text), "utf-8")


def _vqvae(config: VQVAERun) -> dict[str, str]:
    training, init = config.training, config.init
    rows = {
        "data": Path(config.data.data).name,
        "classes": ", ".join(config.class_names) or "none",
        "images": images_in_words(config.model),
        "codes": codes_in_words(config.model),
        "training": f"{training.steps:,} steps of {training.batch_size} images, seed {training.seed}",
    }
    return rows if init is None else rows | {"begun from": f"{Path(init.run).name}, codes_sha256 {init.codes_sha256}"}


def _sharp(config: DecoderRun) -> dict[str, str]:
    training = config.training
    return {"training": f"{training.steps:,} more steps of {training.batch_size} images, codes untouched"}


def _prior(config: PriorRun) -> dict[str, str]:
    model, training = config.model, config.training
    rows = {
        "network": f"{network_in_words(model)}, {model.layers} layers of {model.hidden} channels",
        "training": f"{training.steps:,} steps of {training.batch_size} maps at most, seed {training.seed}",
    }
    return rows if config.guidance == 1 else rows | {"guidance": f"{config.guidance:g} by default"}


def _validation(stage: Path) -> dict[str, str]:
    measured = read_validation(stage)
    steps = {"validation, best step": f"{measured.step:,} of {measured.steps_done:,}"}
    return steps | {f"validation, {name}": f"{value:.5g}" for name, value in measured.metrics.named().items()}


def _evaluation(evaluation: Evaluation) -> dict[str, str]:
    judge, chosen = evaluation.judge, evaluation.samples
    tested = f"{evaluation.test_images:,}, of {evaluation.test_data or 'the test part'}"
    facts = {
        "judge": f"number {judge.number}, learned {judge.learned}, right on {judge.accuracy} of real images",
        "test images": f"{tested}; sets of {evaluation.images:,}",
    }
    named = {"reconstruction": evaluation.stage1, "codes": evaluation.stage2, "floor": evaluation.floor}
    named |= {"samples": chosen.figures} if chosen else {}
    setting = {"samples": str(chosen.setting)} if chosen else {}
    return facts | setting | {f"{what}, {name}": str(one) for what, own in named.items() for name, one in own.items()}


def _rows(values: dict[str, str]) -> list[str]:
    return [f"- {name}: {value}" for name, value in values.items()]
