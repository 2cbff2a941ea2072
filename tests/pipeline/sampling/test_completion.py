"""Completions keep the known codes, and draw the others from the prior given them."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import UsageError, complete, load, train_prior, train_vqvae
from pipeline.randomness import Purpose, stream
from pipeline.sampling.complete import Part, _candidates, extended, kept_side, known_codes
from pipeline.sampling.model import Model
from pipeline.sampling.samplers import CodeSampler
from stage2_prior import (
    ClassProposal,
    SamplingOptions,
    choose_candidate,
    code_nats,
    draw_classes,
    known_nats_per_class,
    propose_classes,
)
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

LEARNED = SamplingOptions(guidance=1.0)  # the distribution that the prior has learned, whatever its default

IMAGES, TARGETS = shapes()


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("top:0.5", [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]),
        ("bottom:0.25", [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]),
        ("left:0.34", [[1, 0, 0]] * 4),
        ("right:0.67", [[0, 1, 1]] * 4),
        ("left:0.6", [[1, 1, 0]] * 4),
    ],
)
def test_sides_of_an_image(keep: str, expected: list[list[int]]) -> None:
    assert kept_side(keep, (4, 3)).astype(int).tolist() == expected


@pytest.mark.parametrize("keep", ["top", "up:0.5", "top:1", "top:0", "top:half"])
def test_parts_that_do_not_exist_are_refused(keep: str) -> None:
    with pytest.raises(UsageError, match="write SIDE:FRACTION"):
        kept_side(keep, (4, 3))


def test_a_code_is_kept_where_its_whole_patch_is() -> None:
    kept = np.ones((4, 6), dtype=bool)
    kept[3, 5] = kept[0, 0] = False
    codes = (torch.tensor([[[3]]]), torch.arange(6).reshape(1, 2, 3))
    known = known_codes(kept, codes)
    assert known[0].tolist() == [[[-1]]] and known[1].tolist() == [[[-1, 1, 2], [3, 4, -1]]]


def test_completions_keep_the_known_codes_and_differ_in_the_others(trained: Path) -> None:
    image = IMAGES[0]
    done = complete(trained, image, "top:0.5", n=12, seed=2)
    original = load(trained).encode(torch.from_numpy(extended(image, done.kept)[None]))[0]
    assert (done.codes[0][:, 0] == original[0, 0]).all()
    assert len({tuple(codes[1].tolist()) for codes in done.codes[0]}) > 3
    assert done.images.shape == (12, 1, 8, 12) and done.kept[:4].all() and not done.kept[4:].any()
    again = complete(trained, image, done.kept, n=3, seed=2)
    assert torch.equal(again.codes[0], done.codes[0][:3]), "a mask is the side that it draws"
    other = complete(trained, image, "top:0.5", n=12, seed=3)
    assert not torch.equal(other.codes[0], done.codes[0])


def test_pixels_that_are_not_kept_change_nothing(trained: Path) -> None:
    image, hidden = IMAGES[0], IMAGES[0].copy()
    hidden[:, 4:] = 255 - hidden[:, 4:]
    assert all(
        torch.equal(*(complete(trained, shown, "top:0.5", n=4, seed=s).codes[0] for shown in (image, hidden)))
        for s in range(3)
    )


def test_what_is_not_kept_is_filled_from_the_border() -> None:
    image = np.arange(20, dtype=np.uint8).reshape(1, 4, 5)
    kept = kept_side("top:0.5", (4, 5))
    grown = extended(image, kept)
    assert np.array_equal(grown[:, :2], image[:, :2])
    assert grown[0, 2].tolist() == [6, 6, 7, 8, 8] or grown[0, 2].tolist() == [5, 6, 7, 8, 9]
    assert grown[0, 3].min() >= 5 and grown[0, 3].max() <= 9
    centre = np.zeros((3, 3), dtype=bool)
    centre[1, 1] = True
    assert (extended(np.full((1, 3, 3), 7, np.uint8) * centre, centre) == 7).all()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A run of few codes, whose prior has learned what they have to do with classes and with each other."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("learned") / "run"
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, "num_codes": 5})
    options = {**TINY_PRIOR, "steps": 150, "average_decay": 0.9, "learning_rate": 5e-3}
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, **options)
    return load(run)


ROWS = torch.tensor(list(product(range(5), repeat=3)))  # all that a row of three codes can be


def joint(model: Model, maps: Tensor) -> np.ndarray:
    """p(map, class) of many maps, from the network's logits."""
    [prior] = model.priors
    nats = [code_nats(prior.network, maps, torch.full((len(maps),), label)).double().sum((1, 2)) for label in (0, 1)]
    return np.asarray(np.array(prior.config.class_weights) * np.exp(-torch.stack(nats, 1).detach().numpy()))


