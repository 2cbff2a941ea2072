"""The published run of sonnet's VQ-VAE on CIFAR-10, and what our defaults make of as many images.

    python -m benchmarks.sonnet DATA [--seeds 1]

sonnet, examples/vqvae_example.ipynb: hidden 128, residual 32, two blocks, D = 64, K = 512, 8x8 codes, batches of 32,
10,000 steps of Adam at 3e-4; NMSE and perplexity are means over the last 100 training batches. Its data here: the same
images' first 18,000 at most, where it had 40,000. Prints JSON lines: the published curve, ours of that architecture and
training with what was reached on the validation part, then our defaults (and with 3x3 kernels) at the same 320,000
images. There is no test part.
"""

import json
import tempfile
from pathlib import Path

import click

from pipeline import train_vqvae
from pipeline.config.arguments import VQVAEArguments
from pipeline.runs.layout import METRICS, RunFolder

PUBLISHED = {"100": 0.483, "500": 0.147, "1000": 0.105, "2000": 0.081, "5000": 0.061, "10000": 0.056}
SONNET: VQVAEArguments = {
    "objective": "nmse",
    "hidden": 128,
    "residual_channels": 32,
    "residual_blocks": 2,
    "encoder_kernel": 3,
    "code_dim": 64,
    "num_codes": 512,
    "ema_decay": 0.99,
    "revival_threshold": 0.0,
    "steps": 10_000,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "schedule": "constant",
    "warmup_steps": 0,
    "beta2": 0.999,
    "clip": 1e9,
}
OURS: VQVAEArguments = {"objective": "nmse", "steps": 5_000, "batch_size": 64}
RUNS: dict[str, VQVAEArguments] = {"sonnet's": SONNET, "ours": OURS, "ours, 3x3": {**OURS, "encoder_kernel": 3}}
WINDOW = 100  # steps


def curve(metrics: Path) -> dict[str, dict[str, float]]:
    """Means over the training batches of the last 100 steps, at the published steps."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line for line in lines if "nmse" in line]

    def mean(name: str, step: int) -> float:
        values = [line[name] for line in lines if step - WINDOW < line["step"] <= step]
        return round(sum(values) / len(values), 4)

    return {step: {name: mean(name, int(step)) for name in ("nmse", "perplexity")} for step in PUBLISHED}


@click.command()
@click.argument("data")
@click.option("--seeds", default=1, show_default=True)
def main(data: str, seeds: int) -> None:
    """Train, measure and print."""
    print(json.dumps({"run": "sonnet, published", "training nmse": PUBLISHED, "perplexity": 326}), flush=True)
    for seed in range(seeds):
        for name, options in RUNS.items():
            arguments: VQVAEArguments = {**options, "data": data, "seed": seed, "test": 0.0}
            with tempfile.TemporaryDirectory() as folder:
                reached = train_vqvae(out=folder, preset="base", **arguments).validation.named()
                trained = curve(RunFolder(Path(folder)).vqvae / METRICS) if options is SONNET else {}
            validation = {key: round(reached[key], 5) for key in ("nmse", "perplexity", "codebook_usage")}
            print(json.dumps({"run": name, "seed": seed, "training": trained, "validation": validation}), flush=True)


if __name__ == "__main__":
    main()
