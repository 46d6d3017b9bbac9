"""The pages in a real browser: nothing is fetched, nothing is in the way, and everybody can read them."""

from __future__ import annotations

import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from report_sample import membership, sample
from sample_attacks import attack

from privfed.audit import evidence as ev
from privfed.report import render_html
from privfed.report.compare import Compared, render_comparison

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; .ci/run installs Debian's"),
]
REFERENCE = Path(__file__).parents[2] / "reports" / "reference" / "report.html"
DESKTOP, PHONE = {"width": 1100, "height": 900}, {"width": 390, "height": 844}


def ladder_attacks() -> list[ev.AttackEvidence]:
    """The sample's, and two defences on the same examples."""
    found = list(sample().attacks)
    probe = [a for a in found if a.workload == "one step on one example"]
    clipped = [a.model_copy(update={"defence": "clip to 0.5"}) for a in probe]
    summed = attack(3, observer="server", workload=probe[0].workload, defence="masked sum of 54")
    return [*found, *clipped, summed.model_copy(update={"contributors": 54.0})]


def crowded() -> ev.Membership:
    """As many methods as there are, and a claim: figures with the most series."""
    plain = membership()
    names = ("loss", "lira", "lira_offline", "rmia", "rmia_offline")
    terms = {"unit": "client", "neighbouring": "add or remove one client", "sampling": "Poisson, rate 0.1"}
    claim = ev.MembershipClaim(observer="release", epsilon=3.0, delta=1e-4, flagged=False, **terms)
    attacks = tuple(plain.attacks[0].model_copy(update={"method": name}) for name in names)
    return ev.Membership(**{**dict(plain), "attacks": attacks, "claims": (claim,)})


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the pages."""
    folder = tmp_path_factory.mktemp("pages")
    report = sample(attacks=ladder_attacks())
    bare = ev.Accuracy(protected=[], unprotected=[], final_protected=None, final_unprotected=None, gap=None)
    missing = dict.fromkeys(("membership", "canaries", "accounting", "clients", "sweep"))
    empty = dict.fromkeys(("observers", "rounds", "attacks", "statements", "checks", "trust", "limits"), ())
    texts = {
        "report": render_html(report),
        "partial": render_html(sample(accuracy=bare, **missing, **empty)),
        "compare": render_comparison([Compared("one", report), Compared("two", sample(20))]),
    }
    texts["reference"] = REFERENCE.read_text(encoding="utf-8")
    texts["crowded"] = render_html(sample(membership=crowded()))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in texts}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, pages: dict[str, str]) -> Iterator[Opened]:
    """Opens a page by name; what it says on the console, and asks for beside itself, fails the test."""
    contexts, faults = [], []

    def open_page(name: str, size: Any = None, **options: Any) -> Any:
        context = browser.new_context(viewport=size or DESKTOP, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", lambda request: faults.append(request.url) if foreign(request.url) else None)
        page.goto(pages[name])
        return page

    def foreign(url: str) -> bool:
        return url not in pages.values() and not url.startswith("data:")

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


NAMES = pytest.mark.parametrize("name", ["report", "partial", "compare"])


@NAMES
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_figure_is_seen_and_nothing_sticks_out(name: str, size: Any, opened: Opened) -> None:
    page = opened(name, size)
    drawings = page.locator("figure svg[role=img]")
    assert drawings.count() == {"report": 16, "partial": 0, "compare": 2}[name]
    for drawing in drawings.all():
        box = drawing.bounding_box()
        assert box is not None
        assert box["width"] > 150
        assert box["height"] > 60
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
    for image in page.locator("img:visible").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


@pytest.mark.parametrize("name", ["report", "partial", "compare", "reference"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(name: str, scheme: Any, size: Any, opened: Opened) -> None:
    page = opened(name, size, color_scheme=scheme, bypass_csp=True)  # axe is a script of its own
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    found = axe.Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [n["html"][:160] for n in v["nodes"][:3]]) for v in serious] == []


def ink(page: Any, sample_line: Any) -> NDArray[np.bool_]:
    """Where a legend's sample is drawn, in a greyscale picture: whatever its colour, full ink counts the same."""
    box = sample_line.bounding_box()
    clip = {"x": box["x"] - 1, "y": box["y"] + box["height"] / 2 - 7, "width": 32, "height": 14}
    grey = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("L"), float)
    off = np.abs(grey - np.median(grey[[0, -1]]))
    return np.asarray(off > off.max() / 2)


