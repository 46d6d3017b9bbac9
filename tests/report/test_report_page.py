"""What the page must and must not hold, judged by its structure."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from report_sample import (
    CENTRAL,
    OBSERVERS,
    canaries,
    clients,
    guarantee,
    observers,
    round_evidence,
    run,
    sample,
    sweep,
)
from sample_attacks import attack, counted_labels, failed_attack

from privfed.audit import evidence as ev
from privfed.report import render_html
from privfed.report.figures.rounds import noise_figure
from privfed.report.ladder import ladders
from privfed.report.page import LEVELS

LIMIT = 2_000_000
VOID = {"meta", "link", "img", "br", "wbr"}
HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\"'{{ 7*7 }}</style></title>"


class Page(HTMLParser):
    """Elements in order, each with its own text and that of all below it; refuses tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {[e['tag'] for e in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "parents": [e["tag"] for e in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **attrs: str) -> list[dict[str, Any]]:
        wanted = {name.rstrip("_"): value for name, value in attrs.items()}
        return [e for e in self.elements if e["tag"] == tag and wanted.items() <= e["attrs"].items()]

    def text(self) -> str:
        return str(self.all("body")[0]["text"])


def test_page_has_landmarks_headings_and_one_title() -> None:
    page = Page(render_html(sample()))
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert len([title for title in page.all("title") if "svg" not in title["parents"]]) == 1
    assert page.all("html", lang="en")
    assert page.all("nav")
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert len(ids) == len(set(ids))
    order = [e["text"] for e in page.all("h2")]
    asked = ["What is claimed?", "Is the claim right?", "What was exposed?", "What did it cost?"]
    assert order[:6] == ["Partly protected", *asked, "Who sees what"]
    assert order[-1] == "The run, to repeat it"


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render_html(sample())
    page = Page(html)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["attrs"]["content"]
    (script,) = page.all("script")
    allowed = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    assert policy.startswith(
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; img-src data:"
    )
    assert not script["attrs"]
    for reach in ("fetch", "XMLHttpRequest", "import(", "eval", "innerHTML", "document.write", "navigator"):
        assert reach not in script["text"]
    ids = {e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]}
    for element in page.elements:
        assert element["tag"] not in {"iframe", "object", "embed", "form", "base", "audio", "video"}
        assert not [name for name in element["attrs"] if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "poster", "background", "xlink:href"):
            target = element["attrs"].get(name)
            if target is None or target == "data:," or target.startswith("data:image/png;base64,"):
                continue
            assert target.startswith("#"), target
            assert target[1:] in ids, f"{target} leads nowhere"
    assert "//" not in re.sub(r'"data:image/png;base64,[^"]*"', "", html)
    assert re.findall(r"url\(([^)]*)\)", html) == ["#hatch"]
    assert "@import" not in html


def test_images_and_figures_have_words_for_those_who_do_not_see_them() -> None:
    page = Page(render_html(sample()))
    assert page.all("img")
    assert all(image["attrs"]["alt"] for image in page.all("img"))
    figures = page.all("svg", role="img")
    assert len(figures) == 16
    ids = {e["attrs"]["id"]: e["text"] for e in page.elements if "id" in e["attrs"]}
    for figure in figures:
        assert all(len(ids[name]) > 10 for name in figure["attrs"]["aria-labelledby"].split())
    assert all("scope" in e["attrs"] for e in page.all("th"))


def test_every_epsilon_has_all_it_depends_on() -> None:
    page = Page(render_html(sample()))
    statements = page.all("div", class_="loss")
    assert len(statements) == len(OBSERVERS) + 3  # and the strip's at the top, the sweep's and the ledger's
    for statement in statements:
        words = statement["text"]
        for needed in (
            "ε",
            "against",
            "unit: client",
            "neighbours: add or remove",
            "sampling: Poisson",
            "δ\xa0=\xa010⁻⁴",
        ):
            assert needed in words
    for statement, name in zip(statements[1:], OBSERVERS, strict=False):
        assert f"against {name} ·" in statement["text"]
    # No bound stands anywhere else, but for the figures and the tables, whose captions hold the same terms.
    bound = r"ε\s*[=≤<]\s*[\d∞]"
    inside = sum(len(re.findall(bound, s["text"])) for s in statements)
    claims = sum(len(re.findall(bound, cell["text"])) for cell in canary_claims(page))
    assert claims
    assert len(re.findall(bound, page.text())) == inside + claims
    captions = {
        re.split(r"against| is the", caption["text"])[0].strip(): caption["text"]
        for caption in (*page.all("caption"), *page.all("figcaption"))
        if ("ε" in caption["text"] and "meant against" in caption["text"]) or "Every ε" in caption["text"]
    }
    assert len(captions) >= 5
    for caption in captions.values():
        for needed in ("unit: client", "neighbours: add or remove", "sampling: Poisson", "δ\xa0="):
            assert needed in caption, caption
    cells = [e for e in page.all("th") if "ε" in e["text"]]
    assert [e["text"] for e in cells] == ["ε by PLD", "ε by RDP", "ε after it"]
    for cell in cells:  # each in a table whose caption holds the terms
        assert "table" in cell["parents"]


def canary_claims(page: Page) -> list[dict[str, Any]]:
    """Cells of the canaries' table that state a claim; its caption holds the terms."""
    (caption,) = [c for c in page.all("caption") if "each observer named" in c["text"]]
    assert "unit: client" in caption["text"]
    return [cell for cell in page.all("td") if re.fullmatch(r"ε\s*[=≤]\s*[\d.∞]+", cell["text"].strip())]


def test_terms_that_differ_are_told_apart_below_the_figure() -> None:
    judged = observers()
    local = guarantee(5.0, sampling="none: every client in every round", neighbouring="replace one client")
    judged[0] = judged[0].model_copy(update={"guarantee": local})
    caption = Page(render_html(sample(observers=judged, accounting=None))).all("figcaption")[0]["text"]
    assert caption.count("Every ε here is meant against") == 2
    assert "against server · unit: client · neighbours: replace one client" in caption


def test_infinity_is_written_as_such_and_bounds_are_never_rounded_down() -> None:
    page = Page(render_html(sample()))
    shown = [e["text"] for e in page.all("span", class_="eps")]
    assert shown == [
        "ε\xa0≤\xa03.00",
        *["ε\xa0=\xa0∞"] * 3,
        *["ε\xa0≤\xa03.00"] * 2,
        "ε\xa0≤\xa09.50",
        "ε\xa0≤\xa03.00",
    ]
    text = page.text()
    assert not re.search(r"\binf\b|\bnan\b|\bNone\b", text)
    rounds = [round_evidence(n, signal_to_noise=math.inf, epsilon_spent=math.inf) for n in range(1, 4)]
    text = Page(render_html(sample(rounds=rounds))).text()
    assert "no noise was added in any round" in text
    assert not re.search(r"\binf\b", text)


@pytest.mark.parametrize(("highest", "drawn"), [(0.49, False), (0.5, True), (0.97, True), (3.0, True)])
def test_the_line_at_1_is_spoken_of_where_it_is_drawn(highest: float, drawn: bool) -> None:
    figure = noise_figure([round_evidence(n, signal_to_noise=highest / n) for n in range(1, 4)])
    assert figure.drawing is not None
    assert ("(dashed)" in figure.caption) == drawn
    assert ('class="reference"' in figure.drawing) == drawn


def test_only_some_rounds_without_noise_are_named() -> None:
    rounds = [round_evidence(1, signal_to_noise=math.inf), round_evidence(2), round_evidence(3)]
    assert "Not drawn: 1 rounds without noise" in render_html(sample(rounds=rounds))


def test_hostile_strings_come_out_as_text() -> None:
    text = f"{HOSTILE}\r\n\x00\x1b"
    hostile = sample(
        run=run(name=HOSTILE, platform=text, packages={text: text}, settings={text: {text: [text]}}),
        verdict=ev.Verdict(level="exposed", text=text),
        observers=[o.model_copy(update={"observer": f"{o.observer}{HOSTILE}", "sees": text}) for o in observers()],
        attacks=[attack(1, observer=text, workload=text, defence=text, kind=text), failed_attack(text)],
        limits=[text],
        statements=[ev.Statement(layer="trust", item=text, says=text)],
        checks=[ev.PitfallCheck(layer="unit", name=text, result="failed", why=text)],
        trust=[ev.TrustAssumption(who=text, trusted_to=text, otherwise=text)],
        sweep=sweep().model_copy(update={"name": text, "statement": text, "observer": text}),
        canaries=canaries().model_copy(
            update={"observers": tuple(o.model_copy(update={"sees": text}) for o in canaries().observers)}
        ),
        clients=clients().model_copy(update={"whose": text}),
        unnoised=[ev.UnnoisedQuantity(name=text, why=text)],
    )
    html = render_html(hostile)
    page = Page(html)  # tags still match
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert all(image["attrs"]["src"].startswith("data:") for image in page.all("img"))
    assert "{{ 7*7 }}" in page.text()
    assert HOSTILE in page.text()
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)


