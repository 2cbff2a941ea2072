"""Beginning stage 1 from that of another run: a network of the same sizes goes on learning, from other images."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from pydantic import ValidationError

from pipeline import processes
from pipeline.config.options import option_fields
from pipeline.errors import CheckpointError, UsageError
from pipeline.runs.loading import LoadedVQVAE, load_vqvae
from pipeline.runs.opening import open_run
from pipeline.runs.published.names import published_name
from pipeline.runs.saved import InitialRun
from pipeline.training.launch import Launch
from stage1_vqvae import VQVAE, VQVAEConfig

_ANY_SIZE = 2**15  # pixels: divisible by every stride allowed


def load_initial(init: str | Path, launch: Launch) -> LoadedVQVAE:
    """The finished stage 1 of a run, the same on every process. Raises CheckpointError, UsageError, ResourceError."""
    return processes.alike(
        launch.accelerator,
        lambda: load_vqvae(open_run(init, "vqvae", "plain"), torch.device("cpu")),
        lambda loaded: loaded.codes_sha256 + loaded.decoder_sha256,
        f"the run in {init}",
    )


def as_saved(init: str | Path, loaded: LoadedVQVAE) -> InitialRun:
    """What config.json says of the run begun from."""
    return InitialRun(
        run=published_name(init) or str(Path(init).expanduser().resolve()),
        codes_sha256=loaded.codes_sha256,
        decoder_sha256=loaded.decoder_sha256,
    )


def begin_from(network: VQVAE, initial: InitialRun, launch: Launch) -> None:
    """Fill a network with the weights, codebooks and moving averages of the run that its training begins from.

    The variance of the data stays that of its own. Raises CheckpointError where the other run has changed since.
    """
    loaded = load_initial(initial.run, launch)
    if (loaded.codes_sha256, loaded.decoder_sha256) != (initial.codes_sha256, initial.decoder_sha256):
        raise CheckpointError(
            f"{initial.run} has changed since this run was to begin from it: codes_sha256 {loaded.codes_sha256[:12]} "
            f"and decoder_sha256 {loaded.decoder_sha256[:12]}, and they were {initial.codes_sha256[:12]} and "
            f"{initial.decoder_sha256[:12]}; bring the old weights back, or begin a new run with another --out"
        )
    network.load_state_dict({**loaded.network.state_dict(), "data_variance": network.data_variance})


def check_same_network(init: str | Path, begun: VQVAEConfig, wanted: VQVAEConfig) -> None:
    """Raise UsageError, with the options that are the cause, unless all tensors have the same names and shapes."""
    begun, wanted = (replace(config, height=_ANY_SIZE, width=_ANY_SIZE) for config in (begun, wanted))
    if _shapes(begun) == _shapes(wanted):
        return
    problems = []
    for name in ("channels", *option_fields(VQVAEConfig)):
        then, now = getattr(begun, name), getattr(wanted, name)
        if then != now and _changes_shapes(begun, name, now):
            flag = f"--{name.replace('_', '-')} {now}" if name != "channels" else f"images of {now} channels"
            problems.append(f"{flag}: the network of {init}, which --init begins from, has {then}")
    remedy = "leave these options out" if begun.channels == wanted.channels else "give other images, or --colour"
    raise UsageError("\n".join([*problems, f"{remedy}, or train without --init"]))


def _changes_shapes(config: VQVAEConfig, name: str, value: object) -> bool:
    try:
        changed = VQVAEConfig(**asdict(config) | {name: value})
    except ValidationError:  # of an option that the others must follow, as --levels of a continuous bottleneck
        return True
    return _shapes(changed) != _shapes(config)


def _shapes(config: VQVAEConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in VQVAE(config).state_dict().items()}
