"""Levels of codes between encoder and decoder: one, several that refine a grid, or several on one grid.

Hierarchical levels: Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", section 3.1: the
coarse level conditions the fine one in the encoder and in the decoder. Residual levels: Lee et al. 2022,
"Autoregressive Image Generation using Residual Quantization", section 3.1: each quantizes the residual of those before.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from stage1_vqvae.bottlenecks import BOTTLENECKS, Bottleneck, BottleneckOutput, DiscreteBottleneck
from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.networks import NETWORKS

Codes = tuple[Tensor, ...]  # one tensor per level, coarsest first: integers (n, height, width), or one of floats


class LevelsOutput(NamedTuple):
    """The decoder's input, and the output of each level's bottleneck, coarsest first."""

    decoder_input: Float[Tensor, "n dim h w"]
    levels: tuple[BottleneckOutput, ...]


class LevelsMeasures(NamedTuple):
    """The decoder's input, and what each level's bottleneck measured: sums by name, coarsest first."""

    decoder_input: Float[Tensor, "n dim h w"]
    levels: tuple[dict[str, Tensor], ...]


class Levels(nn.Module):
    """Features (n, hidden, h, w) <-> codes -> the decoder's input (n, outputs, h, w), the sum over all levels.

    `heads` project features into a level's bottleneck, `tails` its vectors into the sum. A single level, and residual
    levels of vq, whose codebooks and encoder outputs share one space, have neither, only one common `entry`. Only
    hierarchical levels have `downs`, from the features to those of the next coarser grid, and `ups`, from the sum to
    the next finer grid.
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
        widths = [hidden * (2 if self.hierarchical and level else 1) for level in range(config.levels)]
        self.heads = nn.ModuleList(nn.Identity() if self.direct else nn.Conv2d(width, inputs, 1) for width in widths)
        self.tails = nn.ModuleList(nn.Identity() if self.direct else nn.Conv2d(outputs, hidden, 1) for _ in widths)
        network, between = NETWORKS[config.network], range(config.levels - 1 if self.hierarchical else 0)
        self.downs = nn.ModuleList(network.down(config) for _ in between)
        self.ups = nn.ModuleList(network.up(config) for _ in between)

    def in_order(self) -> list[Bottleneck]:
        """The bottlenecks, coarsest first."""
        return [bottleneck for bottleneck in self.bottlenecks if isinstance(bottleneck, Bottleneck)]

    def forward(self, features: Float[Tensor, "n hidden h w"], progress: float) -> LevelsOutput:
        """Through every bottleneck, with gradients."""
        descent = Descent(self, features)
        outputs: list[BottleneckOutput] = []
        for bottleneck in self.in_order():
            outputs.append(bottleneck(descent.inputs(), progress))
            descent.add(outputs[-1].quantized)
        return LevelsOutput(descent.total, tuple(outputs))

    def encode(self, features: Float[Tensor, "n hidden h w"]) -> Codes:
        """The codes of each level."""
        return tuple(codes for _, codes in self.inputs_and_codes(features))

    def inputs_and_codes(self, features: Float[Tensor, "n hidden h w"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each level, coarsest first, the inputs of its bottleneck (n, inputs, h, w) and their codes."""
        descent = Descent(self, features)
        for bottleneck in self.in_order():
            inputs = descent.inputs()
            codes = bottleneck.encode(inputs)
            yield inputs, codes
            descent.add(bottleneck.decode(codes))

    def decode(self, codes: Codes) -> Float[Tensor, "n dim h w"]:
        """The decoder's input. In place of levels left out, the finest ones, their mean vector is decoded."""
        descent = Descent(self)
        for level, bottleneck in enumerate(self.in_order()):
            if level < len(codes):
                descent.add(bottleneck.decode(codes[level]))
            else:
                assert isinstance(bottleneck, DiscreteBottleneck)
                height, width = self.config.grids[level]
                descent.add(repeat(bottleneck.mean_vector(), "dim -> n dim h w", n=len(codes[0]), h=height, w=width))
        return descent.total

    def sample(
        self, features: Float[Tensor, "n hidden h w"], noise: Float[Tensor, "n c rows columns"]
    ) -> Float[Tensor, "n d h w"]:
        """The decoder's input for a sample of the posterior; `noise` is from N(0, 1), of the first level's shape."""
        descent = Descent(self, features)
        for bottleneck in self.in_order():
            descent.add(bottleneck.sample(descent.inputs(), noise))
        return descent.total

    def measure(self, features: Float[Tensor, "n hidden h w"]) -> LevelsMeasures:
        """The decoder's input, and each level's sums for the `summarise` of its bottleneck."""
        descent = Descent(self, features)
        measures: list[dict[str, Tensor]] = []
        for bottleneck in self.in_order():
            inputs = descent.inputs()
            output = bottleneck(inputs, 1.0)
            measures.append(bottleneck.measure(inputs, output.codes))
            descent.add(output.quantized)
        return LevelsMeasures(descent.total, tuple(measures))

    def initialise(self, batches: Sequence[Float[Tensor, "n hidden h w"]], generator: torch.Generator) -> None:
        """Fit each bottleneck to its inputs on all batches, once those before it are fitted."""
        descents = [Descent(self, features) for features in batches]
        for bottleneck in self.in_order():
            inputs = [descent.inputs() for descent in descents]
            bottleneck.initialise([rearrange(batch, "n dim h w -> (n h w) dim") for batch in inputs], generator)
            for descent, batch in zip(descents, inputs, strict=True):
                descent.add(bottleneck.decode(bottleneck.encode(batch)))


class Descent:
    """One walk of a batch through the levels, coarsest first: for each, `inputs` of its bottleneck, then `add`.

    `total` is the sum of all vectors added so far, on the grid of the last level. It conditions the next level: of
    hierarchical levels it is upsampled and concatenated with the features, of residual ones subtracted from them.
    """

    total: Tensor

    def __init__(self, levels: Levels, features: Tensor | None = None) -> None:
        """Without features there are no `inputs`: codes are decoded by `add` alone."""
        self._levels = levels
        self._level = 0
        self._context: Tensor | None = None  # the sum so far, on the grid of the level that comes next
        self._pyramid = [] if features is None else self._features_of_each_level(features)

    def inputs(self) -> Tensor:
        """The inputs of the next level's bottleneck (n, inputs, h, w)."""
        features, context = self._pyramid[self._level], self._context
        if context is not None and self._levels.hierarchical:
            features = torch.cat([features, context.to(features.dtype)], 1)
        elif context is not None:
            features = features - context
        return self._levels.heads[self._level](features)

    def add(self, vectors: Tensor) -> None:
        """Add the quantized vectors of a level (n, outputs, h, w), and go on to the next."""
        projected = self._levels.tails[self._level](vectors)
        self.total = projected if self._context is None else self._context + projected
        self._level += 1
        if self._level < len(self._levels.bottlenecks):
            self._context = self._on_next_grid(self.total)

    def _features_of_each_level(self, features: Tensor) -> list[Tensor]:
        if not self._levels.hierarchical:
            return [self._levels.entry(features)] * len(self._levels.bottlenecks)
        grids = [features]
        for down in self._levels.downs:
            grids.append(down(grids[-1]))
        return grids[::-1]

    def _on_next_grid(self, total: Tensor) -> Tensor:
        if self._levels.hierarchical:
            return self._levels.ups[self._level - 1](total)
        # Without detach the straight-through gradient would reach the encoder once per level, not once.
        return total.detach() if self._levels.direct else total
