"""The plain autoencoder: the decoder's input is the encoder's output."""

from jaxtyping import Float
from torch import Tensor

from stage1_vqvae.bottlenecks.base import BottleneckOutput, ContinuousBottleneck, at_least_float32
from stage1_vqvae.config import VQVAEConfig


class IdentityBottleneck(ContinuousBottleneck):
    """Nothing but the number of units limits what codes express, and there is no term for how they are distributed."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.inputs = self.outputs = config.dimension

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        outputs = at_least_float32(outputs)
        return BottleneckOutput(quantized=outputs, codes=outputs.detach(), loss=outputs.new_zeros(()))

    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        """The outputs."""
        return outputs.detach()

    def decode(self, codes: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        """The codes."""
        return codes
