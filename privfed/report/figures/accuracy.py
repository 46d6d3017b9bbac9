"""What protection costs: accuracy by round, and client by client."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from privfed.audit.evidence import Accuracy, AccuracyPoint, ClientAccuracy
from privfed.report import svg
from privfed.report.figures.base import PLOT_X, PLOT_Y, Figure, curves
from privfed.report.numbers import count, percent, points


def accuracy_figure(accuracy: Accuracy) -> Figure:
    """Test accuracy by round, as configured and without protection."""
    found = [
        (classes, words, [(p.round, p.test_accuracy) for p in _measured(points)])
        for classes, words, points in (
            ("curve first", "as configured", accuracy.protected),
            ("curve second", "without protection", accuracy.unprotected),
        )
    ]
    return curves(
        ("fig-accuracy", "Test accuracy by round", "accuracy"),
        [one for one in found if one[2]],
        _accuracy_words(accuracy),
        "Missing: accuracy was not measured in this run.",
        lambda v: percent(v, 0),
        top=1.0,
    )


def clients_figure(clients: ClientAccuracy) -> Figure:
    """How the accuracies of single clients are spread, with and without protection."""
    title = "Accuracy client by client"
    bins, most = len(clients.histogram), max((*clients.histogram, *clients.histogram_unprotected, 1))
    if not bins:
        return Figure(title, None, "Missing: no client was evaluated by itself.")
    x = svg.axis(0, 1, PLOT_X, lambda v: percent(v, 0))
    y = svg.axis(0, most, PLOT_Y, count, whole=True)
    parts = svg.frame(x, y, "accuracy of a client", "clients")
    width = (x.end - x.start) / bins
    for i, number in enumerate(clients.histogram):
        if number:
            place = (x.start + width * i + 1, y.place(number))
            bar = svg.rectangle(place, (width - 2, y.start - y.place(number)), "bar")
            words = f"{percent(i / bins, 0)} to {percent((i + 1) / bins, 0)}: {count(number)} clients"
            parts.append(Markup("<g>{}<title>{}</title></g>").format(bar, words))
    entries = [("bar-sample", "as configured")]
    if clients.histogram_unprotected:
        steps: list[tuple[float, float] | None] = []
        for i, number in enumerate(clients.histogram_unprotected):
            steps += [(x.start + width * i, y.place(number)), (x.start + width * (i + 1), y.place(number))]
        parts.append(svg.path(steps, "curve second"))
        entries.append(("curve second", "without protection"))
    parts += svg.legend(entries)
    p = clients.percentiles
    caption = (
        f"Over {count(clients.clients)} clients: {clients.whose}. On the mean client the model is right in "
        f"{percent(clients.mean)} of the examples; on the worst twentieth of clients "
        f"in at most {percent(p.get('5'))}."
    )
    if clients.mean_unprotected is not None:
        caption += f" Without protection the mean client has {percent(clients.mean_unprotected)}."
    if clients.worst:
        caption += f" The {count(len(clients.worst))} worst are named, by number, in report.json only."
    return Figure(title, svg.drawing("fig-clients", title, caption, parts), caption)


def _measured(series: Sequence[AccuracyPoint]) -> list[AccuracyPoint]:
    return [point for point in series if point.test_accuracy is not None]


def _accuracy_words(accuracy: Accuracy) -> str:
    with_it, without, gap = accuracy.final_protected, accuracy.final_unprotected, accuracy.gap
    if with_it is None or without is None or gap is None:
        if with_it is not None:
            return (
                "Missing: the same training without protection was not run, so what protection costs is not known."
            )
        return "Missing: the final accuracies are not known, and so neither is what protection costs."
    both = f"{percent(with_it)} as configured, {percent(without)} without protection"
    return f"Protection costs {points(gap)}: {both}." if gap > 0 else f"Protection costs nothing: {both}."
