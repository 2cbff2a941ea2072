"""The networks of an opened run, ready for use, with the hashes that say what belongs together."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.resources import check_memory
from pipeline.runs.layout import CONFIG, SHARP, WEIGHTS, RunFolder
from pipeline.runs.opening import Run
from pipeline.runs.saved import DecoderRun, PriorRun, VQVAERun
from pipeline.storage import load_strictly, tensor_shapes, tensors_sha256
from stage1_vqvae import VQVAE, DecoderPart, VQVAEConfig
from stage2_prior import Prior, make_prior

Network = TypeVar("Network", bound=nn.Module)


class LoadedVQVAE(NamedTuple):
    """Stage 1, its configuration, and two hashes of its tensors: of those that decide what codes mean, and of the
    decoder's. A decoder may change without touching codes or priors."""

    network: VQVAE
    config: VQVAERun
    codes_sha256: str
    decoder_sha256: str


class LoadedPrior(NamedTuple):
    """Stage 2 of a level, its configuration, and the hash of its tensors."""

    network: Prior
    config: PriorRun
    sha256: str


def load_vqvae(run: Run, device: torch.device) -> LoadedVQVAE:
    """Stage 1 of a run. Raises CheckpointError, and ResourceError where there is no room for it or for an image."""
    check_image_fits(run.vqvae.model, device)
    network = _filled(lambda: VQVAE(run.vqvae.model), run.folder.vqvae / WEIGHTS)
    codes_sha256 = tensors_sha256(network.code_tensors())
    if run.sharp is not None:
        _load_sharp(run.folder, run.sharp, network, codes_sha256)
    decoder_sha256 = tensors_sha256(network.decoder_tensors())
    return LoadedVQVAE(_ready(network, device), run.vqvae, codes_sha256, decoder_sha256)


def _load_sharp(folder: RunFolder, config: DecoderRun, network: VQVAE, codes_sha256: str) -> None:
    """Put the sharp decoder into a network. Raises CheckpointError when it was trained on codes of another meaning."""
    check_decoder_codes(folder, config, codes_sha256)
    load_strictly(DecoderPart(network), folder.decoder(SHARP) / WEIGHTS)


def check_decoder_codes(folder: RunFolder, config: DecoderRun, codes_sha256: str) -> None:
    """Raise CheckpointError unless the sharp decoder was trained on codes of this meaning."""
    stage = folder.decoder(SHARP)
    if config.codes_sha256 != codes_sha256:
        raise CheckpointError(
            f"the decoder in {stage} was trained on the codes of another vqvae: codes_sha256 "
            f"{config.codes_sha256[:12]}, this one has {codes_sha256[:12]}; delete {stage} (`--decoder plain` does "
            f"without), and train a new one with `gen sharpen {folder.path}`"
        )


def load_priors(run: Run, codes_sha256: str, device: torch.device) -> tuple[LoadedPrior, ...]:
    """The priors of all levels, if all are finished; else none.

    Raises CheckpointError when one was trained on codes of another meaning.
    """
    configs = [config for config in run.priors if config is not None]
    if len(configs) < len(run.priors):
        return ()
    for config in configs:
        _check_maps(run, config)
    return tuple(load_prior(run.folder, config, codes_sha256, device) for config in configs)


def _check_maps(run: Run, prior: PriorRun) -> None:
    """Raise CheckpointError unless a prior is of such maps as this stage 1 makes."""
    rows, columns = run.vqvae.model.grids[prior.level]
    made, learned = (
        (rows, columns, run.vqvae.model.num_codes),
        (prior.model.height, prior.model.width, prior.model.num_codes),
    )
    if made != learned:
        raise CheckpointError(
            f"the prior in {run.folder.prior(prior.level)} has learned maps of {learned[0]}x{learned[1]} codes of "
            f"{learned[2]}, and stage 1 makes {made[0]}x{made[1]} of {made[2]}; one {CONFIG} is not the one that "
            "belongs here"
        )


def load_prior(folder: RunFolder, config: PriorRun, codes_sha256: str, device: torch.device) -> LoadedPrior:
    """The prior of a level. Raises CheckpointError when it was trained on codes of another meaning."""
    check_codes(folder, config, codes_sha256)
    network = _filled(lambda: make_prior(config.model), folder.prior(config.level) / WEIGHTS)
    sha256 = tensors_sha256(network.state_dict())
    return LoadedPrior(_ready(network, device), config, sha256)


def priors_sha256(priors: Sequence[LoadedPrior]) -> str:
    """The hash of the tensors of all priors of a run; empty where there is none."""
    hashes = [prior.sha256 for prior in priors]
    return "".join(hashes) if len(hashes) < 2 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def check_codes(folder: RunFolder, prior: PriorRun, codes_sha256: str) -> None:
    """Raise CheckpointError unless a prior was trained on codes of this meaning."""
    if prior.codes_sha256 != codes_sha256:
        raise CheckpointError(
            f"the prior in {folder.prior(prior.level)} was trained on the codes of another vqvae: codes_sha256 "
            f"{prior.codes_sha256[:12]}, this one has {codes_sha256[:12]}; train a new prior with "
            f"`gen train-prior {folder.path} --out NEW_RUN`"
        )


def check_image_fits(config: VQVAEConfig, device: torch.device) -> None:
    """Raise ResourceError unless an image can be encoded and decoded, of whatever size: convolutions fit any.

    At a time there are the output of one layer, its input, and those of the blocks that the layer is in.
    """
    sizes: list[int] = []
    held: list[Tensor] = []  # inputs of the modules at work, outermost first

    def begin(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        held.append(inputs[0])

    def end(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(sum({id(tensor): tensor.nbytes for tensor in (*held, output)}.values()))
        held.pop()

    with torch.device("meta"), torch.no_grad():
        network = VQVAE(config)
        for module in (*network.encoder.modules(), *network.decoder.modules()):
            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end)
        network.encoder(torch.zeros(1, config.channels, config.height, config.width))
        network.decoder(torch.zeros(1, network.levels.outputs, *config.grids[-1]))
    what = f"an image of {config.height}x{config.width} pixels, as {CONFIG} says,"
    check_memory(device, max(sizes), what, f"take a larger machine, or bring the {CONFIG} back that belongs here")


def _filled(make: Callable[[], Network], path: Path) -> Network:
    """A network with the weights of a file. Before it is built its size is known: that of the file, and there is room.

    Raises CheckpointError when the file is of another network, ResourceError when it does not fit into memory.
    """
    with torch.device("meta"):
        described = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    stored = tensor_shapes(path)
    if differing := sorted(name for name in described | stored if described.get(name) != stored.get(name)):
        name = differing[0]
        raise CheckpointError(
            f"{path} does not fit its {CONFIG}: {len(differing)} tensors differ, such as {name}, which is "
            f"{stored.get(name, 'missing')} in the file and {described.get(name, 'missing')} by {CONFIG}; copy both "
            "files again from where they came"
        )
    size = path.stat().st_size  # once for the file, once for the network
    check_memory(torch.device("cpu"), 2 * size, f"loading {path}", "close other programs, or use a larger machine")
    network = make()
    load_strictly(network, path)
    return network


def _ready(network: Network, device: torch.device) -> Network:
    """On the device, laid out for fast convolutions, and no longer to be trained."""
    return network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