@pytest.mark.parametrize(
    ("section", "empty", "words"),
    [
        ("observers", [], "no observer was judged"),
        ("attacks", [], "no attack was run"),
        ("rounds", [], "no round was recorded"),
        ("membership", None, "Not measured: membership inference"),
        ("canaries", None, "Not measured: no canaries"),
        ("accounting", None, "No noise protects whoever sees the released model"),
        ("clients", None, "no client was evaluated by itself"),
        ("sweep", None, "no sweep or tuning was named"),
        ("statements", [], "before it held the items of a claim"),
        ("checks", [], "before it held a checklist"),
        ("trust", [], "Not recorded: whom the promise trusts"),
        ("unnoised", [], "None are listed"),
        ("limits", [], "That does not mean that there are none"),
    ],
)
def test_a_missing_section_is_named(section: str, empty: Any, words: str) -> None:
    assert words in Page(render_html(sample(**{section: empty}))).text()


def test_a_partial_run_renders_and_says_so() -> None:
    empty = ev.Accuracy(protected=[], unprotected=[], final_protected=None, final_unprotected=None, gap=None)
    unknown = dict.fromkeys(("clipped_fraction", "signal_to_noise", "epsilon_spent"))
    page = Page(
        render_html(
            sample(
                run=run(status="partial", git_commit=None, seed=None, settings={}, packages={}),
                accuracy=empty,
                rounds=[round_evidence(1, aborted="fewer clients than the threshold were left", **unknown)],
                attacks=[failed_attack("server")],
                secure_aggregation=ev.SecureAggregation(
                    mode="off",
                    threshold=None,
                    ring_bits=None,
                    stages=None,
                    aborted_rounds=1,
                    abort_probability=None,
                    assumptions=[],
                ),
                ledger=sample().ledger.model_copy(update={"transcript_sha256": None, "observers": ()}),
                membership=None,
            )
        )
    )
    text = page.text()
    for words in (
        "Partial report",
        "accuracy was not measured",
        "Rounds aborted: 1 of 1",
        "fewer clients than the threshold",
        "no update was clipped",
        "signal-to-noise ratio was not measured",
        "No attack came to a reconstruction",
        "the server sees every client's update",
        "not recorded",
        "against nobody",
        "no settings were recorded",
    ):
        assert words in text


