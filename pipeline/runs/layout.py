"""Where each thing lies in a run folder: its folders, and the files of a stage."""

from pathlib import Path
from typing import NamedTuple

from pipeline.storage import MANIFEST

RUNS = Path("runs")  # where runs are made and looked for unless told otherwise

CONFIG = "config.json"  # of the finished model
WEIGHTS = "model.safetensors"
IN_PROGRESS = "training.json"  # what config.json will be, of the training that is, or was, going on here
VALIDATION = "validation.json"
SPLIT = "split.safetensors"
IMAGE_HASHES = "images.safetensors"  # by which a run says what has changed; older versions wrote none
BAD_IMAGES = "bad-images.txt"  # those skipped, where there are any
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
RECONSTRUCTIONS = "reconstructions.png"
SAMPLES_PICTURE = "samples.png"
CARD = "README.md"
REPORT = "report.html"
STATUS = "status.json"
TRACKER = "tracker.json"  # which run of a tracker a training is logged to
LOGS = "logs"  # of trackers that write files
SHARP = "sharp"  # the decoder that `gen sharpen` trains


class RunFolder(NamedTuple):
    """The places in a run folder."""

    path: Path

    @property
    def vqvae(self) -> Path:
        """Stage 1."""
        return self.path / "vqvae"

    @property
    def decoders(self) -> Path:
        """Decoders that were trained further, a folder a name."""
        return self.vqvae / "decoders"

    def decoder(self, name: str) -> Path:
        """A decoder that was trained further."""
        return self.decoders / name

    @property
    def codes(self) -> Path:
        """The extracted code maps."""
        return self.path / "codes"

    @property
    def priors(self) -> Path:
        """Stage 2, a folder a level."""
        return self.path / "prior"

    def prior(self, level: int) -> Path:
        """Stage 2 of a level of codes."""
        return self.priors / str(level)

    @property
    def samples(self) -> Path:
        """Generated images, a folder a seed."""
        return self.path / "samples"

    @property
    def evaluation(self) -> Path:
        """The pictures of an evaluation."""
        return self.path / "evaluation"

    def contains_run(self) -> bool:
        """Whether a training has begun here."""
        return any((self.vqvae / name).exists() for name in (CONFIG, IN_PROGRESS))


def is_finished(stage: Path) -> bool:
    """Whether a stage's folder holds a published model."""
    return (stage / MANIFEST).is_file()
