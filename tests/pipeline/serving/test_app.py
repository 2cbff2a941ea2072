"""What is behind the page: events in, pictures and sentences out, and what keeps it from being served."""

import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import CheckpointError, DataError, UsageError, app, complete, generate, load, score, train_vqvae
from pipeline.evaluation.parts import Source
from pipeline.evaluation.report.images import dimmed, opaque
from pipeline.evaluation.report.shown import shown_of
from pipeline.processes import start
from pipeline.reporting import Silent
from pipeline.sampling.complete import extended
from pipeline.sampling.motion.film import unfinished
from pipeline.serving.drawing import complete_image, draw, kept_pixels
from pipeline.serving.examining import reconstruct, score_image
from pipeline.serving.pictures import heat, sheet
from pipeline.serving.served import Answer, Served
from pipeline.serving.uploads import read_upload
from pipeline.training.launch import Launch
from tests.tiny import TINY_VQVAE, shapes, tiny_vqvae

IMAGES, TARGETS = shapes()


def served_of(run: Path, images: np.ndarray | None = None, targets: np.ndarray | None = None) -> Served:
    """A run as the page has it, whose images are in these arrays."""
    model, source = load(run), Source(images=images, targets=targets)
    return Served(model, shown_of(model, source, Launch({}, start(), Silent(), None)))


@pytest.fixture(scope="module")
def served(trained: Path) -> Served:
    return served_of(trained, images=IMAGES, targets=TARGETS)


def last(answers: Iterable[Answer]) -> Answer:
    return list(answers)[-1]


def same(picture: Image.Image | None, images: torch.Tensor | np.ndarray, columns: int) -> bool:
    """Whether a picture is made of these images."""
    expected = sheet(opaque(np.asarray(images)), columns)
    return picture is not None and np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_drawing_is_seen_row_by_row_and_ends_with_the_images_of_its_seed(served: Served, trained: Path) -> None:
    options = {"n": 3, "seed": 5, "guidance": 2.0, "temperature": 0.9, "top_k": None, "top_p": 0.8}
    answers = list(draw(served, 1, options))
    rows = served.model.vqvae.config.model.grids[0][0]
    assert [answer.words for answer in answers[:-1]] == [f"images 3 of 3: row {row} of {rows}" for row in range(rows)]
    drawn = generate(trained, 3, seed=5, label=1, guidance=2.0, temperature=0.9, top_p=0.8)
    assert same(answers[-1].picture, drawn.images, 3)
    assert f"gen sample {trained} --class 1 --n 3 --seed 5 --guidance 2.0 --temperature 0.9 --top-p 0.8" in (
        answers[-1].words
    )


def test_what_is_not_drawn_yet_is_faint_and_has_the_colours_above_it(served: Served) -> None:
    codes = served.model.encode(IMAGES[:2])[0].long()
    half = codes.clone()
    half[:, 1:] = -1
    seen = dimmed(*unfinished(served.model, (half,)))
    size = IMAGES.shape[2] // codes.shape[1]
    assert (seen[:, :size, :, 3] == 255).all() and (seen[:, size:, :, 3] < 255).all()
    continued = served.model.decode((codes[:, :1].expand_as(codes).contiguous(),)).numpy()
    assert np.array_equal(seen[..., :1], continued.transpose(0, 2, 3, 1))


def test_all_bad_options_have_one_sentence_each(served: Served) -> None:
    words = last(draw(served, "seven", {"n": 0, "temperature": -1.0})).words
    assert "--n" in words and "--temperature" in words
    assert "there is no class 'seven'" in last(draw(served, "seven", {"n": 1})).words


def test_a_completion_has_the_codes_of_the_image_where_nothing_is_painted(served: Served) -> None:
    """What the page shows is what the API makes of the mask; and there the codes outside stay."""
    painted = "000101"  # of 2 x 3 codes
    options = {"n": 2, "candidates": 3, "seed": 4, "guidance": 1.0, "temperature": 1.0}
    answers = list(complete_image(served, IMAGES[0], painted, None, options))
    kept = np.ones((8, 12), bool)
    kept[4:, :4] = kept[4:, 8:] = False
    assert np.array_equal(kept_pixels(painted, served.model.vqvae.config.model), kept)
    done = complete(served.model, IMAGES[0], kept, n=2, candidates=3, seed=4, guidance=1.0, temperature=1.0)
    picture = np.asarray(answers[-1].picture)
    factor = picture.shape[1] // (4 * (12 + 1) - 1)  # four in a row, and a gap of one pixel between them
    for index, image in enumerate(done.images.numpy()):
        left = factor * (2 + index) * (12 + 1)
        cut = picture[: factor * 8 : factor, left : left + factor * 12 : factor, 0]
        assert np.array_equal(cut, image[0])
    own = served.model.encode(extended(IMAGES[0], kept)[None])[0]
    outside = torch.tensor([[True, True, True], [False, True, False]])
    assert (done.codes[0][:, outside] == own[:, outside]).all()
    assert [answer.words.rpartition(": ")[2] for answer in answers[:-1]] == ["row 0 of 2", "row 1 of 2"]


