"""PixelSNAIL a position at a time: nothing is computed twice, and keys and values are kept.

What a window takes from the rows above is one matrix product for a whole row, made when the row begins; what it takes
from its own row follows a position at a time, from a view. Features of a row are (n, width, channels), with zeros on
both sides.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stage2_prior.prior import Prior
from stage2_prior.snail_layers import CausalAttention, GatedBlock, Trunk, blocks
from stage2_prior.stepping import Head, bytes_of, double


class PixelSNAILStepper:
    """The Stepper of PixelSNAIL for n images: a plan and its buffers, made once for any number of batches.

    Logits are those of `forward` but for rounding. Buffers grow with the width of a map, keys and values with its area.
    """

    def __init__(self, prior: Prior, trunk: Trunk, n: int) -> None:
        config = prior.config
        self.prior, self.size = prior, (config.height, config.width)
        self.embedding = prior.embedding.weight.detach()
        where = rearrange(double(trunk.coordinates()), "1 two h w -> h w two")
        above, left = trunk.first.above, trunk.first.left
        self.first = _Conv(above.weight, left.weight, above.bias, n, config.width)
        self.place = (where @ double(trunk.place.weight)[:, :, 0, 0].T).to(self.embedding)  # (height, width, channels)
        self.groups = [[_Block(block, n, config.width) for block in blocks(group)] for group in trunk.groups]
        flat = rearrange(where, "h w two -> (h w) two")
        attentions = [module for module in trunk.attentions if isinstance(module, CausalAttention)]
        self.attentions = [_Attention(attention, n, flat) for attention in attentions]
        self.head = Head(prior.head, n, torch.zeros_like(self.embedding[0], dtype=torch.float64))
        shape = (config.height, config.width, n, config.hidden)
        self.looked_at = self.embedding.new_zeros(shape) if config.coarser else None
        self.row = 0

    @torch.no_grad()
    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start n maps of these classes, beneath these coarser levels."""
        condition = self.prior.condition(labels, coarser, self.size)
        for block in self._blocks():
            block.condition(condition.labels)
        if self.looked_at is not None and condition.features is not None:
            self.looked_at.copy_(rearrange(condition.features, "n c h w -> h w n c"))

    def begin_row(self, row: int) -> None:
        """What every window takes from the rows above."""
        self.row = row
        self.first.begin_row(row, self.place[row][:, None])
        seen = None if self.looked_at is None else self.looked_at[row].flatten(0, 1)
        for block in self._blocks():
            block.begin_row(row, seen)

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """All layers at one position. The next call overwrites the result."""
        features, position = self.head.features, self.row * self.size[1] + column
        self.first.step(column, out=features)
        for group, attention in zip(self.groups, self.attentions, strict=True):
            for block in group:
                block.step(column, features)
            attention.step(position, features)
        return self.head.logits()

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Embed the codes of a position, and tell later ones of it."""
        embedded = F.embedding(codes, self.embedding)
        self.first.places[column].copy_(embedded)
        for attention in self.attentions:
            attention.tell(self.row * self.size[1] + column, embedded)

    def memory(self) -> int:
        """Bytes of plan and buffers."""
        convolutions = [conv for block in self._blocks() for conv in (block.first, block.second)]
        return sum(map(bytes_of, (self, self.head, self.first, *self._blocks(), *convolutions, *self.attentions)))

    def _blocks(self) -> "Iterator[_Block]":
        return (block for group in self.groups for block in group)


class _Conv:
    """A causal convolution: `places` are what it reads, by column."""

    def __init__(
        self,
        above: Float[Tensor, "outputs inputs rows columns"],
        left: Float[Tensor, "outputs inputs 1 own"],
        bias: Tensor | None,
        n: int,
        width: int,
    ) -> None:
        """`above`: the weights of the rows above, `left` those of the position's own row, of which the first stands on
        the column that is the window's first."""
        # One matrix for each row above, the farthest first.
        self.above = [rearrange(row, "d c k -> (k c) d").contiguous() for row in above.detach().unbind(2)]
        self.left = rearrange(left.detach(), "d c 1 k -> (k c) d").contiguous()
        assert bias is not None
        self.bias = bias.detach()
        (outputs, inputs, reach, taps), own = above.shape, left.shape[3]
        padded = above.new_zeros(n, reach + width + taps - 1 - reach, inputs)
        self.places = padded[:, reach : reach + width].unbind(1)
        self.windows = [padded[:, column : column + own].flatten(1) for column in range(width)]
        self.row = rearrange(padded.unfold(1, taps, 1), "n w c k -> w n k c")
        self.rows = deque(above.new_zeros(width, n, taps, inputs) for _ in self.above)
        self.taken = above.new_zeros(width, n, outputs)
        self.of_columns = self.taken.unbind(0)

    def begin_row(self, row: int, start: Float[Tensor, "..."]) -> None:
        """The rows above, at every position of the row, on top of `start`."""
        if row == 0:
            for windows in self.rows:
                windows.zero_()
        else:  # the row before is complete: its windows take the place of the farthest row's
            self.rows.rotate(-1)
            self.rows[-1].copy_(self.row)
        flat = self.taken.copy_(start + self.bias).flatten(0, 1)
        for windows, weight in zip(self.rows, self.above, strict=True):
            flat.addmm_(windows.view(len(flat), -1), weight)

    def step(self, column: int, out: Float[Tensor, "n d"]) -> None:
        """The window at one position."""
        torch.addmm(self.of_columns[column], self.windows[column], self.left, out=out)


