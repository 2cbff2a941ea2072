"""The page driven by clicks and keys: `pytest -m browser`, with Debian's chromium (plain `pytest` leaves it out)."""

import io
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pipeline import complete, generate, load, score, train_prior, train_vqvae
from pipeline.evaluation.report.images import dimmed, opaque
from pipeline.sampling.complete import extended
from pipeline.serving.drawing import kept_pixels
from pipeline.serving.pictures import heat, sheet
from tests.pipeline.serving.test_app import served_of
from tests.pipeline.serving.worker import SECONDS_A_ROW, SIZE
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[3]
IMAGES, TARGETS = shapes(size=SIZE)
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 320, "height": 740}, "color_scheme": "light"},
}
ROWS = 8  # of codes


class Site(NamedTuple):
    """Where the page of a run is served, and the folder in which its process notes what it does."""

    address: str
    run: Path
    notes: Path

    def rows_drawn(self) -> int:
        """By all requests so far."""
        path = self.notes / "rows"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    run = folder / "run"
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, **TINY_VQVAE)
    train_prior(run, images=IMAGES, targets=TARGETS, **TINY_PRIOR)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.pipeline.serving.worker", str(run), str(port), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("is shown at" in line for line in process.stderr)
        yield Site(f"http://127.0.0.1:{port}", run, folder)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stderr.read()


@pytest.fixture
def page(browser: "Browser", site: Site) -> Iterator["Page"]:
    """The page in a window of its own, which says nothing on the console and asks nothing of any other machine."""
    shown, faults = opened(browser, site, VIEWS["light"])
    yield shown
    shown.close()
    assert not faults


def opened(browser: "Browser", site: Site, view: dict[str, Any]) -> tuple["Page", list[str]]:
    shown, faults = browser.new_page(**view), list[str]()
    own = (f"{site.address}/", "data:", "blob:")
    shown.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
    shown.goto(site.address)
    button(shown, "Draw").wait_for()
    return shown, faults


def button(page: "Page", name: str) -> "Locator":
    return page.get_by_role("button", name=name, exact=True)


def visible(page: "Page", selector: str) -> "Locator":
    """Of the tab that is open."""
    return page.locator(f"{selector}:visible")


def picture(page: "Page") -> np.ndarray:
    """The pixels of the answer of the tab that is open."""
    source = visible(page, "[data-testid=detailed-image], .image-container img, .image-frame img").last
    with urllib.request.urlopen(str(source.get_attribute("src"))) as file:  # noqa: S310 - of our own page
        return np.asarray(Image.open(io.BytesIO(file.read())))


def said(page: "Page", words: str) -> None:
    """Wait until the tab that is open says so."""
    visible(page, f'.words:has-text("{words}")').last.wait_for()


def open_tab(page: "Page", name: str) -> None:
    page.get_by_role("tab", name=name).click()
    button(page, name).wait_for()


def pick(page: "Page", number: int) -> None:
    """One of the run's images."""
    visible(page, ".offered button.thumbnail-item").nth(number).click()


def offered(site: Site) -> np.ndarray:
    """The run's images that the page has to pick from."""
    return of_site(site).shown.first(16)


def of_site(site: Site) -> Any:
    return served_of(site.run, images=IMAGES, targets=TARGETS)


def test_a_class_is_drawn_row_by_row(page: "Page", site: Site) -> None:
    page.get_by_role("listbox", name="Class").or_(page.get_by_label("Class")).first.click()
    page.get_by_role("option", name="1", exact=True).click()
    page.get_by_label("Seed").first.fill("7")
    button(page, "Draw").click()
    said(page, f" of {ROWS}")
    said(page, "16 images of seed 7")
    page.wait_for_timeout(300)
    drawn = generate(site.run, 16, seed=7, label=1).images.numpy()
    assert np.array_equal(picture(page), np.asarray(sheet(opaque(drawn), 4)))
    assert f"gen sample {site.run} --class 1 --n 16 --seed 7" in page.locator(".words code").inner_text()


