"""Stage 2: learn how maps of codes are distributed, and draw new ones."""

from stage2_prior.config import PixelCNNConfig
from stage2_prior.pixelcnn import PixelCNN
from stage2_prior.prior import CodeBatch, Prior, PriorError, PriorOutput, PriorTask, Stepper
from stage2_prior.sampling import Drawn, Noise, PrefixStepper, Warp, draw

__all__ = [
    "CodeBatch",
    "Drawn",
    "Noise",
    "PixelCNN",
    "PixelCNNConfig",
    "PrefixStepper",
    "Prior",
    "PriorError",
    "PriorOutput",
    "PriorTask",
    "Stepper",
    "Warp",
    "draw",
]
