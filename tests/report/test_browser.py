"""The report in headless Chromium, by real clicks; screenshots lie in pytest's temporary folder (--basetemp)."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldseg_auto.report import page as page_module
from ldseg_auto.report.cases import Case
from ldseg_auto.report.pictures import heat_url, palette
from ldseg_auto.report.walk import Walk

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no chromium on the PATH", allow_module_level=True)
EVIL = "<img src=x onerror=document.title='pwned'>"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"])
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Opens a file without a network; fails where the page asks for anything else or writes an error."""
    contexts, faults = [], []

    def visit(file: Path, width: int = 1280, scheme: str = "light", script: str | None = None):
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, offline=True))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: faults.append(dialog.message))
        tab.on("request", lambda request: faults.append(request.url) if request.url != file.as_uri()
               and not request.url.startswith("data:") else None)
        if script is not None:
            tab.add_init_script(script)
        tab.goto(file.as_uri())
        tab.set_default_timeout(20_000)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    """A page of five cases without pictures: names with numbers and markup, and Dice that is not known."""
    dice = {"case_10": (0.5, 0.9), "case_2": (0.8, None), "case_1": (None, None), EVIL: (0.1, 0.3),
            "other": (1.0, 0.05)}
    cases = [Case(name, 0, values, ((1000, 20_000), (5, 6)), 0.001, Path(name), None, (), None)
             for name, values in dice.items()]
    found, colours = Walk(), palette({"background": 0, "a": 1, EVIL: 2})
    sections = {key: page_module.cases_section(cases) if key == "cases" else [] for key in page_module.SECTIONS}
    file = tmp_path_factory.mktemp("made_up") / "page.html"
    page_module.write_page(file, EVIL, EVIL, [EVIL], sections,
                           page_module.payload(cases, ["a", EVIL], found, [], [], colours, 1.0), found)
    return file


def column(tab, number: int) -> list[str]:
    return tab.locator(f".cases tbody tr:visible td:nth-child({number})").all_inner_texts()


def test_a_click_on_a_heading_sorts(visit, made_up):
    tab = visit(made_up)
    heading = tab.locator(".cases thead button")
    before = column(tab, 1)
    heading.nth(0).click()
    assert [name for name in column(tab, 1) if name.startswith("case")] == ["case_1", "case_2", "case_10"]
    assert column(tab, 1) != before and set(column(tab, 1)) == set(before)
    assert tab.locator(".cases th").nth(0).get_attribute("aria-sort") == "ascending"
    heading.nth(2).click()
    assert column(tab, 3) == ["0.100", "0.500", "0.800", "1.000", "\u2013"]
    heading.nth(2).click()
    assert column(tab, 3) == ["1.000", "0.800", "0.500", "0.100", "\u2013"], "what is not known stays last"
    assert tab.locator(".cases th").nth(2).get_attribute("aria-sort") == "descending"
    assert tab.locator(".cases th").nth(0).get_attribute("aria-sort") is None
    heading.nth(4).click()
    assert column(tab, 5) == ["0.200", "0.525", "0.700", "0.800", "\u2013"]
    assert column(tab, 6) == ["1.000"] * 5 and column(tab, 7) == ["20.00"] * 5


def test_boxes_filter_the_rows(visit, made_up):
    tab = visit(made_up)
    tab.locator("#filter-name").fill("CASE_1")
    assert column(tab, 1) == ["case_10", "case_1"] and "2 of 5 cases" in tab.locator("[role=status]").first.inner_text()
    tab.locator("#filter-dice").fill("0.75")
    assert column(tab, 1) == ["case_10"], "a Dice that is not known is not at most .75"
    tab.locator("#filter-name").fill("")
    assert column(tab, 1) == ["case_10", EVIL, "other"]
    tab.locator("#filter-dice").fill("")
    assert len(column(tab, 1)) == 5
    tab.locator("#show-volumes").uncheck()
    assert not tab.locator(".cases th:nth-child(6)").is_visible() and tab.locator(".cases th:nth-child(5)").is_visible()


def test_markup_in_names_stays_text(visit, made_up):
    tab = visit(made_up)
    tab.locator(".cases tbody tr").nth(3).click()
    assert tab.locator("#case h3").inner_text() == f"{EVIL}, fold 0"
    assert tab.title() == EVIL and tab.locator("img").count() == 0
    assert tab.locator("#left-out li").inner_text() == EVIL


def test_two_thousand_rows_and_a_fifth_picture(visit, tmp_path):
    """They are sorted and filtered; mutual information is shown where it is known."""
    picture = heat_url(np.eye(8))
    slice_ = {"slice": 1, "of": 9, "wrong": 3, "aspect": 1, "most_mutual_information": 0.4,
              **dict.fromkeys(("image", "truth", "prediction", "entropy", "mutual_information"), picture)}
    cases = [Case(f"case_{n}", n % 5, (n / 2000, None), ((n, n),) * 2, 0.001, Path("x"), None, (), None)
             for n in range(2000)]
    found, colours = Walk(), palette({"background": 0, "a": 1, "b": 2})
    found.slices[0] = [slice_]
    sections = {key: page_module.cases_section(cases) if key == "cases" else [] for key in page_module.SECTIONS}
    page_module.write_page(tmp_path / "page.html", "many", "", [], sections,
                           page_module.payload(cases, ["a", "b"], found, [], [], colours, 1.0), found)
    tab = visit(tmp_path / "page.html")
    tab.locator(".cases thead button").nth(0).click()
    names = column(tab, 1)
    assert len(names) == 2000 and names[:3] == ["case_0", "case_1", "case_2"] and names[-1] == "case_1999"
    tab.locator("#filter-name").fill("case_199")
    assert len(column(tab, 1)) == 11
    tab.locator("#filter-name").fill("")
    tab.locator("[data-case='0']").click()
    captions = tab.locator("#case figcaption").all_inner_texts()
    assert captions[-2:] == ["uncertainty (entropy, 0 to 1 nats)", "disagreement (mutual information, 0 to 0.4 nats)"]
    boxes = [tab.locator("#case figure").nth(i).bounding_box() for i in range(5)]
    assert len({box["y"] for box in boxes}) == 1, "side by side"
    tab.locator("#cases").screenshot(path=tmp_path / "many.png")


