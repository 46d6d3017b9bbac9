"""Gossip on digits: as good as FedAvg, and as open to a neighbour as a server without masking."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

GOSSIP = Path(__file__).parents[1] / "examples" / "gossip.py"


@pytest.mark.slow
def test_gossip_learns_like_fedavg_and_shows_a_neighbour_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(GOSSIP))
    digits = example["Digits"]()
    everybody = digits.gossip(example["complete"](20), example["NoMechanism"](None), 12)
    fedavg = digits.fedavg(12)
    assert fedavg > 0.9
    assert everybody.average > fedavg - 0.03
    assert everybody.mean > fedavg - 0.08

    attack, psnr, margin = digits.first_view(example["NoMechanism"](1.0))
    assert (attack, psnr > 100, margin > 80) == ("dense_layer", True, True)
    noised = digits.first_view(example["LocalGaussian"](1.0, 0.5))
    assert isinstance(noised, str) or noised[2] < 3

    example["main"](rounds=1, multipliers=(4.0,))
    printed = capsys.readouterr().out
    assert "ε = inf at δ = 0.0001 for client-level privacy against all other clients together" in printed
    assert "noise multiplier 4, releases: 1" in printed
