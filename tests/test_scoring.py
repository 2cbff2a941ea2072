"""Bits of images under a prior, against independent sums; what is unusual; completions keep what is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import CheckpointError, UsageError, complete, load, score, train_prior, train_vqvae
from pipeline.completion import _classes, _leading_nats, chosen, filled, kept_codes, kept_side
from pipeline.drawers import CodeDrawer
from stage2_prior import Noise, Warp, code_nats, draw
from tests.conftest import TINY_PRIOR, TINY_VQVAE, shapes
from tests.priors import prior_classes, random_codes, small_prior

IMAGES, TARGETS = shapes()


def test_bits_are_those_of_the_mixture_of_classes(trained: Path) -> None:
    model, images = load(trained), torch.from_numpy(IMAGES[:6])
    prior, codes = model.priors[0], model.encode(torch.from_numpy(IMAGES[:6]))[0].long()
    by_class = []
    for number, weight in enumerate(prior.config.class_weights):
        logits = prior.model(codes, torch.full((6,), number))
        nats = F.cross_entropy(logits, codes, reduction="none").double().sum((1, 2))
        by_class.append(np.log(weight) - nats)
    expected = -torch.stack(by_class).logsumexp(0) / np.log(2)
    scores = score(trained, images)
    torch.testing.assert_close(scores.bits, expected, rtol=1e-5, atol=1e-5)
    assert scores.bits_per_dim is None and len(scores) == 6


def test_surprise_adds_up_to_bits_and_starts_with_the_first_code(trained: Path) -> None:
    scores, model = score(trained, IMAGES[:5]), load(trained)
    torch.testing.assert_close(scores.surprise[0].sum((1, 2)), scores.bits)
    np.testing.assert_allclose(scores.surprise_of_pixels((8, 12)).sum((1, 2)), scores.bits.numpy(), rtol=1e-9)
    prior = model.priors[0]
    first = [prior.model(torch.zeros(1, 2, 3, dtype=torch.int64), torch.tensor([c]))[0, :, 0, 0] for c in (0, 1)]
    weights = torch.tensor(prior.config.class_weights).double()
    mixed = (torch.stack(first).double().softmax(1) * weights[:, None]).sum(0)
    codes = model.encode(torch.from_numpy(IMAGES[:5]))[0]
    torch.testing.assert_close(scores.surprise[0][:, 0, 0], -mixed[codes[:, 0, 0]].log2(), rtol=1e-5, atol=1e-5)


def test_a_known_class_counts_alone(trained: Path) -> None:
    first, second, both = (score(trained, IMAGES[:4], label=label).bits for label in ("0", "1", None))
    mixed = -torch.log2(0.5 * 2**-first + 0.5 * 2**-second)
    weights = load(trained).priors[0].config.class_weights
    if weights == (0.5, 0.5):
        torch.testing.assert_close(both, mixed)
    assert not torch.equal(first, second)
    with pytest.raises(UsageError, match="no class '7'"):
        score(trained, IMAGES[:1], label="7")


def test_images_of_another_kind_cost_more(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **TINY_VQVAE)
    options = {**TINY_PRIOR, "steps": 150, "average_decay": 0.9, "learning_rate": 5e-3}
    train_prior(tmp_path / "run", images=IMAGES, targets=TARGETS, force=True, **options)
    usual = score(tmp_path / "run", IMAGES).bits
    unusual = score(tmp_path / "run", IMAGES[:, :, ::-1, ::-1].copy()).bits  # bright below, or on the right
    assert float((unusual[:, None] > usual[None]).double().mean()) > 0.9
    both = score(tmp_path / "run", np.concatenate([IMAGES[:6], IMAGES[:2, :, ::-1, ::-1]]))
    assert both.order()[0] in (6, 7)


def test_bits_per_dim_count_codes_and_pixels(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, **TINY_VQVAE, likelihood="discretized-logistic", levels=2,
                level_kind="residual")  # fmt: skip
    with pytest.raises(CheckpointError, match="no finished prior of level 0, 1"):
        score(run, IMAGES[:1])
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, **TINY_PRIOR)
    scores, model = score(run, IMAGES[:3]), load(run)
    torch.testing.assert_close(torch.stack([level.sum((1, 2)) for level in scores.surprise]).sum(0), scores.bits)
    nats = model.vqvae.model.pixel_nats(torch.from_numpy(IMAGES[:3]), model.encode(torch.from_numpy(IMAGES[:3])))
    assert nats is not None and scores.bits_per_dim is not None
    torch.testing.assert_close(scores.bits_per_dim, (scores.bits + nats / np.log(2)) / 96)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("top:0.5", [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]),
        ("bottom:0.25", [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]),
        ("left:0.34", [[1, 0, 0]] * 4),
        ("right:0.67", [[0, 1, 1]] * 4),
    ],
)
def test_sides_of_an_image(keep: str, expected: list[list[int]]) -> None:
    assert kept_side(keep, (4, 3)).astype(int).tolist() == expected


@pytest.mark.parametrize("keep", ["top", "up:0.5", "top:1", "top:0", "top:half"])
def test_parts_that_do_not_exist_are_refused(keep: str) -> None:
    with pytest.raises(UsageError, match="write SIDE:SHARE"):
        kept_side(keep, (4, 3))


def test_a_code_is_kept_where_its_whole_patch_is() -> None:
    kept = np.ones((4, 6), dtype=bool)
    kept[3, 5] = kept[0, 0] = False
    codes = (torch.tensor([[[3]]]), torch.arange(6).reshape(1, 2, 3))
    known = kept_codes(kept, codes)
    assert known[0].tolist() == [[[-1]]] and known[1].tolist() == [[[-1, 1, 2], [3, 4, -1]]]


def test_completions_keep_the_known_codes_and_differ_in_the_others(trained: Path) -> None:
    image = IMAGES[0]
    done = complete(trained, image, "top:0.5", n=12, seed=2)
    original = load(trained).encode(torch.from_numpy(filled(image, done.kept)[None]))[0]
    assert (done.codes[0][:, 0] == original[0, 0]).all()
    assert len({tuple(codes[1].tolist()) for codes in done.codes[0]}) > 3
    assert done.images.shape == (12, 1, 8, 12) and done.kept[:4].all() and not done.kept[4:].any()
    again = complete(trained, image, done.kept, n=3, seed=2)
    assert torch.equal(again.codes[0], done.codes[0][:3]), "a mask is the side that it draws"
    other = complete(trained, image, "top:0.5", n=12, seed=3)
    assert not torch.equal(other.codes[0], done.codes[0])


class Pair:
    """A Stepper of maps of two codes, whose joint probabilities are a table."""

    size = (1, 2)

    def __init__(self, table: Tensor, n: int) -> None:
        self.table, self.n = table, n
        self.first = torch.zeros(n, dtype=torch.int64)

    def begin(self, labels: Tensor | None, coarser: Sequence[Tensor] = ()) -> None:
        pass

    def begin_row(self, row: int) -> None:
        pass

    def logits(self, column: int) -> Tensor:
        return self.table.sum(1).log().expand(self.n, -1) if column == 0 else self.table[self.first].log()

    def accept(self, column: int, codes: Tensor) -> None:
        self.first = codes if column == 0 else self.first

    def memory(self) -> int:
        return 0


@pytest.mark.parametrize("candidates", [1, 100])
def test_of_many_candidates_completions_follow_what_is_kept_after_them(candidates: int) -> None:
    joint = torch.tensor([[0.3, 0.01, 0.1], [0.1, 0.1, 0.1], [0.05, 0.19, 0.05]], dtype=torch.float64)
    # The second code is kept: 1.
    known, n, counts = torch.tensor([[[-1, 1]]]).expand(candidates, 1, 2), 1500, np.zeros(3)
    for index in range(n):
        noise = Noise(0, torch.arange(index * candidates, (index + 1) * candidates))
        drawn = draw(Pair(joint, candidates), noise, Warp(), known)
        counts[drawn.codes[chosen(drawn.of_known.numpy(), 0, index), 0, 0]] += 1
    posterior, alone = (joint[:, 1] / joint[:, 1].sum()).numpy(), joint.sum(1).numpy()
    distances = [float(np.abs(counts / n - law).sum()) for law in (posterior, alone)]
    followed, other = distances if candidates > 1 else distances[::-1]
    assert followed < 0.08 and other > 0.5


def test_pixels_that_are_not_kept_are_not_looked_at(trained: Path) -> None:
    image, hidden = IMAGES[0], IMAGES[0].copy()
    hidden[:, 4:] = 255 - hidden[:, 4:]
    assert all(
        torch.equal(*(complete(trained, shown, "top:0.5", n=4, seed=s).codes[0] for shown in (image, hidden)))
        for s in range(3)
    )


def test_what_is_not_kept_is_grown_over_from_the_border() -> None:
    image = np.arange(20, dtype=np.uint8).reshape(1, 4, 5)
    kept = kept_side("top:0.5", (4, 5))
    grown = filled(image, kept)
    assert np.array_equal(grown[:, :2], image[:, :2])
    assert grown[0, 2].tolist() == [6, 6, 7, 8, 8] or grown[0, 2].tolist() == [5, 6, 7, 8, 9]
    assert grown[0, 3].min() >= 5 and grown[0, 3].max() <= 9
    centre = np.zeros((3, 3), dtype=bool)
    centre[1, 1] = True
    assert (filled(np.full((1, 3, 3), 7, np.uint8) * centre, centre) == 7).all()


def test_without_a_class_it_follows_from_what_is_kept(trained: Path, tmp_path: Path) -> None:
    options = {**TINY_PRIOR, "steps": 200, "average_decay": 0.9, "learning_rate": 5e-3}
    run = tmp_path / "run"
    train_prior(trained, out=run, images=IMAGES, targets=TARGETS, **options)
    model = load(run)
    drawer = model.drawer(seed=0)
    assert isinstance(drawer, CodeDrawer)
    known = kept_codes(kept_side("top:0.5", (8, 12)), model.encode(torch.from_numpy(IMAGES[:1])))
    leading = _leading_nats(model.priors, known)
    logits = [model.priors[0].model(known[0].clamp(min=0), torch.tensor([c])).log_softmax(1) for c in (0, 1)]
    expected = [-sum(float(x[0, known[0][0, 0, j], 0, j]) for j in range(3)) for x in logits]
    assert leading.tolist() == pytest.approx(expected, rel=1e-5)
    drawn = _classes(drawer, leading, np.arange(3000))
    weights = np.array(model.priors[0].config.class_weights) * np.exp(-leading.numpy())
    assert abs(drawn.mean() - weights[1] / weights.sum()) < 0.04


def test_what_is_owed_to_known_codes() -> None:
    prior, codes = small_prior(prior_classes()[0]), random_codes(3, 4, 5)
    known = torch.where(torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5, codes, -1)
    stepper = prior.stepper(3)
    stepper.begin(None)
    drawn = draw(stepper, Noise(0, torch.arange(3)), Warp(), known)
    nats = code_nats(prior, drawn.codes, None).detach().double()
    torch.testing.assert_close(drawn.of_known, -(nats * (known >= 0)).sum((1, 2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.log_probability, -nats.sum((1, 2)), rtol=0, atol=1e-5)


def test_completions_that_complete_nothing_are_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match="nothing is kept of the codes, whose patches have 4x4 pixels"):
        complete(trained, IMAGES[0], "top:0.2")
    with pytest.raises(UsageError, match="everything is kept"):
        complete(trained, IMAGES[0], np.ones((8, 12), dtype=bool))
    with pytest.raises(UsageError, match="nothing of the image is kept; `gen sample` draws whole images"):
        complete(trained, IMAGES[0], np.zeros((8, 12), dtype=bool))
    with pytest.raises(UsageError, match=r"(?s)--n: .*got 0.*--candidates: .*got 0.*--temperature: .*got 0"):
        complete(trained, IMAGES[0], "top:0.5", n=0, candidates=0, temperature=0.0)
    with pytest.raises(UsageError, match=r"the mask has \(8, 8\) pixels, and images of this run \(8, 12\)"):
        complete(trained, IMAGES[0], np.ones((8, 8), dtype=bool))