@pytest.fixture(scope="module")
def undecided(learned: Model) -> dict[int, tuple[Part, np.ndarray]]:
    """By the row that is kept, 0 or 1: a part where this leaves open of which class it is; and the law of the other
    row, over both classes."""
    return {kept: undecided_part(learned, kept) for kept in (0, 1)}


def undecided_part(model: Model, kept: int) -> tuple[Part, np.ndarray]:
    candidates = []
    for row in ROWS:
        maps = torch.stack([row.expand(125, -1), ROWS][:: 1 if kept == 0 else -1], 1)
        law = joint(model, maps)
        candidates.append((abs(float(law[:, 0].sum() / law.sum()) - 0.5), maps, law))
    distance, maps, law = min(candidates, key=lambda candidate: candidate[0])
    assert distance < 0.4
    known = torch.full((1, 2, 3), -1)
    known[0, kept] = maps[0, kept]
    part = Part(np.ones((8, 12), dtype=bool), (known,), (torch.where(known < 0, 2, known),))
    return part, law.sum(1) / law.sum()


def test_without_a_class_it_follows_from_what_is_kept(learned: Model) -> None:
    mask = kept_side("right:0.67", (8, 12))
    guessed = learned.encode(extended(IMAGES[0], mask)[None])
    part = Part(mask, known_codes(mask, guessed), guessed)
    sampler, codes, known = learned.sampler(seed=0, options=LEARNED), guessed[0].long(), part.known[0][0] >= 0
    assert isinstance(sampler, CodeSampler) and known.tolist() == [[False, True, True]] * 2
    logits = [learned.priors[0].network(codes, torch.tensor([c])).log_softmax(1)[0].permute(1, 2, 0) for c in (0, 1)]
    expected = [-float(x.gather(2, codes[0][:, :, None])[known[:, :, None]].sum()) for x in logits]
    nats = known_nats_per_class([prior.network for prior in learned.priors], part.known, part.context)
    assert nats.tolist() == pytest.approx(expected, rel=1e-5)
    weights = np.array(learned.priors[0].config.class_weights)
    informed = weights * np.exp(-nats.numpy()) / (weights * np.exp(-nats.numpy())).sum()
    for mixed, law in ((False, informed), (True, 0.9 * informed + 0.1 * weights / weights.sum())):
        proposal = propose_classes(torch.from_numpy(weights).double(), nats, mixed)
        np.testing.assert_allclose(proposal.logits.exp(), law, rtol=1e-9)
        np.testing.assert_allclose(proposal.log_weights.exp(), law / (weights / weights.sum()), rtol=1e-9)
        noise = np.stack([stream(0, Purpose.LABELS, index).gumbel(size=2) for index in range(3000)])
        assert abs(float(draw_classes(proposal, torch.from_numpy(noise)).double().mean()) - law[1]) < 0.04


