"""Stage 2: learn how code maps are distributed, and draw new ones."""

from stage2_prior.config import PriorConfig
from stage2_prior.priors import make_prior
from stage2_prior.priors.base import Prior, PriorError, Stepper, code_nats
from stage2_prior.priors.pixelcnn.network import PixelCNN
from stage2_prior.priors.pixelsnail.network import PixelSNAIL
from stage2_prior.priors.transformer.network import Transformer
from stage2_prior.sampling.coding import Coder, code_levels
from stage2_prior.sampling.completion import (
    ClassProposal,
    choose_candidate,
    draw_classes,
    draws_before_known,
    known_nats_per_class,
    propose_classes,
)
from stage2_prior.sampling.draw import Noise, PrefixStepper, SampledCodes, draw
from stage2_prior.sampling.guidance import GuidedStepper, stepper_of
from stage2_prior.sampling.levels import SampledLevels, draw_levels
from stage2_prior.sampling.options import GuidanceScale, GuidanceSchedule, SamplingOptions, Temperature
from stage2_prior.sampling.scoring import mixture_bits
from stage2_prior.sampling.watching import Watch, WatchedStepper
from stage2_prior.task import CodeBatch, PriorTask, PriorTaskOutput, Summary

__all__ = [
    "ClassProposal",
    "CodeBatch",
    "Coder",
    "GuidanceScale",
    "GuidanceSchedule",
    "GuidedStepper",
    "Noise",
    "PixelCNN",
    "PixelSNAIL",
    "PrefixStepper",
    "Prior",
    "PriorConfig",
    "PriorError",
    "PriorTask",
    "PriorTaskOutput",
    "SampledCodes",
    "SampledLevels",
    "SamplingOptions",
    "Stepper",
    "Summary",
    "Temperature",
    "Transformer",
    "Watch",
    "WatchedStepper",
    "choose_candidate",
    "code_levels",
    "code_nats",
    "draw",
    "draw_classes",
    "draw_levels",
    "draws_before_known",
    "known_nats_per_class",
    "make_prior",
    "mixture_bits",
    "propose_classes",
    "stepper_of",
]
