"""What the transformer is made of, against independent computations."""

import numpy as np
import pytest
import torch

from stage2_prior import PriorConfig, Transformer
from stage2_prior.priors.transformer.layers import RotaryAttention, TransformerBlock, rotations
from tests.stage2_prior.priors import random_codes, small_prior


def turned(vector: np.ndarray, row: int, column: int) -> np.ndarray:
    """A query or key of 8 channels, as complex numbers of channels i and i + 4, turned by a position."""
    waves = np.array([1.0, 100.0**-0.5])
    angles = np.concatenate([row * waves, column * waves])
    numbers = (vector[:4] + 1j * vector[4:]) * np.exp(1j * angles)
    return np.concatenate([numbers.real, numbers.imag])


def normed(vector: np.ndarray, weight: np.ndarray) -> np.ndarray:
    centred = vector - vector.mean()
    return np.asarray(weight * centred / np.sqrt((centred**2).mean() + 1e-6))


def test_attention_is_a_softmax_over_turned_and_normalised_queries_and_keys() -> None:
    torch.manual_seed(1)
    attention = RotaryAttention(PriorConfig(hidden=16, attention_heads=2)).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    weights = {name: tensor.detach().numpy() for name, tensor in attention.named_parameters()}
    features = torch.randn(1, 6, 16, dtype=torch.float64)
    actual = attention(features, rotations((2, 3), 8, features)).detach()[0].numpy()
    inputs = features[0].numpy()
    joined = inputs @ weights["kv_proj.weight"].T
    keys = [turned(normed(k, weights["k_norm.weight"]), p // 3, p % 3) for p, k in enumerate(joined[:, :8])]
    for position in range(6):
        attended = []
        for query in (inputs[position] @ weights["q_proj.weight"].T).reshape(2, 8):
            query = turned(normed(query, weights["q_norm.weight"]), position // 3, position % 3)
            weighted = np.exp([query @ key / np.sqrt(8) for key in keys[: position + 1]])
            attended.append(weighted @ joined[: position + 1, 8:] / weighted.sum())
        expected = weights["out_proj.weight"] @ np.concatenate(attended)
        np.testing.assert_allclose(actual[position], expected, atol=1e-12)


def test_a_product_of_query_and_key_depends_on_how_far_apart_they_are_alone() -> None:
    where = rotations((5, 5), 8, torch.zeros((), dtype=torch.float64))
    query, key = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = (where.turn(query.expand(25, 8)) @ where.turn(key.expand(25, 8)).T).reshape(5, 5, 5, 5)
    torch.testing.assert_close(products[:4, :4, :4, :4], products[1:, 1:, 1:, 1:], rtol=0, atol=1e-12)
    assert abs(float(products[0, 0, 0, 1] - products[0, 0, 1, 0])) > 1e-3, "rows and columns differ"


def test_a_block_begins_as_the_identity() -> None:
    config = PriorConfig(prior="transformer", hidden=16, num_classes=3, dropout=0.0)
    block, features = TransformerBlock(config), torch.randn(2, 6, 16)
    assert torch.equal(block(features, rotations((2, 3), 16, features), torch.tensor([0, 2]), None), features)


def test_the_first_position_knows_no_code_and_the_first_column_the_code_before_it() -> None:
    prior = small_prior(Transformer)
    assert isinstance(prior, Transformer)
    codes = random_codes(2, 4, 5)
    seen: list[torch.Tensor] = []
    prior.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    prior(codes, None)
    window = prior.first(prior.embed(codes)).flatten(2).transpose(1, 2)
    assert torch.equal(seen[0][:, 0], window[:, 0])
    before = prior.embedding(codes.flatten(1))[:, :-1]
    torch.testing.assert_close(seen[0][:, 1:] - window[:, 1:], before, rtol=0, atol=1e-12)


def test_in_bfloat16_gradients_are_those_of_float32_up_to_rounding() -> None:
    """Warnings are errors here: that of a norm whose input is not of the type of its weight too."""
    codes = random_codes(4, 4, 5)
    gradients: list[torch.Tensor] = []
    for enabled in (False, True):
        prior = small_prior(Transformer).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = prior(codes, None)
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits.float(), codes))
        gradients.append(torch.cat([p.grad.flatten() for p in prior.parameters() if p.grad is not None]))
    assert float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.99


def test_heads_that_cannot_be_turned_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"multiple of 4 channels; --hidden 36 over 2 heads is 18: choose another"):
        PriorConfig(prior="transformer", hidden=36)
    with pytest.raises(ValueError, match="--hidden 96 is not divisible by --attention-heads 5"):
        PriorConfig(prior="transformer", hidden=96, attention_heads=5)


def test_options_of_convolutions_have_no_effect() -> None:
    config = PriorConfig(prior="transformer")
    assert config.reach is None
    assert config.without_effect(["kernel", "attention_every", "attention_heads", "first_kernel"]) == [
        "--attention-every belongs to --prior pixelsnail; leave it out",
        "--kernel belongs to --prior pixelcnn and pixelsnail; leave it out",
    ]