def test_an_unmeasured_baseline_is_named() -> None:
    alone = sample().accuracy.model_copy(update={"unprotected": (), "final_unprotected": None, "gap": None})
    assert "was not run, so what protection costs is not known" in render_html(sample(accuracy=alone))


@pytest.mark.parametrize("level", LEVELS)
def test_every_verdict_has_its_words(level: Any) -> None:
    page = Page(render_html(sample(verdict=ev.Verdict(level=level, text="So it is."))))
    assert page.all("section", class_=f"verdict {level}")
    assert page.all("h2")[0]["text"] == LEVELS[level]


def test_margins_decide_the_words() -> None:
    judged = []
    for name, margin in (("a", 1.0), ("b", 0.99), ("c", 0.0)):
        best = ev.BestAttack(
            attack="x", workload="w", defence="d", psnr=10 + margin, margin_db=margin, trivial_psnr=10
        )
        judged.append(observers()[0].model_copy(update={"observer": name, "best_attack": best}))
    results = [e["text"] for e in Page(render_html(sample(observers=judged))).all("span", class_="result")]
    assert results == ["beats a guess by 1.0\u202fdB", "within 1 dB of a guess", "no better than a guess"]


def test_the_same_evidence_gives_the_same_page() -> None:
    assert render_html(sample()) == render_html(sample())


