"""The templates' environment, for the report's page and for pages in its style."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from privfed.report import numbers
from privfed.report.selection import shortened


def page_environment(*packages: str) -> Environment:
    """Templates of ``packages``, the report's last, with the filters that write numbers as people do."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in (*packages, "privfed.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": numbers.count,
        "percent": numbers.percent,
        "eps": numbers.epsilon,
        "power": numbers.power,
        "ratio": numbers.ratio,
        "duration": numbers.duration,
        "moment": numbers.moment,
        "short": shortened,
        "sort_key": numbers.sort_key,
        "eps_from": numbers.epsilon_from,
        "points": numbers.points,
        "db": numbers.decibels,
        "octets": numbers.octets,
        "against_guess": numbers.against_guess,
        "words": numbers.words,
        "yes_no": numbers.yes_no,
        "breakable": _breakable,
    }
    return environment


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after a plus sign."""
    return escape(name).replace("+", Markup("+<wbr>"))
