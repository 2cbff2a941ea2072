"""PixelSNAIL one position at a time: nothing is computed twice, and keys and values are cached.

The contribution of the rows above to a convolution is one matrix product for a whole row, made when the row begins;
that of the row itself follows one position at a time, from a view. Features of a row are (n, width, channels), with
zeros on both sides.
"""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage2_prior.priors.base import Prior
from stage2_prior.priors.pixelsnail.layers import CausalAttention, GatedBlock, Trunk, blocks
from stage2_prior.priors.stepping import Buffers, ConvStepper, Head, double


class PixelSNAILStepper(Buffers):
    """The Stepper of PixelSNAIL for n maps: folded weights and buffers, made once for any number of batches.

    Logits equal those of `forward` up to rounding. Buffers grow with the width of a map, keys and values with its area.
    """

    def __init__(self, prior: Prior, trunk: Trunk, n: int) -> None:
        config = prior.config
        self.prior, self.size = prior, (config.height, config.width)
        self.embedding = prior.embedding.weight.detach()
        coordinates = rearrange(double(trunk.coordinates()), "1 two h w -> h w two")
        above, left = trunk.first.above, trunk.first.left
        self.first = ConvStepper(above.weight, left.weight, above.bias, n, config.width)
        position_proj = double(trunk.position_proj.weight)[:, :, 0, 0].T
        self.positions = (coordinates @ position_proj).to(self.embedding)  # (height, width, channels)
        self.groups = [[_Block(block, n, config.width) for block in blocks(group)] for group in trunk.groups]
        flat = rearrange(coordinates, "h w two -> (h w) two")
        attentions = [module for module in trunk.attentions if isinstance(module, CausalAttention)]
        self.attentions = [_Attention(attention, n, flat) for attention in attentions]
        self.head = Head(prior.head, n, torch.zeros_like(self.embedding[0], dtype=torch.float64))
        shape = (config.height, config.width, n, config.hidden)
        self.conditioning = self.embedding.new_zeros(shape) if config.coarser else None
        self.row = 0

    @torch.no_grad()
    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start n maps of these classes, conditioned on these coarser levels."""
        condition = self.prior.condition(labels, coarser, self.size)
        for block in self._blocks():
            block.condition(condition.labels)
        if self.conditioning is not None and condition.features is not None:
            self.conditioning.copy_(rearrange(condition.features, "n c h w -> h w n c"))

    def begin_row(self, row: int) -> None:
        """Compute the contribution of the rows above to every convolution."""
        self.row = row
        self.first.begin_row(row, self.positions[row][:, None])
        conditioning = None if self.conditioning is None else self.conditioning[row].flatten(0, 1)
        for block in self._blocks():
            block.begin_row(row, conditioning)

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """Run all layers at one position. The next call overwrites the result."""
        features, position = self.head.features, self.row * self.size[1] + column
        self.first.step(column, out=features)
        for group, attention in zip(self.groups, self.attentions, strict=True):
            for block in group:
                block.step(column, features)
            attention.step(position, features)
        return self.head.logits()

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Embed the codes of a position, and cache its keys and values."""
        embedded = F.embedding(codes, self.embedding)
        self.first.columns[column].copy_(embedded)
        for attention in self.attentions:
            attention.cache(self.row * self.size[1] + column, embedded)

    def memory(self) -> int:
        """Bytes of the folded weights and buffers."""
        convolutions = [conv for block in self._blocks() for conv in (block.first, block.second)]
        parts = (self.head, self.first, *self._blocks(), *convolutions, *self.attentions)
        return super().memory() + sum(part.memory() for part in parts)

    def _blocks(self) -> "Iterator[_Block]":
        return (block for group in self.groups for block in group)


