"""What PixelSNAIL is made of, against independent computations."""

import numpy as np
import torch

from stage2_prior import PixelSNAIL, PriorConfig
from stage2_prior.priors.pixelsnail.layers import CausalAttention, CornerConv, Trunk
from tests.stage2_prior.priors import small_prior

CONFIG = PriorConfig(
    prior="pixelsnail",
    height=3,
    width=4,
    num_codes=7,
    hidden=8,
    layers=5,
    attention_every=2,
    attention_heads=4,
    head=8,
)


def matrix(convolution: torch.nn.Module) -> np.ndarray:
    weight = convolution.get_parameter("weight").detach()
    return np.asarray(weight[:, :, 0, 0].numpy())


def bias(convolution: torch.nn.Module) -> np.ndarray:
    return np.asarray(convolution.get_parameter("bias").detach().numpy())


def test_attention_is_a_softmax_over_a_null_key_and_all_earlier_positions() -> None:
    torch.manual_seed(1)
    attention, trunk = CausalAttention(CONFIG).double(), Trunk(CONFIG).double()
    features, embedded = torch.randn(2, 1, 8, 3, 4, dtype=torch.float64).unbind(0)
    actual = (attention(features, embedded, trunk.coordinates()) - features).detach()[0].flatten(1).T.numpy()
    flat, codes, where = (x[0].flatten(1).T.numpy() for x in (features, embedded, trunk.coordinates()))
    located = flat + where @ matrix(attention.position_proj).T
    queries = located @ matrix(attention.q_proj).T + bias(attention.q_proj)
    keys_values = np.concatenate([located, codes], 1) @ matrix(attention.kv_proj).T + bias(attention.kv_proj)
    for position in range(12):
        keys = np.concatenate([np.zeros((1, 2)), keys_values[:position, :2]])  # 4 heads of 2 numbers
        values = np.concatenate([np.zeros((1, 2)), keys_values[:position, 2:]])
        attended = []
        for query in queries[position].reshape(4, 2):
            weights = np.exp(keys @ query / np.sqrt(2))
            attended.append(weights @ values / weights.sum())
        np.testing.assert_allclose(actual[position], matrix(attention.out_proj) @ np.concatenate(attended), atol=1e-12)
    assert np.abs(actual[0]).max() == 0, "the first position attends to the null key alone"


def test_coordinates_run_from_corner_to_corner_of_the_whole_map() -> None:
    where = Trunk(CONFIG).coordinates()[0]
    torch.testing.assert_close(where[0, :, 0], torch.tensor([-2 / 3, 0, 2 / 3]))
    torch.testing.assert_close(where[1, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))


def test_attention_follows_every_group_of_layers_and_the_last() -> None:
    trunk = Trunk(CONFIG)
    assert [len(list(group.children())) for group in trunk.groups] == [2, 2, 1] and len(trunk.attentions) == 3


def test_windows_hold_their_causal_taps_only() -> None:
    prior = small_prior(PixelSNAIL)
    corners = [module for module in prior.modules() if isinstance(module, CornerConv)]
    assert len(corners) == 6 and {tuple(conv.weight.shape[2:]) for conv in corners} == {(2, 2)}
    trunk = prior.get_submodule("trunk")
    assert isinstance(trunk, Trunk)
    assert tuple(trunk.first.above.weight.shape[2:]) == (2, 5) and tuple(trunk.first.left.weight.shape[2:]) == (1, 2)


def test_a_corner_sees_the_position_itself_and_what_lies_above_and_left() -> None:
    conv = CornerConv(1, 1, 5).double()
    features = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    before = conv(features)
    features[0, 0, 2, 3] = 1
    changed = ((conv(features) - before)[0, 0].detach() != 0).nonzero().tolist()
    assert changed == [[row, column] for row in (2, 3, 4) for column in (3, 4, 5)]


def test_heads_have_sixteen_channels_or_a_little_more() -> None:
    counts = {hidden: PriorConfig(hidden=hidden).heads for hidden in (8, 16, 48, 50, 96, 128)}
    assert counts == {8: 1, 16: 1, 48: 3, 50: 2, 96: 6, 128: 8}
    assert PriorConfig(hidden=48, attention_heads=4).heads == 4
