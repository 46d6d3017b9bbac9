"""Examples and how clients hold them: sources, partitioners, and the packed population they make."""

from __future__ import annotations

from privfed.data.dataset import Dataset
from privfed.data.partition import PARTITIONERS, Assignment, PartitionPlan, build_population
from privfed.data.population import Population, as_float
from privfed.data.sources import SOURCES, describe, load_dataset

__all__ = [
    "PARTITIONERS",
    "SOURCES",
    "Assignment",
    "Dataset",
    "PartitionPlan",
    "Population",
    "as_float",
    "build_population",
    "describe",
    "load_dataset",
]
