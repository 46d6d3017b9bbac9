"""Outcomes as a grid writes them, made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from privfed.audit.evidence import png
from privfed.defences.catalogue import Defence
from privfed.defences.record import Grid, build
from privfed.settings_file import load_settings


def row(
    defence: str, attack: str, target: int, of: int, *, psnr: float | None = 12.0, **values: Any
) -> dict[str, Any]:
    """An outcome; without a PSNR a failure."""
    failed = psnr is None
    mse = None if failed else 10 ** (-psnr / 10)
    image = None if failed else png(np.full((8, 8), 0.5))
    return {
        "defence": defence,
        "attack": attack,
        "target": target,
        "of": of,
        "clipped": None,
        "observer": "server",
        "kind": "client update",
        "round": 1,
        "contributors": 1.0,
        "examples": None if failed else 2,
        "fired": None,
        "verified": None,
        "failure": "no way in" if failed else None,
        "mse": mse,
        "psnr": psnr,
        "exact": mse is not None and mse < 1e-8,
        "exact_examples": None if failed else float(mse < 1e-8),
        "identified": None if failed else False,
        "trivial_psnr": None if failed else {"grey": 13.0},
        "margin_db": None if failed else psnr - 13.0,
        "text": None,
        "labels": None,
        "seconds": 0.1,
        "evaluations": 0,
        "original": image,
        "reconstruction": image,
        **values,
    }


def counted(defence: str, target: int, of: int, overlap: float = 0.75) -> dict[str, Any]:
    """Of an attack that counts labels."""
    labels = {
        "overlap": overlap,
        "exact": overlap == 1,
        "occurring": 1.0,
        "trivial": {"all alike": 0.25},
        "found": [1, 1],
        "true": [1, 1],
    }
    none = {"mse": None, "margin_db": None, "trivial_psnr": None, "original": None, "reconstruction": None}
    failed = row(defence, "label_inference", target, of, psnr=None)
    return {**failed, **none, "failure": None, "examples": 2, "labels": labels}


SETTINGS = load_settings(Path(__file__).parents[2] / "examples" / "defences.toml")
PLAN = [(Defence("none", "none"), ("one", "two")), (Defence("noise", "noise"), ("one",))]


def grid(rows: list[dict[str, Any]], plan: Any = PLAN) -> Grid:
    return build(SETTINGS, plan, rows, dataset="made up", model="mlp", held_out=18, seconds=1.0)


def cells(**psnr: float | None) -> list[dict[str, Any]]:
    """Three targets of each attack on ``none``."""
    return [
        row("none", attack, t, 3, psnr=None if db is None else db + t / 10)
        for attack, db in psnr.items()
        for t in (1, 2, 3)
    ]