def test_the_mask_painted_is_the_mask_used(page: "Page", site: Site) -> None:
    """By the pointer three codes of the third row, by keys one in the row below; the codes outside stay."""
    open_tab(page, "Complete")
    pick(page, 1)
    page.locator("#mask img").wait_for()
    cells = page.locator("#mask .cells button")
    boxes = [cells.nth(2 * ROWS + column).bounding_box() for column in (1, 3)]
    (left, top), (right, _) = ((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes if box)
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(right, top, steps=12)
    page.mouse.up()
    cells.nth(2 * ROWS).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    painted = "".join("1" if i in (17, 18, 19, 24) else "0" for i in range(ROWS * ROWS))
    button(page, "Complete").click()
    said(page, f" of {ROWS}")
    said(page, "8 completions; all of them are decoded")
    page.wait_for_timeout(300)
    model, image = load(site.run), offered(site)[1]
    kept = kept_pixels(painted, model.vqvae.config.model)
    done = complete(model, image, kept, n=8)
    expected = np.concatenate([opaque(image[None]), dimmed(image[None], kept[None]), opaque(done.images.numpy())])
    assert np.array_equal(picture(page), np.asarray(sheet(expected, 4)))
    outside = np.array([cell == "0" for cell in painted]).reshape(ROWS, ROWS)
    assert (done.codes[0][:, outside] == model.encode(extended(image, kept)[None])[0][:, outside]).all()


def test_a_score_arrives_with_its_heat_map(page: "Page", site: Site, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[5, 0]).save(tmp_path / "five.png")
    open_tab(page, "Score")
    upload(page, tmp_path / "five.png")
    visible(page, ".image-container img, .image-frame img").first.wait_for()
    button(page, "Score").click()
    said(page, "in the middle")
    page.wait_for_timeout(300)
    scores = score(site.run, IMAGES[5:6])
    said(page, f"{float(scores.bits[0]):,.0f} bits")
    where = scores.surprise_of_pixels(SIZE)[0]
    expected = sheet(np.concatenate([opaque(IMAGES[5:6]), heat(where)]), 2)
    assert np.array_equal(picture(page), np.asarray(expected))


def upload(page: "Page", path: Path) -> None:
    with page.expect_file_chooser() as chosen:
        button(page, "Upload an image").locator("visible=true").click()
    chosen.value.set_files(path)


def test_files_that_are_no_images_have_a_sentence(page: "Page", tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0, 0]).resize((256, 256)).save(tmp_path / "whole.jpg")
    (tmp_path / "page.png").write_text("<html>no picture</html>")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    open_tab(page, "Reconstruct")
    button(page, "Reconstruct").click()
    said(page, "Choose an image first")
    for name, reason in {"page.png": "not an image", "cut.jpg": "truncated", "huge.png": "too many pixels"}.items():
        upload(page, tmp_path / name)
        said(page, f"{name} cannot be used: ")
        said(page, reason)
    upload(page, tmp_path / "whole.jpg")
    button(page, "Reconstruct").click()
    said(page, "PSNR")


def test_two_tabs_at_once_both_get_answers(browser: "Browser", site: Site) -> None:
    pages = [opened(browser, site, VIEWS["light"]) for _ in range(2)]
    for seed, (one, _) in enumerate(pages, 21):
        one.get_by_label("Seed").first.fill(str(seed))
        button(one, "Draw").click()
    for seed, (one, faults) in enumerate(pages, 21):
        said(one, f"16 images of seed {seed}")
        one.wait_for_timeout(300)
        assert np.array_equal(
            picture(one), np.asarray(sheet(opaque(generate(site.run, 16, seed=seed).images.numpy()), 4))
        )
        one.close()
        assert not faults


def test_stopping_stops_the_drawing_itself(page: "Page", site: Site) -> None:
    before = site.rows_drawn()
    button(page, "Draw").click()
    said(page, f" of {ROWS}")
    button(page, "Stop").click()
    said(page, "Stopped.")
    page.wait_for_timeout(4000 * SECONDS_A_ROW)
    drawn = site.rows_drawn()
    assert drawn - before < ROWS
    page.wait_for_timeout(4000 * SECONDS_A_ROW)
    assert site.rows_drawn() == drawn
    button(page, "Draw").click()
    said(page, "16 images of seed 0")


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_fits_its_window_has_its_theme_and_is_accessible(browser: "Browser", site: Site, view: str) -> None:
    """No sideways scrolling, and axe-core has nothing to say but of Gradio's own sign for no picture."""
    from axe_playwright_python.sync_playwright import Axe

    shown, faults = opened(browser, site, VIEWS[view])
    for name in ("Complete", "Score", "Reconstruct", "Draw"):
        open_tab(shown, name)
        assert shown.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        found = Axe().run(shown, context={"exclude": [['[aria-label="Empty value"]']]})
        assert found.violations_count == 0, found.generate_report()
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (view != "dark")
    fonts = shown.evaluate("[...document.fonts].length")
    assert fonts == 0 and not faults
    shown.close()


def test_the_process_connects_to_no_other_machine(page: "Page", site: Site) -> None:
    button(page, "Draw").click()
    said(page, "images of seed")
    connections = (site.notes / "connections").read_text().splitlines()
    assert connections and all("'127.0.0.1'" in line for line in connections), connections


def test_what_a_run_cannot_do_has_no_tab(tmp_path: Path) -> None:
    """By what Gradio is given: no tab to draw where codes are numbers, no guidance without classes."""
    from pipeline.serving.page import page_of

    images, _ = shapes()
    train_vqvae(out=tmp_path / "run", images=images, **TINY_VQVAE)
    assert tabs(page_of(served_of(tmp_path / "run", images=images))) == ["Reconstruct"]
    train_prior(tmp_path / "run", images=images, **TINY_PRIOR)
    page = page_of(served_of(tmp_path / "run", images=images))
    assert tabs(page) == ["Draw", "Complete", "Score", "Reconstruct"]
    seen = {part["props"].get("label"): part["props"].get("visible") for part in page.config["components"]}
    assert not seen["Class"] and not seen["Guidance"] and seen["Temperature"]
    train_vqvae(out=tmp_path / "numbers", images=images, **tiny_vqvae("gaussian"))
    assert tabs(page_of(served_of(tmp_path / "numbers", images=images))) == ["Reconstruct"]


def tabs(page: Any) -> list[str]:
    return [part["props"]["label"] for part in page.config["components"] if part["type"] == "tabitem"]
