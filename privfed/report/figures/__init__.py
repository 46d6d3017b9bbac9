"""The report's figures: pure functions from evidence to inline SVG, each with what to conclude from it."""

from privfed.report.figures.accuracy import accuracy_figure, clients_figure
from privfed.report.figures.base import Figure
from privfed.report.figures.empirical import canary_figure, canary_roc_figure, membership_figures
from privfed.report.figures.exposure import epsilon_figure, label_figure, reconstruction_figure
from privfed.report.figures.privacy import delta_figure, rounds_figure, trade_off_figure
from privfed.report.figures.rounds import clipping_figure, noise_figure, survivors_figure

__all__ = [
    "Figure",
    "accuracy_figure",
    "canary_figure",
    "canary_roc_figure",
    "clients_figure",
    "clipping_figure",
    "delta_figure",
    "epsilon_figure",
    "label_figure",
    "membership_figures",
    "noise_figure",
    "reconstruction_figure",
    "rounds_figure",
    "survivors_figure",
    "trade_off_figure",
]
