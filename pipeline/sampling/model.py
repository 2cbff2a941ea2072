"""A loaded run: encode, decode, reconstruct, sample."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline import processes
from pipeline.arithmetic import exact_products
from pipeline.config.options import build
from pipeline.config.sampling import DecoderName, FloatPrecision, SampleConfig
from pipeline.data.codes.maps import join_levels
from pipeline.errors import CheckpointError, UsageError, stage_errors_as_usage
from pipeline.reporting import Reporter, Silent
from pipeline.resources import check_memory
from pipeline.runs.loading import LoadedPrior, LoadedVQVAE, load_priors, load_vqvae
from pipeline.runs.opening import Needed, Run, open_run
from pipeline.runs.saved import codes_in_words, images_in_words
from pipeline.sampling.inputs import Images, batch_of, check_codes, check_images
from pipeline.sampling.labels import Label
from pipeline.sampling.options import resolve
from pipeline.sampling.samplers import CodeSampler, LatentSampler, Sampler
from pipeline.sampling.samples import Samples, join
from stage1_vqvae import Codes
from stage2_prior import SamplingOptions, Watch

_PIXELS = 2**22  # of images encoded or decoded at a time


@dataclass(frozen=True, repr=False)
class Model:
    """A loaded run: both stages, or stage 1 alone."""

    run: Run
    vqvae: LoadedVQVAE
    priors: tuple[LoadedPrior, ...]  # one a level, or none
    precision: FloatPrecision

    def __repr__(self) -> str:
        config = self.vqvae.config.model
        kinds = ", ".join(prior.config.model.prior for prior in self.priors) or "no prior"
        return (
            f"Model({self.run.called!r}: images {images_in_words(config)}, codes {codes_in_words(config)}, "
            f"{kinds}, {len(self.vqvae.config.class_names)} classes, {self.precision} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vqvae.network.data_variance.device

    def arithmetic(self) -> AbstractContextManager[None]:
        """The arithmetic of its precision, whatever was set outside: codes agree between machines but for rare ties; in
        tf32 a few more differ. The settings are those of the process, so use one model at a time in it."""
        return exact_products(self.device, self.precision == "tf32")

    def encode(self, images: Images, reporter: Reporter | None = None) -> Codes:
        """Codes of images, uint8 (n, c, h, w), a tensor a level (see VQVAE.encode). Raises UsageError when they do not
        fit."""
        given, size = check_images(images, self.vqvae.config.model), self.images_at_a_time
        steps = (reporter or Silent()).steps(range(max(1, -(-len(given) // size))), "encode")
        with stage_errors_as_usage(), self.arithmetic():
            batches = (batch_of(given, step * size, size).to(self.device) for step in steps)
            parts = [tuple(level.cpu() for level in self.vqvae.network.encode(batch)) for batch in batches]
        return join_levels(parts)

    def decode(self, codes: Codes, reporter: Reporter | None = None) -> UInt8[Tensor, "n c h w"]:
        """Images of codes. Raises UsageError when they do not fit."""
        levels = check_codes(codes, self.vqvae.config.model)
        batches = list(zip(*(torch.split(level, self.images_at_a_time) for level in levels), strict=True))
        steps = (reporter or Silent()).steps(range(len(batches)), "decode")
        with stage_errors_as_usage(), self.arithmetic():
            on_device = (tuple(level.to(self.device) for level in batches[step]) for step in steps)
            return torch.cat([self.vqvae.network.decode(batch).cpu() for batch in on_device])

    def reconstruct(self, images: Images, levels: int | None = None) -> UInt8[Tensor, "n c h w"]:
        """What the codes keep of images; with `levels`, those of the first levels, the others at their mean.

        Raises UsageError when the images do not fit, or the codes have not so many levels.
        """
        self.check_levels(levels)
        return self.decode(self.encode(images)[:levels])

    def check_levels(self, levels: int | None) -> None:
        """Raise UsageError unless the codes have so many levels."""
        there = self.vqvae.config.model.levels
        if levels is not None and not (isinstance(levels, int | np.integer) and 1 <= levels <= there):
            raise UsageError(f"--levels {levels!r:.30}: the codes of {self.run.called} have {there}")

    @property
    def images_at_a_time(self) -> int:
        """Images encoded or decoded at a time."""
        config = self.vqvae.config.model
        return max(1, min(256, _PIXELS // (config.height * config.width)))

    def sampler(
        self,
        *,
        seed: int = 0,
        label: Label = None,
        options: SamplingOptions | None = None,
        watch: Watch | None = None,
    ) -> Sampler:
        """What draws images of a seed and a class (by default the classes of the training data, in proportion).

        `watch` is shown the codes before each row of them, and ends the drawing there by raising an error.
        Raises UsageError for a bad seed, for options that are no SamplingOptions, for a class that does not exist, for
        guidance "best" of a model that was not evaluated, and where codes are numbers for what has no meaning there;
        CheckpointError when there is nothing to draw from.
        """
        options = SamplingOptions() if options is None else options
        if not isinstance(options, SamplingOptions):
            raise UsageError(f"options are SamplingOptions(temperature=0.9, ...); got {type(options).__name__}")
        seed = build({"seed": seed}, SampleConfig)[0].seed
        if not self.vqvae.config.model.is_discrete:
            return LatentSampler(self.vqvae, self.decode, seed, self.resolve(options), label)
        if not self.priors:
            raise CheckpointError("this run has no finished prior to sample from; train one with `gen train-prior`")
        tf32 = self.precision == "tf32"
        return CodeSampler(self.vqvae, self.decode, seed, self.resolve(options), label, self.priors, tf32, watch)

    def resolve(self, options: SamplingOptions) -> SamplingOptions:
        """The options with numbers for the guidance and the temperature: where none is given the default of this run,
        for "best" those that `gen evaluate` chose. Raises UsageError, CheckpointError where there are none."""
        return resolve(options, self.run.folder, self.vqvae, self.priors)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: Label = None,
        batch_size: int | None = None,
        options: SamplingOptions | None = None,
        accelerator: Accelerator | None = None,
        reporter: Reporter | None = None,
    ) -> Samples:
        """Images 0 to n - 1 of a seed. With an accelerator its processes divide them, and each returns all.

        Without `batch_size`, as many at a time as memory allows, 256 at most. Raises what `sampler` raises, UsageError
        with all bad numbers at once, and ResourceError where memory does not hold so many images.
        """
        (config,) = build({"n": n, "seed": seed, "batch_size": batch_size}, SampleConfig)
        sampler = self.sampler(seed=config.seed, label=label, options=options)
        check_memory(
            torch.device("cpu"),
            2 * config.n * sampler.bytes_per_image,  # batches, and then all of them in one
            f"drawing n = {config.n:,} images into memory",
            "draw fewer, or into files: generate_files() in Python, `gen sample`",
        )
        indices = _own_indices(config.n, accelerator)
        size = sampler.batch_size(len(indices), config.batch_size)
        batches = np.array_split(indices, -(-len(indices) // size))
        steps = (reporter or Silent()).steps(range(len(batches)), "draw")
        own = join([sampler.sample(batches[step]) for step in steps])
        if accelerator is None or accelerator.num_processes == 1:
            return own
        return _gather(own, n, accelerator)


def _own_indices(n: int, accelerator: Accelerator | None) -> Int[np.ndarray, "m"]:
    """Every process the same number of images, as a gather needs; the surplus repeats the last image."""
    if accelerator is None:
        return np.arange(n)
    world_size = accelerator.num_processes
    return np.arange(accelerator.process_index, -(-n // world_size) * world_size, world_size).clip(max=n - 1)


def _gather(own: Samples, n: int, accelerator: Accelerator) -> Samples:
    """Undo `_own_indices`: image i was drawn by process i modulo their number."""

    def gather(part: Tensor) -> Tensor:
        gathered: Tensor = accelerator.gather(part.to(accelerator.device))
        by_process = gathered.reshape(accelerator.num_processes, -1, *part.shape[1:])
        return by_process.transpose(0, 1).flatten(0, 1)[:n].cpu()

    labels = None if own.labels is None else gather(own.labels)
    # gloo knows no int16
    codes = tuple(gather(level.int() if level.dtype == torch.int16 else level).to(level.dtype) for level in own.codes)
    return Samples(gather(own.images), codes, labels, own.class_names, own.codes_sha256)


def load(
    run: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    precision: FloatPrecision = "float32",
    decoder: DecoderName | None = None,
) -> Model:
    """Load a run by its path alone; without one, the newest under runs/.

    The priors are loaded where those of all levels are finished. Without `device`, a GPU where there is one, else the
    CPU. `decoder`: "plain", that of stage 1, or "sharp", that of `sharpen`; by default the sharp one where there is
    one. Raises CheckpointError when a model is missing, damaged, or when a prior was trained on the codes of another
    vqvae, and UsageError when there is no such device or decoder.
    """
    return _load(open_run(run, "finished", decoder), device, precision)


def _load(run: Run, device: str | torch.device | None, precision: FloatPrecision) -> Model:
    if not (isinstance(precision, str) and precision in get_args(FloatPrecision)):
        raise UsageError(f"precision {precision!r:.60} is none of {', '.join(get_args(FloatPrecision))}")
    found = processes.find_device(device)
    vqvae = load_vqvae(run, found)
    priors = load_priors(run, vqvae.codes_sha256, found)
    if precision == "float64":
        for network in (vqvae.network, *(prior.network for prior in priors)):
            network.double()
    return Model(run, vqvae, priors, precision)


def loaded(
    run: "str | Path | Model | None",
    needed: Needed,
    device: str | torch.device | None,
    precision: FloatPrecision | None = None,
    decoder: DecoderName | None = None,
) -> Model:
    """The model itself where one is given, else what is needed of a run, by its path.

    Raises UsageError, also where a loaded model is asked to be elsewhere, of another precision or with another decoder;
    CheckpointError.
    """
    if not isinstance(run, Model):
        return _load(open_run(run, needed, decoder), device, precision or "float32")
    model = run
    if device is not None and processes.find_device(device) != model.device:
        raise UsageError(f"the model given is on {model.device}; leave device={str(device)!r} out, or load it there")
    if precision not in (None, model.precision):
        raise UsageError(f"the model given is of {model.precision}; leave precision out, or load it in {precision}")
    if decoder not in (None, model.run.decoder):
        raise UsageError(
            f"the model given has the {model.run.decoder} decoder; leave decoder out, or load it with {decoder}"
        )
    if needed == "samples":
        model.run.check_can_be_sampled()
    return model
