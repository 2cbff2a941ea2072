"""The plain autoencoder: the decoder sees what the encoder says."""

from jaxtyping import Float
from torch import Tensor

from stage1_vqvae.bottlenecks.base import BottleneckOutput, ContinuousBottleneck, at_least_float32
from stage1_vqvae.config import VQVAEConfig


class IdentityBottleneck(ContinuousBottleneck):
    """No bottleneck but the number of its units. Nothing says how codes are distributed."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.inputs = self.outputs = config.code_dim

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        outputs = at_least_float32(outputs)
        return BottleneckOutput(quantised=outputs, codes=outputs.detach(), loss=outputs.new_zeros(()))

    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        """The outputs."""
        return outputs.detach()

    def decode(self, codes: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        """The codes."""
        return codes
