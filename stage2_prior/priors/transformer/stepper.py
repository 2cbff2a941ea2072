"""The transformer one position at a time: nothing is computed twice, and keys and values are cached."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PriorConfig
from stage2_prior.priors.base import Prior
from stage2_prior.priors.pixelsnail.layers import FirstConv
from stage2_prior.priors.stepping import Buffers, ConvStepper, Head
from stage2_prior.priors.transformer.layers import WIDENING, Rotations, TransformerBlock, normalised, rotations


class TransformerStepper(Buffers):
    """The Stepper of the transformer for n maps: buffers made once for any number of batches.

    Logits equal those of `forward` up to rounding. Keys and values grow with the area of a map.
    """

    def __init__(
        self,
        prior: Prior,
        first: FirstConv,
        blocks: Sequence[TransformerBlock],
        norm: nn.LayerNorm | nn.RMSNorm,
        n: int,
    ) -> None:
        config = prior.config
        self.config = config
        self.prior, self.size, self.row = prior, (config.height, config.width), 0
        self.embedding = prior.embedding.weight.detach()
        self.first = ConvStepper(first.above.weight, first.left.weight, first.above.bias, n, config.width)
        self.turned = rotations(self.size, config.hidden // config.heads, self.embedding)
        self.blocks = [_Block(block, config, n) for block in blocks]
        self.norm = norm.weight.detach()
        self.head = Head(prior.head, n, torch.zeros_like(self.embedding[0], dtype=torch.float64))
        self.features = self.embedding.new_zeros(n, config.hidden)
        self.before = torch.zeros_like(self.features)  # the embedded codes of the position before
        shape = (config.height, config.width, n, config.hidden)
        self.conditioning = self.embedding.new_zeros(shape) if config.coarser else None

    @torch.no_grad()
    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start n maps of these classes, conditioned on these coarser levels."""
        condition = self.prior.condition(labels, coarser, self.size)
        self.before.zero_()
        for block in self.blocks:
            block.condition(condition.labels)
        if self.conditioning is not None and condition.features is not None:
            self.conditioning.copy_(rearrange(condition.features, "n c h w -> h w n c"))

    def begin_row(self, row: int) -> None:
        """Compute the contribution of the rows above to the window, and of coarser levels to all blocks."""
        self.row = row
        self.first.begin_row(row, self.before.new_zeros(()))
        for block in self.blocks:
            block.begin_row(None if self.conditioning is None else self.conditioning[row])

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """Run all blocks at one position. The next call overwrites the result."""
        self.first.step(column, out=self.features)
        self.features += self.before
        position = self.row * self.size[1] + column
        turned = Rotations(self.turned.cosines[position], self.turned.sines[position])
        for block in self.blocks:
            block.step(position, turned, self.features)
        self.head.features.copy_(normalised(self.config, self.features, self.norm))
        return self.head.logits()

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Embed the codes of a position."""
        self.before.copy_(F.embedding(codes, self.embedding))
        self.first.columns[column].copy_(self.before)

    def memory(self) -> int:
        """Bytes of the folded weights and buffers."""
        return super().memory() + sum(part.memory() for part in (self.head, self.first, *self.blocks))


class _Block(Buffers):
    """A TransformerBlock, with a cache of the keys and values of all positions so far."""

    def __init__(self, block: TransformerBlock, config: PriorConfig, n: int) -> None:
        self.config, attention, size = config, block.attention, (config.height, config.width)
        self.heads, self.dim = attention.heads, attention.dim
        self.attention_norm, self.mlp_norm = block.attention_norm.weight.detach(), block.mlp_norm.weight.detach()
        self.q_norm, self.k_norm = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        joined = torch.cat([attention.q_proj.weight, attention.kv_proj.weight]).detach()
        self.qkv_proj, self.out_proj = joined.T.contiguous(), attention.out_proj.weight.detach().T.contiguous()
        self.up_proj = block.up_proj.weight.detach().T.contiguous()
        self.down_proj = block.down_proj.weight.detach().T.contiguous()
        condition = block.condition_proj
        self.condition_proj = None if condition is None else condition.weight.detach().T.contiguous()
        self.shift, like, (hidden, _) = block.shift, self.out_proj, self.out_proj.shape
        positions, width = size[0] * size[1], size[1]
        # Keys are (dim, positions), values (positions, dim): in these layouts one position's products are fastest.
        self.keys, self.values = like.new_zeros(n, self.dim, positions), like.new_zeros(n, positions, self.dim)
        self.scores = like.new_empty(n * self.heads * positions)
        self.attended, self.inner = like.new_empty(n, self.heads, self.dim), like.new_empty(n, WIDENING * hidden)
        self.start = like.new_zeros(n, 2 * hidden)
        self.shifts = like.new_zeros(width if self.condition_proj is not None else 1, n, 2 * hidden)

    def condition(self, labels: Int[Tensor, "n"] | None) -> None:
        """Shift the inputs of each image by the shift of its class."""
        if self.shift is not None and labels is not None:
            self.start.copy_(self.shift(labels))
        self.shifts.copy_(self.start)

    def begin_row(self, conditioning: Float[Tensor, "w n c"] | None) -> None:
        """Compute the contribution of coarser levels to the inputs of this row."""
        if self.condition_proj is not None and conditioning is not None:
            torch.matmul(conditioning, self.condition_proj, out=self.shifts)
            self.shifts += self.start

    def step(self, position: int, turned: Rotations, features: Float[Tensor, "n c"]) -> None:
        """Compute one position: `features` become the input of the next block."""
        of_attention, of_mlp = self.shifts[position % len(self.shifts)].chunk(2, dim=1)
        normed = normalised(self.config, features, self.attention_norm) + of_attention
        features.addmm_(self._attend(position, turned, normed @ self.qkv_proj).flatten(1), self.out_proj)
        normed = normalised(self.config, features, self.mlp_norm) + of_mlp
        torch.mm(normed, self.up_proj, out=self.inner).relu_().square_()
        features.addmm_(self.inner, self.down_proj)

    def _attend(self, position: int, turned: Rotations, joined: Float[Tensor, "n c"]) -> Float[Tensor, "n heads dim"]:
        """What a position attends to, of its query, key and value side by side; the last two are kept."""
        queries, keys, values = torch.split(joined, [self.heads * self.dim, self.dim, self.dim], dim=1)
        queries = rearrange(queries, "n (heads dim) -> n heads dim", heads=self.heads)
        queries = turned.turn(normalised(self.config, queries, self.q_norm)) * self.dim**-0.5
        self.keys[:, :, position] = turned.turn(normalised(self.config, keys, self.k_norm))
        self.values[:, position] = values
        weights = self.scores[: len(queries) * self.heads * (position + 1)].view(-1, self.heads, position + 1)
        torch.bmm(queries, self.keys[:, :, : position + 1], out=weights)
        torch.softmax(weights, 2, out=weights)
        return torch.bmm(weights, self.values[:, : position + 1], out=self.attended)
