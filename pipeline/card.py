"""README.md of a run folder: what this model is, its data, its numbers, how to load it."""

from pathlib import Path
from typing import Any

from pipeline.checkpoint import EVALUATION, is_finished
from pipeline.run import PriorRun, RunFolder, VQVAERun, can_be_drawn, codes_in_words, read_config
from pipeline.storage import read_json

_OURS = "Made by gen (gen-images)"
_MARK = f"{_OURS}: a VQ-VAE, and a prior over its codes."

_NETWORKS = {"pixelcnn": "gated PixelCNN", "pixelsnail": "PixelSNAIL"}


def write_card(run: RunFolder) -> None:
    """Describe the finished stages of a run, replacing what we said of them before, and nobody else's words."""
    path = run.path / "README.md"
    if path.exists() and _OURS not in path.read_text():
        return
    config = read_config(run.vqvae, VQVAERun)
    lines = [f"# {run.path.name}", "", _MARK, ""]
    lines += ["## Stage 1", "", *_rows(_vqvae(config)), *_rows(_held_out(run.vqvae))]
    for level in range(config.model.levels):
        stage, which = run.prior(level), f", level {level}" if config.model.levels > 1 else ""
        if is_finished(stage):
            rows = {**_prior(read_config(stage, PriorRun)), **_held_out(stage)}
            lines += ["", f"## Stage 2{which}", "", *_rows(rows)]
    lines += ["", "## Use", "", "```python", "from pipeline import generate, load", ""]
    lines += [f'model = load("{run.path.name}")        # encode, decode, reconstruct, sample']
    lines += [f'generate("{run.path.name}", 16, seed=0)'] if can_be_drawn(run) else []
    lines += ["```", ""]
    _write(path, "\n".join(lines))


def _vqvae(config: VQVAERun) -> dict[str, Any]:
    model, training = config.model, config.training
    return {
        "data": Path(config.data.data).name,
        "classes": ", ".join(config.class_names) or "none",
        "images": f"{model.channels} x {model.height} x {model.width}",
        "codes": codes_in_words(model),
        "training": f"{training.steps:,} steps of {training.batch_size} images, seed {training.seed}",
    }


def _prior(config: PriorRun) -> dict[str, Any]:
    model, training = config.model, config.training
    return {
        "network": f"{_NETWORKS[model.prior]}, {model.layers} layers of {model.hidden} channels",
        "training": f"{training.steps:,} steps of {training.batch_size} maps at most, seed {training.seed}",
    }


def _held_out(stage: Path) -> dict[str, Any]:
    return {f"held out, {name}": f"{value:.5g}" for name, value in read_json(stage / EVALUATION).items()}


def _rows(values: dict[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in values.items()]


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
