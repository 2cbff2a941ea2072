"""Stage 2: learn how maps of codes are distributed, and draw new ones."""

from stage2_prior.config import PixelCNNConfig, PriorConfig
from stage2_prior.guidance import GuidedStepper, stepper_of
from stage2_prior.kinds import make_prior
from stage2_prior.pixelcnn import PixelCNN
from stage2_prior.pixelsnail import PixelSNAIL
from stage2_prior.prior import CodeBatch, Prior, PriorError, PriorOutput, PriorTask, Stepper, code_nats
from stage2_prior.sampling import Drawn, Noise, PrefixStepper, Warp, draw

__all__ = [
    "CodeBatch",
    "Drawn",
    "GuidedStepper",
    "Noise",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelSNAIL",
    "PrefixStepper",
    "Prior",
    "PriorConfig",
    "PriorError",
    "PriorOutput",
    "PriorTask",
    "Stepper",
    "Warp",
    "code_nats",
    "draw",
    "make_prior",
    "stepper_of",
]
