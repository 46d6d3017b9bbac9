"""The page: well formed, self-contained, without a script, whatever the experiment's name is."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from checked_html import Checked
from synthetic import cells, counted, grid

from privfed.defences.catalogue import Defence
from privfed.defences.figures import DECIBELS, SHARES, labels_figure, psnr_figure
from privfed.defences.page import render_grid
from privfed.defences.record import LABELS, Grid


@pytest.fixture(scope="module")
def found() -> Grid:
    return grid(cells(one=20.0, two=None))


def test_well_formed_with_unique_ids_and_nothing_from_elsewhere(found: Grid) -> None:
    html = render_grid(found)
    parsed = Checked(html)
    assert parsed.stack == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "<script" not in html
    assert "default-src 'none'" in html
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
        if tag == "img":
            assert attributes["alt"]


def test_an_unfinished_grid_says_so_and_hatches_what_is_missing(found: Grid) -> None:
    assert "Partial." in render_grid(found)
    drawing = str(psnr_figure(found).drawing)
    assert drawing.count('class="bar endless"') == 2  # the attack on the second line, and its strongest
    assert "noise: not finished" in drawing


def test_what_is_drawn_is_also_said(found: Grid) -> None:
    drawing = str(psnr_figure(found).drawing)
    assert re.search(r"<desc[^>]*>.*none: 20.*</desc>", drawing)


def test_shades_rise_with_the_leak() -> None:
    assert list(DECIBELS) == sorted(DECIBELS)
    assert list(SHARES) == sorted(SHARES)


def test_a_hostile_name_stays_text(found: Grid) -> None:
    html = render_grid(replace(found, name='"><script>alert(1)</script>'))
    assert "<script" not in html
    Checked(html)


def test_labels_have_a_heat_map_beside_a_guess() -> None:
    plan = [(Defence("none", "none"), ("one", LABELS)), (Defence("noise", "noise"), ("one", LABELS))]
    found = grid([*cells(one=20.0), *(counted("none", t, 3) for t in (1, 2, 3))], plan)
    figure = labels_figure(found)
    assert figure is not None
    assert re.search(r"<desc[^>]*>.*Labels right: none: 75.*; noise: not finished", str(figure.drawing))
    assert ">25" in str(figure.drawing)  # by guess
    html = render_grid(found)
    Checked(html)
    assert "labels right 75" in html
    assert "label inference" not in str(psnr_figure(found).drawing)
    assert labels_figure(grid(cells(one=20.0))) is None
