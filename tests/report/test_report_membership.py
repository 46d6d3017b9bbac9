"""Clients that an attack is most sure of are named in the JSON, and on no page."""

from __future__ import annotations

from report_sample import membership, sample

from privfed.audit import evidence as ev
from privfed.report import render_html
from privfed.report.markdown import render_markdown


def test_the_worst_off_are_named_in_the_json_alone() -> None:
    worst = (ev.FoundClient(client=271828, units=4, found=2, lowest_fpr=0.0),)
    plain = membership()
    named = plain.model_copy(
        update={"attacks": tuple(a.model_copy(update={"worst_off": worst}) for a in plain.attacks)}
    )
    one, other = sample(membership=plain), sample(membership=named)
    assert "271828" in other.model_dump_json()
    assert render_html(one) == render_html(other)
    assert render_markdown(one) == render_markdown(other)


def test_areas_have_their_interval() -> None:
    plain = membership()
    first = plain.attacks[0].model_copy(update={"auc": 0.52, "auc_interval": (0.4871, 0.5529)})
    page = render_html(sample(membership=plain.model_copy(update={"attacks": (first, *plain.attacks[1:])})))
    assert "0.520 (0.487 to 0.553)" in page
