"""Stage 1: learn a codebook; turn images into small maps of integers and back."""

from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.decoder_task import DecoderPart, DecoderTask
from stage1_vqvae.levels import Codes
from stage1_vqvae.model import VQVAE, VQVAEError, VQVAEOutput
from stage1_vqvae.objective import ObjectiveConfig
from stage1_vqvae.task import Summary, VQVAETask

__all__ = [
    "VQVAE",
    "Codes",
    "DecoderPart",
    "DecoderTask",
    "ObjectiveConfig",
    "Summary",
    "VQVAEConfig",
    "VQVAEError",
    "VQVAEOutput",
    "VQVAETask",
]