def test_a_single_round_and_a_terms_free_image_render() -> None:
    point = ev.AccuracyPoint(round=1, test_accuracy=0.5)
    accuracy = ev.Accuracy(
        protected=[point], unprotected=[point], final_protected=0.5, final_unprotected=0.5, gap=0.0
    )
    html = render_html(sample(rounds=[round_evidence(1)], accuracy=accuracy))
    assert "Protection costs nothing" in html
    assert CENTRAL["sampling"] in html


def test_attacks_on_text_show_the_scores_of_text() -> None:
    scores = ev.TextScores(token_set=0.98765, token_accuracy=0.5, exact=0.25, rouge1=0.7, rouge2=0.6, rouge_l=0.65)
    read = failed_attack("server").model_copy(update={"failure": None, "text": scores})
    html = render_html(sample(attacks=[read]))
    assert "tokens 0.988 (F1 of the set), in their places 0.5, whole sequences 0.25, ROUGE-L 0.65" in html


def test_labels_have_a_figure_a_note_and_a_word_at_the_top() -> None:
    counted = [
        counted_labels("server"),
        counted_labels("server", right=False),
        counted_labels("client", right=False),
    ]
    html = render_html(sample(attacks=counted))
    page = Page(html)
    assert 'id="fig-labels-t"' in html
    assert "server, as configured: the run&#39;s own updates: 75.0" in html
    assert "all labels of 1 of 2 vectors" in html
    assert any("labels: 100.0" in cell["text"] and "a guess 50.0" in cell["text"] for cell in page.all("td"))
    assert "Labels: server counts 100" in html
    assert 'id="fig-labels-t"' not in render_html(sample(attacks=[failed_attack("server")]))


def test_a_ladder_shows_the_same_examples_behind_each_defence() -> None:
    probes = [
        attack(i, observer="server", workload="probe", defence=defence, contributors=1.0)
        for defence in ("none", "clip")
        for i in range(3)
    ]
    summed = attack(2, observer="server", workload="probe", defence="clip, sum", contributors=54.0)
    assert ladders(probes) == []  # one defence is no ladder
    (ladder,) = ladders([*probes, summed])
    assert [step.defence for step in ladder.steps] == ["none", "clip", "clip, sum"]
    assert list(ladder.originals) == [a.original for a in probes[:3]]
    for step in ladder.steps[:2]:
        assert [cell.original if cell else None for cell in step.cells] == list(ladder.originals)
    assert ladder.steps[2].cells == ()
    assert ladder.steps[2].whole == (summed,)
    page = Page(render_html(sample(attacks=[*probes, summed])))
    (table,) = page.all("table", class_="ladder")
    assert "54 examples are in one vector" in table["text"]
    assert page.all("td", class_="together")[0]["attrs"]["rowspan"] == "3"
