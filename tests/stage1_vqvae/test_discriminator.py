"""The discriminator's losses, what it sees, and the ramp of the adversarial loss."""

import pytest
import torch
from torch.nn import functional as F

from stage1_vqvae import VQVAEConfig
from stage1_vqvae.discriminator import Discriminator
from stage1_vqvae.objective import ObjectiveConfig
from stage1_vqvae.sharp import SharpLosses


def new_discriminator(size: int = 8) -> Discriminator:
    return Discriminator(VQVAEConfig(channels=3, height=size, width=size, hidden=16))


def test_the_discriminator_and_the_decoder_are_trained_apart_by_one_sum() -> None:
    discriminator = new_discriminator()
    real, fake = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8, requires_grad=True)
    losses = discriminator.losses(real, fake)
    torch.autograd.backward([losses.discriminator + losses.generator + 3 * losses.matching])
    got = [p.grad.clone() for p in discriminator.parameters() if p.grad is not None]
    discriminator.zero_grad()
    real, whole = real[:2], fake
    fake = whole[:2]
    (of_real, features), (of_fake, _) = discriminator(real), discriminator(fake.detach())
    hinge = F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()
    for mine, expected in zip(got, torch.autograd.grad(hinge, list(discriminator.parameters())), strict=True):
        torch.testing.assert_close(mine, expected)
    assert whole.grad is not None
    scores, own = discriminator(fake)
    matching = sum(((a - b.detach()).abs().mean() for a, b in zip(own, features, strict=True)), torch.zeros(()))
    generator = -scores.mean() + 3 * matching / len(own)
    torch.testing.assert_close(whole.grad, torch.autograd.grad(generator, whole)[0])
    right = torch.cat([of_real > 0, of_fake < 0]).float().mean()
    torch.testing.assert_close(losses.accuracy, right)


@pytest.mark.parametrize(("size", "rows"), [(8, 2), (32, 8), (48, 12), (64, 8), (128, 8), (256, 16)])
def test_patches_grow_with_the_image(size: int, rows: int) -> None:
    scores, _ = new_discriminator(size)(torch.zeros(1, 3, size, size))
    assert scores.shape == (1, 1, rows, rows)


@pytest.mark.parametrize(("size", "patch"), [(32, 18), (64, 38), (128, 78)])
def test_a_score_depends_on_a_patch(size: int, patch: int) -> None:
    images = torch.rand(1, 3, 192, 256, requires_grad=True)
    scores, _ = new_discriminator(size)(images)
    (gradient,) = torch.autograd.grad(scores[0, 0, 5, 7], images)
    rows, columns = torch.nonzero(gradient[0].abs().sum(0), as_tuple=True)
    assert (len(set(rows.tolist())), len(set(columns.tolist()))) == (patch, patch)


def test_the_discriminator_learns_to_discriminate() -> None:
    discriminator = new_discriminator()
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        losses = discriminator.losses(torch.rand(8, 3, 8, 8), torch.full((8, 3, 8, 8), 0.5))
        torch.autograd.backward([losses.discriminator])
        optimizer.step()
    real, fake = discriminator(torch.rand(8, 3, 8, 8))[0], discriminator(torch.full((8, 3, 8, 8), 0.5))[0]
    assert float((real - fake).detach().mean()) > 1


def test_the_adversarial_loss_starts_late_and_rises_over_a_tenth_of_the_training() -> None:
    losses = SharpLosses(VQVAEConfig(hidden=8), ObjectiveConfig(adversarial_start=0.3))
    values = [losses.ramp(progress) for progress in (0.0, 0.3, 0.35, 0.4, 1.0)]
    assert values == pytest.approx([0, 0, 0.5, 1, 1])