def alike(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether two samples cannot be told apart without colour: hardly any ink of one is not the other's."""
    return bool((one ^ other).sum() <= 0.1 * (one | other).sum())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_series_are_told_apart_in_greyscale(scheme: Any, opened: Opened) -> None:
    page = opened("crowded", color_scheme=scheme)
    page.set_viewport_size({"width": 1100, "height": 12_000})  # clips are of what is in view
    most = 0
    for drawing in page.locator("figure svg[role=img]").all():
        samples = drawing.locator("line.curve, line.allowed, line.bar-sample").all()
        inks = [ink(page, one) for one in samples]
        assert all(one.any() for one in inks)
        assert not any(alike(*pair) for pair in itertools.combinations(inks, 2)), drawing.inner_text()
        most = max(most, len(samples))
    assert most == 6


def test_the_greyscale_check_has_teeth(opened: Opened) -> None:
    """Two solid lines of two colours are one series to who prints without colour."""
    page = opened("crowded")
    page.set_viewport_size({"width": 1100, "height": 12_000})
    legend = page.locator("svg:has(#fig-accuracy-t) line.curve")
    legend.nth(1).evaluate("line => { line.style.strokeDasharray = 'none'; line.style.strokeWidth = '2.4' }")
    assert alike(ink(page, legend.nth(0)), ink(page, legend.nth(1)))


def test_axe_has_teeth(opened: Opened) -> None:
    page = opened("partial", bypass_csp=True)
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"data:,\">')")
    page.evaluate("document.querySelector('.lead').style.color = '#dddddd'")
    found = {v["id"] for v in axe.Axe().run(page).response["violations"]}
    assert {"image-alt", "color-contrast"} <= found


def column(table: Any, number: int) -> list[str]:
    return [str(text) for text in table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()]


def test_tables_sort_by_what_is_clicked_and_by_keyboard(opened: Opened) -> None:
    page = opened("report")
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    table = page.locator("table.sortable").filter(has_text="Signal / noise")
    before = column(table, 1)
    heading = table.locator("thead th").nth(6)
    heading.locator("button").click()
    ratios = [float(text) for text in column(table, 7)]
    assert ratios == sorted(ratios)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert [float(text) for text in column(table, 7)] == sorted(ratios, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    assert sorted(column(table, 1)) == sorted(before)
    # ∞ is the largest ε, unknown figures come last, and what is claimed goes with its row.
    epsilons = page.locator("table.sortable").filter(has_text="ε by PLD")
    epsilons.locator("thead th").nth(3).locator("button").click()
    assert column(epsilons, 4) == ["3.00", "68.0", "–"]
    assert column(epsilons, 6) == ["claimed", "holds too, weaker", "does not apply"]


def test_marks_say_their_value_and_handles_lay_pictures_over_each_other(opened: Opened) -> None:
    page = opened("report")
    assert page.locator("#fig-accuracy-t").count() == 1
    said = page.locator("svg:has(#fig-accuracy-t) .hover title").all_text_contents()
    assert [words.split(":")[0] for words in said[:40]] == [f"as configured, round {n}" for n in range(1, 41)]
    for figure, words in (
        ("fig-roc-example", "found at"),
        ("fig-roc-example-log", "found at"),
        ("fig-canaries-roc", "found at"),
        ("fig-canaries-client", "took part"),
        ("fig-clients", "clients"),
    ):
        titles = page.locator(f"svg:has(#{figure}-t) g > title, svg:has(#{figure}-t) circle > title")
        assert titles.count() >= 3, figure
        assert all(words in said for said in titles.all_text_contents()), figure
    handle = page.locator(".ladder-pair input[type=range]").first
    upper = page.locator(".ladder-pair.sliding img:not(.under)").first
    assert upper.evaluate("image => image.style.clipPath") in ("inset(0px)", "inset(0px 0px 0px 0%)")
    handle.fill("60")
    assert "60%" in upper.evaluate("image => image.style.clipPath")
    assert handle.get_attribute("aria-label").startswith("Left of the handle the original")


def test_without_script_everything_is_there(opened: Opened) -> None:
    page = opened("report", java_script_enabled=False)
    assert page.locator("input, thead button").count() == 0
    assert not page.locator("button.expand").is_visible()
    assert page.locator(".ladder-pair img:visible").count() >= 10
    assert page.locator("table.ladder").is_visible()
    page.locator("summary", has_text="Every round's figures").click()
    assert page.get_by_text("Signal / noise").is_visible()


def test_dark_mode_is_dark(opened: Opened) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened("report", color_scheme=scheme).evaluate(background) for scheme in ("light", "dark"))
    assert (light, dark) == ("rgb(251, 250, 248)", "rgb(20, 23, 27)")


def test_it_prints_whole(opened: Opened) -> None:
    page = opened("report", color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.get_by_text("Every round's figures").is_visible()
    # What stands in closed details is printed too.
    assert page.locator("th", has_text="Signal / noise").evaluate("cell => cell.checkVisibility()")
    for drawing in page.locator("figure svg[role=img]").all():
        assert drawing.is_visible()
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 5 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 60


def test_the_page_can_be_walked_by_keyboard(opened: Opened) -> None:
    page = opened("report")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Who sees what"
    page.keyboard.press("Enter")
    assert page.url.endswith("#observers")


def test_a_chromium_prints_the_pdf_of_the_command(tmp_path: Path) -> None:
    from privfed.publication import print_page, publish

    target = print_page(publish(sample(), tmp_path))
    assert target == tmp_path / "report.pdf"
    assert target.read_bytes().startswith(b"%PDF")