def test_a_row_shows_its_case(visit, reported, tmp_path):
    tab = visit(reported)
    row = tab.locator(".cases tbody tr").nth(1)
    row.click()
    assert row.get_attribute("aria-selected") == "true"
    assert tab.locator("#case h3").inner_text() == "case_07, fold 0"
    pictures = tab.locator("#case .panels img")
    assert pictures.count() % 6 == 0 and pictures.count() >= 6
    assert all(pictures.nth(i).evaluate("image => image.complete && image.naturalWidth > 0") for i in range(6))
    described = [pictures.nth(i).get_attribute("alt") for i in range(6)]
    assert "case_07, slice" in described[0] and "uncertainty" in described[-1]
    tab.locator(".cases tbody tr").nth(0).press("Enter")
    assert tab.locator("#case h3").inner_text() == "case_00, fold 0"
    tab.locator("#cases").screenshot(path=tmp_path / "row.png")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "row.png").convert("L")))) > 50


def canvas(tab, before: np.ndarray | None = None) -> np.ndarray:
    """What the viewer shows, (y, x, 3); waits until it differs from `before`."""
    for _ in range(20):
        shot = np.asarray(Image.open(io.BytesIO(tab.locator("#viewer-canvas").screenshot())).convert("RGB")).astype(int)
        if before is None or (shot != before).any(-1).mean() > 0.001:
            return shot
        tab.wait_for_timeout(100)
    raise AssertionError("the picture stays as it was")


def coloured(shot: np.ndarray) -> float:
    """Share of pixels that are not grey."""
    return float((shot.max(-1) - shot.min(-1) > 60).mean())


def test_the_viewer_scrolls_a_case_with_its_overlays(visit, reported, tmp_path):
    tab = visit(reported, width=600)
    assert not tab.locator("#viewer-canvas").is_visible() and tab.evaluate("typeof niivue") == "undefined"
    tab.locator("#worst button").first.click()
    tab.wait_for_selector("#viewer-where:text-matches('is open')")
    opened = canvas(tab)
    assert (opened.sum(-1) > 60).mean() > 0.2, "mostly black: no image"
    assert coloured(opened) > 0.005, "no overlay"
    tab.locator("#viewer-prediction").uncheck()
    shot = canvas(tab, opened)
    assert coloured(shot) < 0.002, "the overlay is gone"
    for act in (lambda: tab.locator("#viewer-truth").check(), lambda: tab.locator("#viewer-opacity").fill("1"),
                lambda: tab.locator("#viewer-entropy").check(),
                lambda: tab.locator("#viewer-planes").select_option("1"),
                lambda: tab.locator("#viewer-canvas").hover() or tab.mouse.wheel(0, 300)):
        act()
        shot = canvas(tab, shot)
    tab.locator("#viewer-canvas").click(position={"x": 250, "y": 200})
    tab.wait_for_selector("#viewer-where:text-matches('case_0[07]: [-0-9., ]+ mm; image [0-9]+ of 255; "
                          "truth (background|shell|core); prediction [a-z]+; uncertainty [01].[0-9]+ nats')")
    open_case = tab.locator("#viewer-case").input_value()
    other = "1" if open_case == "0" else "0"
    tab.locator("#viewer-case").select_option(other)
    tab.wait_for_selector(f"#viewer-where:text-matches('{('case_00', 'case_07')[int(other)]} is open')")
    canvas(tab, shot)
    tab.locator("#viewer").screenshot(path=tmp_path / "viewer.png")


def test_without_webgl_all_else_works(visit, reported):
    tab = visit(reported, script="HTMLCanvasElement.prototype.getContext = () => null;")
    assert "no WebGL2" in tab.locator("#viewer-missing").inner_text()
    tab.locator(".cases thead button").nth(4).click()
    tab.locator(".cases tbody tr").first.click()
    assert tab.locator("#case .panels").count() > 0


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_it_fits_the_screen(width, scheme, visit, reported, tmp_path):
    tab = visit(reported, width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    colours = tab.evaluate("['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])")
    paper, ink = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert (paper > ink) == (scheme == "light") and abs(paper - ink) > 400
    tab.screenshot(path=tmp_path / "page.png")


def test_the_page_may_not_use_the_network(visit, reported, browser):
    context = browser.new_context()  # with a network, were there one: the page's own policy forbids it
    tab = context.new_page()
    tab.goto(reported.as_uri())
    asked = []
    tab.on("requestfinished", lambda request: asked.append(request.url))
    answer = tab.evaluate("fetch('https://example.org/').then(() => 'loaded', error => String(error))")
    assert "TypeError" in answer and not asked
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\">')")
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.ran") is None
    context.close()
