"""The discriminator's two losses, and the ramp of the adversarial one."""

import pytest
import torch
from torch.nn import functional as F

from stage1_vqvae import VQVAEConfig
from stage1_vqvae.discriminator import Discriminator, discriminator_ramp


def new_discriminator() -> Discriminator:
    return Discriminator(VQVAEConfig(channels=3, height=8, width=8, hidden=8))


def test_the_discriminator_and_the_decoder_are_trained_apart_by_one_sum() -> None:
    discriminator = new_discriminator()
    real, fake = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8, requires_grad=True)
    losses = discriminator.losses(real, fake)
    torch.autograd.backward([losses.discriminator + losses.generator])
    got = [p.grad.clone() for p in discriminator.parameters() if p.grad is not None]
    discriminator.zero_grad()
    hinge = F.relu(1 - discriminator(real)).mean() + F.relu(1 + discriminator(fake.detach())).mean()
    for mine, expected in zip(got, torch.autograd.grad(hinge, list(discriminator.parameters())), strict=True):
        torch.testing.assert_close(mine, expected)
    assert fake.grad is not None
    torch.testing.assert_close(fake.grad, torch.autograd.grad(-discriminator(fake).mean(), fake)[0])


def test_a_score_judges_a_patch_of_18_pixels_and_there_is_one_every_four() -> None:
    discriminator, images = new_discriminator(), torch.rand(1, 3, 40, 48, requires_grad=True)
    scores = discriminator(images)
    assert scores.shape == (1, 1, 10, 12)
    (gradient,) = torch.autograd.grad(scores[0, 0, 5, 5], images)
    rows, columns = torch.nonzero(gradient[0].abs().sum(0), as_tuple=True)
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == list(range(13, 31))


def test_the_discriminator_learns_to_discriminate_and_its_ramp_rises_late() -> None:
    discriminator = new_discriminator()
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        losses = discriminator.losses(torch.rand(8, 3, 8, 8), torch.full((8, 3, 8, 8), 0.5))
        torch.autograd.backward([losses.discriminator])
        optimizer.step()
    real, fake = discriminator(torch.rand(8, 3, 8, 8)), discriminator(torch.full((8, 3, 8, 8), 0.5))
    assert float((real - fake).detach().mean()) > 1
    values = [discriminator_ramp(progress) for progress in (0.0, 0.3, 0.35, 0.4, 1.0)]
    assert values == pytest.approx([0, 0, 0.5, 1, 1])
