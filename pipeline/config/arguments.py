"""The options once more as types, for editors and type checkers: keyword arguments of the public functions.

Defaults, checks and help are the dataclasses'; a test holds names and types here equal to theirs.
"""

from typing import Literal, TypedDict

from pipeline.config.sampling import FloatPrecision, Format
from pipeline.config.training import Precision
from stage1_vqvae.objective import Features
from stage2_prior import GuidanceSchedule
from stage2_prior.config import PriorName


class DataArguments(TypedDict, total=False):
    """DataConfig."""

    data: str
    image_size: str | None
    colour: Literal["auto", "grey", "colour"]
    crop: Literal["centre", "random"]
    draft: bool
    flip: bool
    labels: bool
    label_file: str | None
    validation: float
    test: float
    test_data: str | None
    on_bad_image: Literal["error", "skip"]
    max_pixels: int
    memory_gib: float


class ObjectiveArguments(TypedDict, total=False):
    """ObjectiveConfig."""

    adversarial_weight: float
    adversarial_start: float
    discriminator_rate: float
    feature_matching: float
    features: Features
    feature_weight: float
    frequency_weight: float


class NetworkArguments(ObjectiveArguments, total=False):
    """VQVAEConfig, but for the bottleneck."""

    network: Literal["strided", "residual"]
    hidden: int
    residual_blocks: int
    residual_channels: int
    encoder_kernel: Literal[1, 3]
    downsampling: int
    num_codes: int
    code_dim: int | None
    codebook_rule: Literal["ema", "gradient", "simvq"]
    unit_codes: bool | None
    levels: int
    level_kind: Literal["hierarchical", "residual"]
    likelihood: Literal["mse", "gaussian", "discretized-logistic"]
    kl_weight: float | None
    mmd_weight: float
    denoise: float
    objective: Literal["nmse", "sharp"] | None
    commitment: float
    ema_decay: float | None
    revival_threshold: float
    revival_ends: float


class BottleneckArguments(TypedDict, total=False):
    """The bottleneck of VQVAEConfig."""

    bottleneck: Literal["vq", "gumbel", "fsq", "gaussian", "mmd", "none"]


class TrainingArguments(TypedDict, total=False):
    """TrainingConfig."""

    steps: int | None
    max_minutes: float | None
    batch_size: int
    micro_batches: int | None
    learning_rate: float
    schedule: Literal["cosine", "constant"]
    warmup_steps: int
    weight_decay: float
    beta2: float
    clip: float
    average_decay: float
    precision: Precision
    deterministic: bool
    seed: int
    evaluations: int
    patience: int
    checkpoints: int
    keep: int


class CompareArguments(DataArguments, NetworkArguments, TrainingArguments, total=False):
    """Of `compare`."""


class VQVAEArguments(CompareArguments, BottleneckArguments, total=False):
    """Of `train_vqvae`."""


class SharpenArguments(ObjectiveArguments, TrainingArguments, total=False):
    """Of `sharpen`: ObjectiveConfig and TrainingConfig."""


class PriorArguments(TrainingArguments, total=False):
    """Of `train_prior`: PriorConfig, TrainingConfig and AugmentConfig."""

    prior: PriorName
    hidden: int
    layers: int
    kernel: int
    first_kernel: int
    head: int
    attention_every: int
    attention_heads: int | None
    condition_blocks: int
    dropout: float
    code_dropout: float
    label_dropout: float
    encodings: int
    shift: int


class SamplingArguments(TypedDict, total=False):
    """SamplingOptions."""

    guidance: float | Literal["best"] | None
    guidance_schedule: GuidanceSchedule | None
    temperature: float | None
    top_k: int | None
    top_p: float | None


class GenerateArguments(SamplingArguments, total=False):
    """Of `generate`: SampleConfig but for n, and SamplingOptions."""

    seed: int
    batch_size: int | None
    precision: FloatPrecision


class GenerateFilesArguments(GenerateArguments, total=False):
    """Of `generate_files`: also n, and FileConfig."""

    n: int
    format: Format


class CompleteArguments(SamplingArguments, total=False):
    """Of `complete`: CompleteConfig and SamplingOptions."""

    n: int
    candidates: int
    seed: int


class InterpolateArguments(TypedDict, total=False):
    """InterpolateConfig."""

    frames: int


class CompressArguments(TypedDict, total=False):
    """CompressConfig."""

    levels: int | None
    block_size: int
    keep_names: bool


class AppArguments(TypedDict, total=False):
    """Of `app`: AppConfig."""

    port: int | None
    browser: bool
    share: bool


class EvaluateArguments(TypedDict, total=False):
    """Of `evaluate`: EvaluateConfig."""

    n: int | None
    guidance: tuple[float, ...]
    guidance_schedule: tuple[GuidanceSchedule, ...]
    temperature: tuple[float, ...]
    seed: int
    judge: Literal[1, 2]
    inception: bool


class NearestArguments(TypedDict, total=False):
    """Of `nearest`: NearestConfig."""

    k: int