@pytest.mark.parametrize("kept", [0, 1])
def test_of_many_candidates_the_chosen_follow_the_law_of_the_rest_given_what_is_kept(
    learned: Model, undecided: dict[int, tuple[Part, np.ndarray]], kept: int
) -> None:
    sampler, (part, law), n, candidates = learned.sampler(seed=0, options=LEARNED), undecided[kept], 1000, 50
    assert isinstance(sampler, CodeSampler)
    codes, weights = _candidates(sampler, part, n, candidates)
    drawn = (codes[0][:, 1 - kept].long() @ torch.tensor([25, 5, 1])).reshape(n, candidates)
    noise = [stream(0, Purpose.CANDIDATES, number).gumbel(size=candidates) for number in range(n)]
    pairs = zip(torch.as_tensor(weights), noise, strict=True)
    groups = torch.tensor([choose_candidate(own, torch.from_numpy(gumbel)) for own, gumbel in pairs])
    found = np.bincount(drawn[torch.arange(n), groups], minlength=125) / n
    # The mean distance of n draws from their law, were they of it.
    rng = np.random.default_rng(0)
    usual = [np.abs(rng.multinomial(n, law) / n - law).sum() for _ in range(100)]
    assert np.abs(found - law).sum() < np.mean(usual) + 4 * np.std(usual)
    if kept == 1:
        alone = np.bincount(drawn.flatten(), minlength=125) / drawn.numel()
        assert np.abs(alone - law).sum() > 2 * np.mean(usual), "a single candidate cannot look ahead"


def test_completions_that_complete_nothing_are_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match="nothing is kept of the codes, whose patches have 4x4 pixels"):
        complete(trained, IMAGES[0], "top:0.2")
    with pytest.raises(UsageError, match="everything is kept"):
        complete(trained, IMAGES[0], np.ones((8, 12), dtype=bool))
    with pytest.raises(UsageError, match="nothing of the image is kept; `gen sample` draws whole images"):
        complete(trained, IMAGES[0], np.zeros((8, 12), dtype=bool))
    with pytest.raises(UsageError, match=r"(?s)--n: .*got 0.*--candidates: .*got 0.*--temperature: .*got 0"):
        complete(trained, IMAGES[0], "top:0.5", n=0, candidates=0, temperature=0.0)
    with pytest.raises(
        UsageError, match=r"(?s)image is float64 \(1, 8, 12\), and must be uint8.*the mask is bool \(8, 8\)"
    ):
        complete(trained, IMAGES[0] / 255, np.ones((8, 8), dtype=bool))
    with pytest.raises(UsageError, match=r"image is uint8 \(3, 8, 12\), and must be uint8 \(1, 8, 12\)"):
        complete(trained, IMAGES[0].repeat(3, 0), "top:0.5")
    with pytest.raises(UsageError, match=r"the mask is uint8 \(8, 12\), and must be bool"):
        complete(trained, IMAGES[0], np.ones((8, 12), dtype=np.uint8))


