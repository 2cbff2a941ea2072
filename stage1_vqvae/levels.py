"""Levels of codes between encoder and decoder: one, several that refine a grid, or several on one grid.

Hierarchical levels: Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", section 3.1: the
coarse level conditions the fine one in the encoder and in the decoder. Residual levels: Lee et al. 2022,
"Autoregressive Image Generation using Residual Quantization", section 3.1: each codes what the ones before left over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from stage1_vqvae.bottlenecks import BOTTLENECKS, Bottleneck, BottleneckOutput, DiscreteBottleneck
from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.networks import ResidualStack

Codes = tuple[Tensor, ...]  # a tensor a level, coarsest first: integers (n, height, width), or one of floats


class LevelsOutput(NamedTuple):
    """What the decoder sees, and what each level's bottleneck said."""

    decoded: Float[Tensor, "n dim h w"]
    levels: tuple[BottleneckOutput, ...]


class Levels(nn.Module):
    """Features (n, hidden, h, w) <-> codes -> what the decoder sees (n, outputs, h, w).

    Levels are gone through from the coarsest on. `heads` lead from features, less or beside what is known so far, into
    a bottleneck; `tails` lead out of it, and are added to what is known. A single level, and residual levels of vq,
    whose code vectors live where the encoder's outputs do, need neither: `entry` leads there once for all.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.hierarchical = config.levels > 1 and config.level_kind == "hierarchical"
        self.direct = config.levels == 1 or (config.bottleneck == "vq" and not self.hierarchical)
        bottlenecks = [BOTTLENECKS[config.bottleneck](config) for _ in range(config.levels)]
        self.bottlenecks = nn.ModuleList(bottlenecks)
        self.code_dim = bottlenecks[0].outputs
        inputs, outputs, hidden = bottlenecks[0].inputs, bottlenecks[0].outputs, config.hidden
        self.outputs = outputs if self.direct else hidden
        self.entry = nn.Conv2d(hidden, inputs, 1) if self.direct else nn.Identity()
        seen = [hidden * (2 if self.hierarchical and level else 1) for level in range(config.levels)]
        self.heads = nn.ModuleList(nn.Identity() if self.direct else nn.Conv2d(width, inputs, 1) for width in seen)
        self.tails = nn.ModuleList(nn.Identity() if self.direct else nn.Conv2d(outputs, hidden, 1) for _ in seen)
        between = range(config.levels - 1 if self.hierarchical else 0)
        self.downs = nn.ModuleList(_down(config) for _ in between)
        self.ups = nn.ModuleList(_up(config) for _ in between)

    def forward(self, features: Float[Tensor, "n hidden h w"], progress: float) -> LevelsOutput:
        """Through every bottleneck, with gradients."""
        outputs: list[BottleneckOutput] = []

        def through(bottleneck: Bottleneck, seen: Tensor) -> Tensor:
            outputs.append(bottleneck(seen, progress))
            return outputs[-1].quantised

        return LevelsOutput(self._descend(features, through), tuple(outputs))

    def encode(self, features: Float[Tensor, "n hidden h w"]) -> Codes:
        """The codes of each level."""
        codes: list[Tensor] = []

        def through(bottleneck: Bottleneck, seen: Tensor) -> Tensor:
            codes.append(bottleneck.encode(seen))
            return bottleneck.decode(codes[-1])

        self._descend(features, through)
        return tuple(codes)

    def decode(self, codes: Codes) -> Float[Tensor, "n dim h w"]:
        """What the decoder sees; levels that are missing, the finest ones, stand at their mean."""
        known: Tensor | None = None
        for level, bottleneck in enumerate(self._bottlenecks()):
            if level < len(codes):
                vectors = bottleneck.decode(codes[level])
            else:
                assert isinstance(bottleneck, DiscreteBottleneck)
                height, width = self.config.grids[level]
                vectors = repeat(bottleneck.mean_vector(), "dim -> n dim h w", n=len(codes[0]), h=height, w=width)
            known = self._grown(level, self._before(level, known), vectors)
        assert known is not None
        return known

    def sample(
        self, features: Float[Tensor, "n hidden h w"], noise: Float[Tensor, "n c rows columns"]
    ) -> Float[Tensor, "n d h w"]:
        """What the decoder sees of a draw from the posterior; `noise` is from N(0, 1), of the first level's shape."""
        return self._descend(features, lambda bottleneck, seen: bottleneck.sample(seen, noise))

    def measure(self, features: Float[Tensor, "n hidden h w"]) -> tuple[Float[Tensor, "n d h w"], dict[str, Tensor]]:
        """What the decoder sees, and sums over the codes of each level for `summarise`."""
        measured: list[dict[str, Tensor]] = []

        def through(bottleneck: Bottleneck, seen: Tensor) -> Tensor:
            output = bottleneck(seen, 1.0)
            measured.append(bottleneck.measure(seen, output.codes))
            return output.quantised

        decoded = self._descend(features, through)
        return decoded, {f"{level}/{name}": sums[name] for level, sums in enumerate(measured) for name in sums}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The health of each level's codes; of several levels each name ends in the level's number."""
        result: dict[str, float] = {}
        for level, bottleneck in enumerate(self._bottlenecks()):
            own = {name.partition("/")[2]: value for name, value in sums.items() if name.startswith(f"{level}/")}
            result |= {self.name(name, level): value for name, value in bottleneck.summarise(own).items()}
        return result

    def name(self, metric: str, level: int) -> str:
        """A metric's name, with the number of its level where there are several."""
        return f"{metric}_{level}" if len(self.bottlenecks) > 1 else metric

    def initialise(self, batches: Sequence[Float[Tensor, "n hidden h w"]], generator: torch.Generator) -> None:
        """Fit each bottleneck to what it will see, once those before it are fitted."""
        for level, bottleneck in enumerate(self._bottlenecks()):
            seen = [rearrange(self._seen_by(level, batch), "n dim h w -> (n h w) dim") for batch in batches]
            bottleneck.initialise(seen, generator)

    def _seen_by(self, level: int, features: Tensor) -> Tensor:
        seen_by: list[Tensor] = []

        def through(bottleneck: Bottleneck, seen: Tensor) -> Tensor:
            seen_by.append(seen)
            return bottleneck.decode(bottleneck.encode(seen))

        self._descend(features, through)
        return seen_by[level]

    def _bottlenecks(self) -> list[Bottleneck]:
        return [bottleneck for bottleneck in self.bottlenecks if isinstance(bottleneck, Bottleneck)]

    def _descend(self, features: Tensor, through: Callable[[Bottleneck, Tensor], Tensor]) -> Tensor:
        known: Tensor | None = None
        pyramid = self._pyramid(features)
        for level, bottleneck in enumerate(self._bottlenecks()):
            before = self._before(level, known)
            seen = self.heads[level](self._beside(pyramid[level], before))
            known = self._grown(level, before, through(bottleneck, seen))
        assert known is not None
        return known

    def _pyramid(self, features: Tensor) -> list[Tensor]:
        """The features that each level looks at, coarsest first."""
        if not self.hierarchical:
            return [self.entry(features)] * len(self.bottlenecks)
        grids = [features]
        for down in self.downs:
            grids.append(down(grids[-1]))
        return grids[::-1]

    def _before(self, level: int, known: Tensor | None) -> Tensor | None:
        """What is known before a level, on its grid."""
        if known is None:
            return None
        if self.hierarchical:
            return self.ups[level - 1](known)
        return known.detach() if self.direct else known  # the straight-through gradient passes once, not once a level

    def _beside(self, features: Tensor, before: Tensor | None) -> Tensor:
        if before is None:
            return features
        return torch.cat([features, before.to(features.dtype)], 1) if self.hierarchical else features - before

    def _grown(self, level: int, before: Tensor | None, vectors: Tensor) -> Tensor:
        own = self.tails[level](vectors)
        return own if before is None else before + own


def _down(config: VQVAEConfig) -> nn.Module:
    halving = nn.Conv2d(config.hidden, config.hidden, 4, stride=2, padding=1)
    return nn.Sequential(halving, nn.ReLU(), ResidualStack(config, config.encoder_kernel))


def _up(config: VQVAEConfig) -> nn.Module:
    doubling = nn.ConvTranspose2d(config.hidden, config.hidden, 4, stride=2, padding=1)
    return nn.Sequential(ResidualStack(config, 3), doubling)
