"""The pipeline: files, processes and people around the two stages.

from pipeline import generate, train_vqvae, train_prior, load
"""

from pipeline.errors import CheckpointError, DataError, DivergedError, GenError, UsageError
from pipeline.generate import Model, Samples, generate, load
from pipeline.launch import Trained
from pipeline.stage1 import train_vqvae
from pipeline.stage2 import train_prior

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergedError",
    "GenError",
    "Model",
    "Samples",
    "Trained",
    "UsageError",
    "generate",
    "load",
    "train_prior",
    "train_vqvae",
]