@pytest.mark.parametrize(
    ("image", "painted", "sentence"),
    [
        (None, "000101", "Choose an image first"),
        (IMAGES[0], "000000", "Nothing is painted"),
        (IMAGES[0], "111111", "All is painted"),
        (IMAGES[0], "0001", "the mask has 4 codes, and the image 2 x 3"),
        (IMAGES[0], "00010x", "the mask has 6 codes"),
    ],
)
def test_what_cannot_be_completed_has_a_sentence(
    served: Served, image: np.ndarray | None, painted: str, sentence: str
) -> None:
    [answer] = complete_image(served, image, painted, None, {"n": 1})
    assert answer.picture is None and answer.words.startswith(sentence)


def test_a_score_has_its_bits_its_percentile_and_its_heat_map(served: Served) -> None:
    image = np.full_like(IMAGES[0], 255)
    answers = list(score_image(served, image))
    scores, tests = score(served.model, image[None]), served.shown.images.images
    bits, others = float(scores.bits[0]), score(served.model, tests).bits
    torch.testing.assert_close(torch.tensor(served.test_bits), others.float(), rtol=1e-4, atol=1e-3)
    assert f"**{bits:,.0f} bits**" in answers[-1].words
    assert f"**{float((others < bits).double().mean()):.0%}** of {len(others)} images" in answers[-1].words
    assert answers[0].picture is not None and "0 scored" in answers[0].words
    where = scores.surprise_of_pixels((8, 12))[0]
    expected = sheet(np.concatenate([opaque(image[None]), heat(where)]), 2)
    assert np.array_equal(np.asarray(answers[-1].picture), np.asarray(expected))
    again = list(score_image(served, IMAGES[1]))
    assert len(again) == 1, "the test images are scored once"


def test_heat_grows_from_black_to_white() -> None:
    [colours] = heat(np.linspace(0, 3, 9).reshape(1, 9))
    assert colours[0, 0].tolist() == [0, 0, 0, 255] and colours[0, -1].tolist() == [255] * 4
    assert (np.diff(colours[0, :, :3].astype(int).sum(1)) > 0).all()


def test_a_reconstruction_is_shown_beside_its_image(served: Served) -> None:
    answer = last(reconstruct(served, IMAGES[3], 1, "plain"))
    restored = served.model.reconstruct(IMAGES[3:4])
    assert same(answer.picture, np.concatenate([IMAGES[3:4], restored.numpy()]), 2)
    mean = float(((restored.numpy() / 255.0 - IMAGES[3:4] / 255.0) ** 2).mean())
    assert f"**{-10 * np.log10(mean):.1f} dB**" in answer.words
    assert "sharp decoder" in last(reconstruct(served, IMAGES[3], 1, "sharp")).words


def test_a_run_whose_images_have_gone_is_served_without_them(trained: Path) -> None:
    served = served_of(trained)
    assert served.shown.parts is None and not served.why_no_drawing
    assert "The images of this run cannot be shown" in last(score_image(served, IMAGES[0])).words
    assert last(draw(served, None, {"n": 2})).picture is not None


def test_what_cannot_be_drawn_has_a_reason(tmp_path: Path) -> None:
    for name, options in (("unfinished", TINY_VQVAE), ("continuous", tiny_vqvae("gaussian"))):
        train_vqvae(out=tmp_path / name, images=IMAGES, targets=TARGETS, **options)
    assert (
        "has no finished prior; train one with `gen train-prior"
        in served_of(tmp_path / "unfinished", images=IMAGES, targets=TARGETS).why_no_drawing
    )
    served = served_of(tmp_path / "continuous", images=IMAGES, targets=TARGETS)
    assert "The codes of a gaussian bottleneck are numbers" in served.why_no_drawing
    assert "PSNR" in last(reconstruct(served, IMAGES[0], 1, "plain")).words


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_uploads_are_decoded_as_images_of_a_training_are(served: Served, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0, 0]).save(tmp_path / "exact.png")
    assert np.array_equal(read_upload(tmp_path / "exact.png", served.model.vqvae.config), IMAGES[0])
    Image.new("RGBA", (300, 200), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_upload(tmp_path / "clear.png", served.model.vqvae.config) == 255).all()


def test_uploads_that_are_no_images_have_a_sentence(served: Served, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0, 0]).resize((256, 256)).save(tmp_path / "whole.jpg")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    bad = {
        written(tmp_path / "page.png", b"<html>no picture</html>"): "not an image",
        written(tmp_path / "cut.jpg", (tmp_path / "whole.jpg").read_bytes()[:900]): "truncated",
        tmp_path / "huge.png": "too many pixels",
    }
    for path, reason in bad.items():
        with pytest.raises(DataError, match=f"{path.name} cannot be used: .*{reason}"):
            read_upload(path, served.model.vqvae.config)
    (tmp_path / "long.png").touch()
    with (tmp_path / "long.png").open("r+b") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(DataError, match="has 65 MB; the page takes 64 MB at most"):
        read_upload(tmp_path / "long.png", served.model.vqvae.config)


def test_a_port_in_use_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port {port} cannot be had on 127\.0\.0\.1 .*; name another"):
            app(tmp_path / "none", port=port)


def test_what_cannot_be_served_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--port"):
        app(tmp_path, port=0)
    with pytest.raises(CheckpointError, match="there is no run folder"):
        app(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"pip install 'gen-images\[app\]'"):
        app(tmp_path / "none")