class _Block:
    """A GatedBlock."""

    def __init__(self, block: GatedBlock, n: int, width: int) -> None:
        self.first, self.second = (
            _Conv(conv.weight[:, :, :-1], conv.weight[:, :, -1:], conv.bias, n, width)
            for conv in (block.first, block.second)
        )
        self.shift, like = block.shift, self.first.bias
        self.look = None if block.look is None else block.look.weight.detach()[:, :, 0, 0].T.contiguous()
        self.start = like.new_zeros(n, 2 * len(like))
        self.inner, self.activations = like.new_empty(n, len(like)), like.new_empty(n, 2 * len(like))
        self.a, self.b = self.activations.chunk(2, dim=1)

    def condition(self, labels: Int[Tensor, "n"] | None) -> None:
        """Shift the activations of each image by what its class asks for."""
        if self.shift is not None and labels is not None:
            self.start.copy_(self.shift(labels))

    def begin_row(self, row: int, looked_at: Float[Tensor, "wn c"] | None) -> None:
        """What both windows take from the rows above, and the gate from coarser levels."""
        self.first.begin_row(row, self.first.bias.new_zeros(()))
        self.second.begin_row(row, self.start)
        if self.look is not None and looked_at is not None:
            self.second.taken.flatten(0, 1).addmm_(looked_at, self.look)

    def step(self, column: int, features: Float[Tensor, "n c"]) -> None:
        """One position: `features` become those that the next layer reads."""
        F.elu_(self.first.places[column].copy_(features))
        self.first.step(column, out=self.inner)
        self.second.places[column].copy_(F.elu_(self.inner))
        self.second.step(column, out=self.activations)
        features.addcmul_(self.a, self.b.sigmoid_())


class _Attention:
    """A CausalAttention, with the keys and values of all positions so far."""

    def __init__(self, attention: CausalAttention, n: int, where: Float[Tensor, "positions two"]) -> None:
        like, self.heads = attention.ask.weight, attention.heads
        hidden = like.shape[0]
        scale = (hidden // self.heads) ** -0.5
        place = where @ double(attention.place.weight)[:, :, 0, 0].T  # (positions, channels)
        ask, tell = double(attention.ask.weight)[:, :, 0, 0].T, double(attention.tell.weight)[:, :, 0, 0].T
        # Where a position is only shifts what it asks and tells.
        self.ask_bias = (scale * (double(attention.ask.bias) + place @ ask)).to(like)
        self.tell_bias = (double(attention.tell.bias) + place @ tell[:hidden]).to(like)
        self.ask_weight, self.tell_weight = (scale * ask).to(like), tell.to(like)
        self.merge = attention.merge.weight.detach()[:, :, 0, 0].T.contiguous()
        self.known = like.new_zeros(n, 2 * hidden)  # features and embedded code of the position
        self.queries = like.new_empty(n, hidden)
        positions, dim = 1 + len(where), tell.shape[1] // 2  # before the first position stands nothing
        # Keys lie by number, values by position: each as the product that reads them for one position is fastest.
        self.keys, self.values = like.new_zeros(n, dim, positions), like.new_zeros(n, positions, dim)
        self.scores = like.new_empty(n * self.heads * positions)
        self.answers = like.new_empty(n, self.heads, dim)

    def step(self, position: int, features: Float[Tensor, "n c"]) -> None:
        """Ask all earlier positions; add the answer to `features`."""
        self.known[:, : features.shape[1]] = features
        torch.addmm(self.ask_bias[position], features, self.ask_weight, out=self.queries)
        queries = rearrange(self.queries, "n (heads dim) -> n heads dim", heads=self.heads)
        # For one position this is faster than scaled_dot_product_attention.
        weights = self.scores[: queries.shape[0] * self.heads * (position + 1)].view(-1, self.heads, position + 1)
        torch.bmm(queries, self.keys[:, :, : position + 1], out=weights)
        torch.softmax(weights, 2, out=weights)
        torch.bmm(weights, self.values[:, : position + 1], out=self.answers)
        features.addmm_(self.answers.flatten(1), self.merge)

    def tell(self, position: int, embedded: Float[Tensor, "n c"]) -> None:
        """Let later positions know of this one."""
        self.known[:, embedded.shape[1] :] = embedded
        told = torch.addmm(self.tell_bias[position], self.known, self.tell_weight)
        self.keys[:, :, position + 1], self.values[:, position + 1] = told.chunk(2, dim=1)