class _Block(Buffers):
    """A GatedBlock."""

    def __init__(self, block: GatedBlock, n: int, width: int) -> None:
        self.first, self.second = (
            ConvStepper(conv.weight[:, :, :-1], conv.weight[:, :, -1:], conv.bias, n, width)
            for conv in (block.first, block.second)
        )
        self.shift, like = block.shift, self.first.bias
        self.condition_proj = (
            None if block.condition_proj is None else block.condition_proj.weight.detach()[:, :, 0, 0].T.contiguous()
        )
        self.start = like.new_zeros(n, 2 * len(like))
        self.inner, self.activations = like.new_empty(n, len(like)), like.new_empty(n, 2 * len(like))
        self.a, self.b = self.activations.chunk(2, dim=1)

    def condition(self, labels: Int[Tensor, "n"] | None) -> None:
        """Shift the activations of each image by the shift of its class."""
        if self.shift is not None and labels is not None:
            self.start.copy_(self.shift(labels))

    def begin_row(self, row: int, conditioning: Float[Tensor, "wn c"] | None) -> None:
        """Compute the contribution of the rows above to both convolutions, and of coarser levels to the gate."""
        self.first.begin_row(row, self.first.bias.new_zeros(()))
        self.second.begin_row(row, self.start)
        if self.condition_proj is not None and conditioning is not None:
            self.second.from_above.flatten(0, 1).addmm_(conditioning, self.condition_proj)

    def step(self, column: int, features: Float[Tensor, "n c"]) -> None:
        """Compute one position: `features` become the input of the next layer."""
        F.elu_(self.first.columns[column].copy_(features))
        self.first.step(column, out=self.inner)
        self.second.columns[column].copy_(F.elu_(self.inner))
        self.second.step(column, out=self.activations)
        features.addcmul_(self.a, self.b.sigmoid_())


class _Attention(Buffers):
    """A CausalAttention, with a cache of the keys and values of all positions so far."""

    def __init__(self, attention: CausalAttention, n: int, coordinates: Float[Tensor, "positions two"]) -> None:
        like, self.heads = attention.q_proj.weight, attention.heads
        hidden = like.shape[0]
        scale = (hidden // self.heads) ** -0.5
        positions = coordinates @ double(attention.position_proj.weight)[:, :, 0, 0].T  # (positions, channels)
        q_proj, kv_proj = (double(conv.weight)[:, :, 0, 0].T for conv in (attention.q_proj, attention.kv_proj))
        # The coordinates of a position only shift its query, key and value: they go into a bias for each position.
        self.q_bias = (scale * (double(attention.q_proj.bias) + positions @ q_proj)).to(like)
        self.kv_bias = (double(attention.kv_proj.bias) + positions @ kv_proj[:hidden]).to(like)
        self.q_proj, self.kv_proj = (scale * q_proj).to(like), kv_proj.to(like)
        self.out_proj = attention.out_proj.weight.detach()[:, :, 0, 0].T.contiguous()
        self.kv_input = like.new_zeros(n, 2 * hidden)  # features and embedded code of the position
        self.queries = like.new_empty(n, hidden)
        slots, dim = 1 + len(coordinates), kv_proj.shape[1] // 2  # the first slot is the null key and value, of 0
        # Keys are (dim, slots), values (slots, dim): in these layouts the products for one position are fastest.
        self.keys, self.values = like.new_zeros(n, dim, slots), like.new_zeros(n, slots, dim)
        self.scores = like.new_empty(n * self.heads * slots)
        self.attended = like.new_empty(n, self.heads, dim)

    def step(self, position: int, features: Float[Tensor, "n c"]) -> None:
        """Attend to all earlier positions; add the result to `features`."""
        self.kv_input[:, : features.shape[1]] = features
        torch.addmm(self.q_bias[position], features, self.q_proj, out=self.queries)
        queries = rearrange(self.queries, "n (heads dim) -> n heads dim", heads=self.heads)
        # For one position this is faster than scaled_dot_product_attention.
        weights = self.scores[: queries.shape[0] * self.heads * (position + 1)].view(-1, self.heads, position + 1)
        torch.bmm(queries, self.keys[:, :, : position + 1], out=weights)
        torch.softmax(weights, 2, out=weights)
        torch.bmm(weights, self.values[:, : position + 1], out=self.attended)
        features.addmm_(self.attended.flatten(1), self.out_proj)

    def cache(self, position: int, embedded: Float[Tensor, "n c"]) -> None:
        """Keep the key and the value of a position for later ones."""
        self.kv_input[:, embedded.shape[1] :] = embedded
        keys_values = torch.addmm(self.kv_bias[position], self.kv_input, self.kv_proj)
        self.keys[:, :, position + 1], self.values[:, position + 1] = keys_values.chunk(2, dim=1)
