"""The page in a browser: `pytest -m browser`, with Debian's chromium and axe-core (plain `pytest` leaves it out)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import report
from pipeline.reporting import Silent
from tests.tiny import shapes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
IMAGES, TARGETS = shapes()
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def pages(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run by itself, and two side by side."""
    folder = tmp_path_factory.mktemp("pages")
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "reporter": Silent()}
    alone = report(trained, out=folder / "one.html", **given)
    return {"one": alone, "two": report(trained, trained, out=folder / "two.html", **given)}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("which", ["one", "two"])
def test_a_page_is_shown_without_error_or_request_and_is_accessible(
    browser: "Browser", pages: dict[str, Path], which: str, view: str
) -> None:
    """In both themes and on a phone: no sideways scrolling, pictures have their sizes, axe-core has nothing to say."""
    from axe_playwright_python.sync_playwright import Axe

    shown, faults = browser.new_page(**VIEWS[view]), list[str]()
    shown.on("console", lambda message: faults.append(message.text))
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("request", lambda request: faults.append(request.url) if not is_own(request.url, pages[which]) else None)
    shown.goto(pages[which].as_uri())
    assert not faults
    assert shown.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert shown.evaluate("[...document.images].every(one => one.naturalWidth > 0 && one.clientWidth > 0)")
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (view != "dark")
    found = Axe().run(shown)
    assert found.violations_count == 0, found.generate_report()
    shown.close()


def is_own(url: str, page: Path) -> bool:
    """Whether a request is for the page itself, or for what is in it."""
    return url == page.as_uri() or url.startswith("data:")


def test_keys_lead_through_a_page_in_its_order(browser: "Browser", pages: dict[str, Path]) -> None:
    shown = browser.new_page(**VIEWS["light"])
    shown.goto(pages["one"].as_uri())
    reached = [focused_after_tab(shown) for _ in range(shown.locator("a, input, [tabindex]").count())]
    assert reached[:2] == ["#main", "#verdict"]
    order = shown.evaluate(
        "[...document.querySelectorAll('a, input, [tabindex]')].filter(one => one.checkVisibility())"
        ".map(one => one.getAttribute('href') || one.outerHTML.slice(0, 60))"
    )
    assert reached[: len(order)] == order
    shown.close()


def focused_after_tab(shown: "Page") -> str:
    """What the Tab key leads to."""
    shown.keyboard.press("Tab")
    focused: str = shown.evaluate(
        "(one => one.getAttribute('href') || one.outerHTML.slice(0, 60))(document.activeElement)"
    )
    return focused
