"""Examples and how clients hold them: sources, partitioners, and the packed population they make."""

from __future__ import annotations

from privfed.data.dataset import Dataset
from privfed.data.features import FEATURES, transform
from privfed.data.holdout import ClientSplit, draw_held_out, hold_out_clients, take_clients
from privfed.data.partition import NATURAL, PARTITIONERS, Assignment, PartitionPlan, build_population
from privfed.data.population import Population, as_float
from privfed.data.sources import SOURCES, describe, load_dataset
from privfed.data.stored import open_population, save_population
from privfed.data.text import require_text_model

__all__ = [
    "FEATURES",
    "NATURAL",
    "PARTITIONERS",
    "SOURCES",
    "Assignment",
    "ClientSplit",
    "Dataset",
    "PartitionPlan",
    "Population",
    "as_float",
    "build_population",
    "describe",
    "draw_held_out",
    "hold_out_clients",
    "load_dataset",
    "open_population",
    "require_text_model",
    "save_population",
    "take_clients",
    "transform",
]
