"""The page of a run: complete in itself, fit to be read, and with a sentence in place of what there is not."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import CheckpointError, UsageError, load, report, train_prior, train_vqvae
from pipeline.cli.main import main
from pipeline.config.options import flatten
from pipeline.evaluation.report import page
from pipeline.evaluation.report.blocks import RunPage
from pipeline.evaluation.report.records import read_record
from pipeline.evaluation.report.tables import command_of
from pipeline.reporting import Silent
from pipeline.runs.evaluation import Evaluation, Figure, JudgeFacts, Measured, Setting, write_evaluation
from pipeline.runs.layout import IN_PROGRESS, RunFolder
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae

IMAGES, TARGETS = shapes()
GIVEN: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "reporter": Silent()}


class Page(HTMLParser):
    """What tests ask of a page: its elements in order, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source, self.elements, self.text = path.read_text(), list[tuple[str, dict[str, str | None]]](), ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


class Made(NamedTuple):
    """A page that was written, and what it was made of, so that it need not be made again."""

    written: Page
    of: Sequence[RunPage]


@pytest.fixture(scope="module")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of both stages as a page."""
    kept: list[RunPage] = []

    def render(pages: Sequence[RunPage], version: str) -> str:
        kept.extend(pages)
        return page.render(pages, version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.evaluation.report.report.render", render)
        path = report(trained, out=tmp_path_factory.mktemp("report") / "page.html", **GIVEN)
    return Made(Page(path), kept)


@pytest.fixture
def written(made: Made) -> Page:
    """The page alone."""
    return made.written


def check_page(shown: Page) -> None:
    """What holds of every page."""
    for _, attributes in shown.elements:
        for name in ("src", "href", "xlink:href", "action"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#")), value[:80]
    styles = shown.source[shown.source.index("<style>") : shown.source.index("</style>")]
    assert "url(" not in styles and "@import" not in styles and "fetch(" not in shown.source
    for picture in shown.all("img"):
        assert picture["alt"] and int(picture["width"] or 0) > 0 and int(picture["height"] or 0) > 0
    assert all(drawing["aria-label"] and drawing["role"] == "img" for drawing in shown.all("svg"))
    identifiers = [own["id"] for _, own in shown.elements if "id" in own]
    assert len(identifiers) == len(set(identifiers))
    targets = {own["href"] for own in shown.all("a")}
    assert targets <= {f"#{identifier}" for identifier in identifiers}
    levels = [int(tag[1]) for tag, _ in shown.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert len(shown.source.encode()) < page.MOST_BYTES


def test_a_page_is_complete_in_itself_and_fit_to_be_read(written: Page) -> None:
    check_page(written)
    for title in (
        "Verdict",
        "Originals and reconstructions",
        "The codebook",
        "Samples",
        "Completions",
        "Nearest training",
    ):
        assert title in written.text
    assert "Left out" not in written.text
    assert len(written.all("svg")) >= 5 and len(written.all("figure")) == written.source.count("<figcaption>") + 1


def test_two_runs_stand_side_by_side(trained: Path, tmp_path: Path) -> None:
    shown = Page(report(trained, trained, out=tmp_path / "both.html", **GIVEN))
    check_page(shown)
    assert shown.text.count("What limits this model most") + shown.text.count("limits this model clearly") == 2


def test_what_is_not_there_is_said_in_a_sentence(trained: Path, tmp_path: Path) -> None:
    """Images that have gone; then a prior, and then a stage 1 that are not finished; the run itself is written into."""
    run = shutil.copytree(trained, tmp_path / "run")
    gone = Page(report(run, reporter=Silent()))
    check_page(gone)
    assert "pass it again, as images=" in gone.text and "8 samples" not in gone.text and (run / "report.html").is_file()
    assert gone.all("img"), "samples and codes need no images"
    for stage, sentence in ((run / "prior" / "0", "gen train-prior"), (run / "vqvae", "Stage 1 is unfinished")):
        (stage / "config.json").rename(stage / IN_PROGRESS)
        (stage / "manifest.json").unlink()
        shown = Page(report(run, **GIVEN))
        check_page(shown)
        assert sentence in shown.text and "has not come to its end" in shown.text
    assert not shown.all("img")


@pytest.mark.parametrize("bottleneck", ["gaussian", "none"])
def test_codes_that_are_numbers_have_units_and_no_codebook(tmp_path: Path, bottleneck: str) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, **tiny_vqvae(bottleneck, steps=2, test=0), reporter=Silent())
    shown = Page(report(tmp_path / "run", images=IMAGES, reporter=Silent()))
    check_page(shown)
    assert "unit 0" in shown.text and "latent space" in shown.text and "the validation part" in shown.text
    assert ("64 samples" in shown.text) == (bottleneck == "gaussian")
    assert ("there is nothing to draw from" in shown.text) == (bottleneck == "none")


def test_many_classes_are_shown_in_part_and_guidance_that_was_compared_on_a_slider(tmp_path: Path) -> None:
    targets, figure = np.arange(40) % 20, Figure(0.5, 0.1)
    run, given = tmp_path / "run", {**GIVEN, "targets": targets}
    train_vqvae(out=run, **TINY_VQVAE | {"steps": 2}, **given)
    train_prior(run, **TINY_PRIOR | {"steps": 2}, **given, force=True, label_dropout=0.2)
    model = load(run)
    compared = [Measured(setting=Setting(guidance=g, temperature=1), figures={"recall": figure}) for g in (1, 2)]
    evaluation = Evaluation(
        codes_sha256=model.vqvae.codes_sha256,
        decoder_sha256=model.vqvae.decoder_sha256,
        prior_sha256="another",
        judge=JudgeFacts(number=1, sha256="", learned="classes", accuracy=figure),
        images=30,
        test_images=30,
        test_data=None,
        seed=0,
        stage1={"nmse": figure},
        stage2={},
        classes={},
        floor={"recall": figure},
        reconstructed={"recall": figure},
        settings=tuple(compared),
        best=compared[1].setting,
        samples=compared[1],
    )
    write_evaluation(RunFolder(run), evaluation)
    shown = Page(report(run, **given))
    check_page(shown)
    assert "12 of 20 classes are shown" in shown.text and "of other weights" in shown.text
    assert "guidance 2 is that of the samples that were measured" in shown.text
    names = [own["data-name"] for own in shown.all("div") if "data-name" in own]
    assert {"1", "2"} <= set(names) == {f"{scale:g}" for scale in (1, 2, model.priors[0].config.guidance)}
    assert "0.5 ± 0.1" in shown.text or "50.0 ± 10 %" in shown.text


@pytest.mark.parametrize(
    ("named", "error", "says"),
    [
        ({"out": "page.txt"}, UsageError, "end it in .html"),
        ({"out": "there.html"}, UsageError, "exists already"),
        ({"runs": 2}, UsageError, "name a file with --out"),
        ({"runs": 3, "out": "new.html"}, UsageError, "2 runs at most"),
        ({"run": "nowhere"}, CheckpointError, "nowhere is not there"),
        ({"run": "."}, CheckpointError, "is no run folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(
    trained: Path, named: dict[str, Any], error: type[Exception], says: str
) -> None:
    Path("there.html").touch()
    runs = [named.get("run", trained)] * named.get("runs", 1)
    with pytest.raises(error, match=re.escape(says)):
        report(*runs, out=named.get("out"), reporter=Silent())
    assert not (trained / "report.html").exists()


def test_a_page_that_would_be_too_large_has_pictures_with_loss(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(made.written.source.encode())
    monkeypatch.setattr(page, "MOST_BYTES", whole - 1)
    assert len(page.render(made.of, version("gen-images")).encode()) < whole
    monkeypatch.setattr(page, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="1,000 bytes at most"):
        page.render(made.of, version("gen-images"))


def test_the_commands_make_the_same_settings(trained: Path, tmp_path: Path) -> None:
    """Parsed as a command line, they give every option that config.json has."""
    record = read_record(trained)
    for stage, name in ((record.vqvae, "train-vqvae"), (record.priors[0], "train-prior")):
        words = shlex.split(command_of(stage, []))
        context = main.commands[name].make_context(name, words, resilient_parsing=False)
        saved = flatten(*(getattr(stage.settings, part) for part in ("model", "training")))
        for option, value in saved.items():
            if option not in ("max_minutes", "micro_batches"):
                assert context.params[option] == value, option


def test_the_command_says_what_it_wrote(trained: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(trained), "--out", "page.html", "--quiet"])
    assert done.exit_code == 0 and done.stdout == "wrote page.html\n"
    check_page(Page(Path("page.html")))


def test_a_training_reports_when_it_has_ended_and_says_before_it_if_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for index, image in enumerate(IMAGES):
        Image.fromarray(image[0]).save(tmp_path / "data" / f"{index}.png")
    given = ["train-vqvae", "--data", str(tmp_path / "data"), "--preset", "tiny", "--steps", "2", "--report", "--quiet"]
    given += ["--out", str(tmp_path / "run")]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        refused = CliRunner().invoke(main, given)
    assert refused.exit_code == 2 and "pip install 'gen-images[report]'" in refused.output
    assert not (tmp_path / "run").exists()
    assert CliRunner().invoke(main, given).exit_code == 0
    shown = Page(tmp_path / "run" / "report.html")
    check_page(shown)
    assert "2 of 2 steps" in shown.text