def weights_by_hand(model: Model, part: Part, codes: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """ln p(known | class, before) + ln p(class) - ln q(class) of each candidate, and q, from logits alone."""
    [prior] = model.priors
    known = part.known[0] >= 0

    def nats(maps: Tensor, label: int) -> np.ndarray:
        each = code_nats(prior.network, maps.long(), torch.full((len(maps),), label)).detach().double()
        return np.asarray((each * known).sum((1, 2)).numpy())

    before = np.array(prior.config.class_weights) / sum(prior.config.class_weights)
    q = before * np.exp([-nats(part.context[0], label)[0] for label in (0, 1)])
    q /= q.sum()
    if known[0, 1].any():  # some of the drawn come before
        q = 0.9 * q + 0.1 * before
    gumbel = np.stack([stream(seed, Purpose.LABELS, index).gumbel(size=2) for index in range(len(codes))])
    labels = (np.log(q) + gumbel).argmax(1)
    given = np.where(labels == 0, -nats(codes, 0), -nats(codes, 1))
    return given + np.log(before[labels]) - np.log(q[labels]), q


@pytest.mark.parametrize("kept", [0, 1])
def test_a_candidates_weight_counts_its_class_once(
    learned: Model, undecided: dict[int, tuple[Part, np.ndarray]], kept: int
) -> None:
    part, _ = undecided[kept]
    sampler = learned.sampler(seed=4, options=LEARNED)
    assert isinstance(sampler, CodeSampler)
    codes, weights = _candidates(sampler, part, 5, 8)
    expected, q = weights_by_hand(learned, part, codes[0], 4)
    assert q.min() > 0.05, "both classes are proposed"
    np.testing.assert_allclose(weights.flatten().numpy(), expected, atol=1e-4)
    if kept == 0:  # what is known comes first: the class has used all of it, and every candidate is as good
        assert float(weights.max() - weights.min()) < 1e-4
    else:
        assert float(weights.max() - weights.min()) > 0.1


def test_with_a_class_the_weight_is_the_probability_of_what_is_kept(
    learned: Model, undecided: dict[int, tuple[Part, np.ndarray]]
) -> None:
    part, _ = undecided[1]
    sampler = learned.sampler(seed=4, label=1, options=LEARNED)
    assert isinstance(sampler, CodeSampler)
    codes, weights = _candidates(sampler, part, 2, 4)
    nats = code_nats(learned.priors[0].network, codes[0].long(), torch.ones(8, dtype=torch.int64)).detach().double()
    expected = -(nats * (part.known[0] >= 0)).sum((1, 2))
    torch.testing.assert_close(weights.flatten(), expected, rtol=0, atol=1e-4)


def test_each_completion_is_chosen_among_candidates_of_its_own_with_noise_of_its_own(trained: Path) -> None:
    model, image = load(trained), IMAGES[0]
    done = complete(trained, image, "bottom:0.5", n=6, candidates=3, seed=2)
    mask = kept_side("bottom:0.5", (8, 12))
    context = model.encode(torch.from_numpy(extended(image, mask)[None]))
    sampler = model.sampler(seed=2)
    assert isinstance(sampler, CodeSampler)
    codes, weights = _candidates(sampler, Part(mask, known_codes(mask, context), context), 6, 3)
    noise = np.stack([stream(2, Purpose.CANDIDATES, index).gumbel(size=3) for index in range(6)])
    best = [3 * index + int(choice) for index, choice in enumerate((weights.numpy() + noise).argmax(1))]
    assert torch.equal(done.codes[0], codes[0][best])
    assert {index % 3 for index in best} == {0, 1, 2}


@pytest.mark.parametrize(
    ("kept", "candidates", "mixed"), [("bottom:0.5", 1, 0), ("bottom:0.5", 3, 1), ("top:0.5", 3, 0)]
)
def test_classes_are_mixed_with_any_only_where_one_of_several_candidates_is_chosen_by_what_comes_later(
    trained: Path, monkeypatch: pytest.MonkeyPatch, kept: str, candidates: int, mixed: int
) -> None:
    """A single completion would be of any class a tenth of the time, and nothing would weigh that down."""
    seen: list[bool] = []

    def proposing(weights: Tensor, nats: Tensor, mixed: bool) -> ClassProposal:
        seen.append(mixed)
        return propose_classes(weights, nats, mixed)

    monkeypatch.setattr("pipeline.sampling.complete.propose_classes", proposing)
    complete(trained, IMAGES[0], kept, n=1, candidates=candidates)
    assert seen == [bool(mixed)]


def test_what_is_filled_in_is_the_rounded_mean_of_its_known_neighbours() -> None:
    image = np.array([[[10, 0, 21, 30]]], dtype=np.uint8)
    assert extended(image, np.array([[True, False, True, True]]))[0].tolist() == [[10, 16, 21, 30]]
    image = np.array([[[9, 10, 0], [0, 0, 0]]], dtype=np.uint8)
    kept = np.array([[True, True, False], [False, False, False]])
    assert extended(image, kept)[0].tolist() == [[9, 10, 10], [10, 10, 10]]


def test_candidates_are_the_same_however_many_are_drawn_at_a_time(
    learned: Model, undecided: dict[int, tuple[Part, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    part, _ = undecided[1]
    sampler = learned.sampler(seed=4, options=LEARNED)
    assert isinstance(sampler, CodeSampler)
    [codes], weights = _candidates(sampler, part, 5, 4)
    monkeypatch.setattr(CodeSampler, "batch_size", lambda _self, _wanted: 3)
    [again], also = _candidates(sampler, part, 5, 4)
    assert torch.equal(again, codes)
    torch.testing.assert_close(also, weights, rtol=0, atol=1e-4)
