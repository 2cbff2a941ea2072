"""The pipeline: files, processes and people around the two stages.

from pipeline import generate, train_vqvae, train_prior, load
"""

from pipeline.compare import compare
from pipeline.completion import Completions, complete
from pipeline.errors import CheckpointError, DataError, DivergedError, GenError, UsageError
from pipeline.generate import generate, generate_files
from pipeline.launch import Trained
from pipeline.model import Model, load
from pipeline.samples import Samples
from pipeline.scoring import Scores, score
from pipeline.stage1 import train_vqvae
from pipeline.stage2 import train_prior

__all__ = [
    "CheckpointError",
    "Completions",
    "DataError",
    "DivergedError",
    "GenError",
    "Model",
    "Samples",
    "Scores",
    "Trained",
    "UsageError",
    "compare",
    "complete",
    "generate",
    "generate_files",
    "load",
    "score",
    "train_prior",
    "train_vqvae",
]
